"""Predictions image by image: the most probable classes, and embeddings."""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.nn import functional
from mbv3_jax.nn.blocks import Compute
from mbv3_jax.train.placement import batch_sharded, put_batch, replicated

TOP = 5


def make_predict_step(
    spec: NetSpec,
    *,
    preprocess: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    top: int = TOP,
) -> Callable[[functional.Variables, dict], dict]:
    """Builds the jitted prediction of one batch; arguments as `evaluate.make_eval_step`.

    Returns:
      step(variables, batch) -> {"classes": int32 [N, k], the most probable first;
      "probabilities": float32 [N, k], of these; "label_probability": float32 [N], of the label;
      and the batch's "label" and "mask"}, where k is `top` or the number of classes if that is
      less.
    """

    def step(variables, batch):
        logits, _ = functional.apply(spec, variables, preprocess(batch["image"]), compute=compute)
        probabilities = jax.nn.softmax(logits)
        # Of the logits: equal probabilities of unequal logits must not change the order.
        _, classes = jax.lax.top_k(logits, min(top, spec.num_classes))
        labels = batch["label"][:, None]
        return {
            "classes": classes,
            "probabilities": jnp.take_along_axis(probabilities, classes, axis=1),
            "label_probability": jnp.take_along_axis(probabilities, labels, axis=1)[:, 0],
        }

    return _jit(step, mesh)


def make_embed_step(
    spec: NetSpec,
    *,
    preprocess: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> Callable[[functional.Variables, dict], dict]:
    """As `make_predict_step`: step(variables, batch) -> {"embedding": float32 [N, channels],
    "label", "mask"}."""

    def step(variables, batch):
        images = preprocess(batch["image"])
        return {"embedding": functional.embed(spec, variables, images, compute=compute)}

    return _jit(step, mesh)


def _jit(step, mesh: Mesh):
    whole, split = replicated(mesh), batch_sharded(mesh)

    def with_labels(variables, batch):
        return step(variables, batch) | {"label": batch["label"], "mask": batch["mask"]}

    return jax.jit(with_labels, in_shardings=(whole, split), out_shardings=whole)


def run(
    step: Callable[[functional.Variables, dict], dict],
    variables: functional.Variables,
    batches: Iterable[dict],
    *,
    mesh: Mesh,
) -> Iterator[dict[str, np.ndarray]]:
    """Runs over all batches.

    Args:
      step: from `make_predict_step` or `make_embed_step`.
      variables: of the network.
      batches: host batches {"image", "label", "mask"}, as `data.loader.eval_batches` gives them.
      mesh: from `placement.make_mesh`.

    Yields:
      What `step` returns for each batch, as NumPy arrays, when the next one is under way.
    """
    # Some of them may be in parts, of an optimizer that is; `device_put` would not bring these
    # together from several processes.
    variables = jax.jit(lambda x: x, out_shardings=replicated(mesh))(variables)
    waiting = None
    for batch in batches:
        used = {name: batch[name] for name in ("image", "label", "mask")}
        started = step(variables, put_batch(used, mesh))
        if waiting is not None:
            yield jax.device_get(waiting)
        waiting = started
    if waiting is not None:
        yield jax.device_get(waiting)
