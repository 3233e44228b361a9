"""Predictions image by image: the most probable classes, and embeddings."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.run.processes import is_first
from mbv3_jax.train.experiment import Experiment
from mbv3_jax.train.sharding import batch_sharded, put_batch, replicated

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


def run_batches(
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


# predictions.npz of a run folder: what a run's last weights say of every held-out image.
#
# step               the checkpoint
# label              int32 [N], -1 where an image could not be read
# prediction         int32 [N]
# probability        float32 [N], of the prediction
# label_probability  float32 [N], of the label
# path               [N] where the image lies, or what number it has
# mistakes           int64 [M] which images are the worst mistakes, the worst first
# thumbnails         uint8 [M, S, S, 3] of the mistakes, as the network saw them, made small

PREDICTIONS = "predictions.npz"
MISTAKES = 24
THUMBNAIL = 112  # pixels at most


def save_predictions(
    run_folder: Path,
    experiment: Experiment,
    variables: functional.Variables,
    *,
    step: int,
    between: Callable = iter,
) -> None:
    """Predicts every held-out image and writes the file, whole or not at all.

    Args:
      run_folder: where to.
      experiment: the run.
      variables: its weights.
      step: how long they were trained.
      between: wraps the batches.
    """
    predict_step = make_predict_step(
        experiment.spec,
        preprocess=experiment.eval_preprocess,
        mesh=experiment.mesh,
        compute=experiment.compute,
        top=1,
    )
    batches, parts = experiment.eval_batches(), []
    try:
        parts += run_batches(predict_step, variables, between(batches), mesh=experiment.mesh)
    finally:
        batches.close()
    if not is_first():
        return
    source = experiment.eval_source
    joined = {k: np.concatenate([p[k] for p in parts])[: len(source)] for k in parts[0]}
    read = joined["mask"] > 0
    values = {
        "step": np.int64(step),
        "label": np.where(read, joined["label"], -1).astype(np.int32),
        "prediction": joined["classes"][:, 0].astype(np.int32),
        "probability": joined["probabilities"][:, 0],
        "label_probability": joined["label_probability"],
        "path": np.array([source.where(i) for i in range(len(source))]),
    }
    worst = worst_mistakes(values, MISTAKES)
    stride = -(-source.resolution // THUMBNAIL)
    thumbnails = [source[int(i)]["image"][::stride, ::stride] for i in worst]
    side = -(-source.resolution // stride)
    values |= {
        "mistakes": worst,
        "thumbnails": np.array(thumbnails, np.uint8).reshape(-1, side, side, 3),
    }
    temporary = run_folder / "predictions.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **values)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(run_folder / PREDICTIONS)


def worst_mistakes(values: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The images whose label was thought least probable among those predicted wrongly."""
    wrong = np.flatnonzero((values["label"] >= 0) & (values["label"] != values["prediction"]))
    order = np.argsort(values["label_probability"][wrong], kind="stable")
    return wrong[order[:count]]
