"""Evaluation: every example exactly once, sums divided once at the end."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.train import losses
from mbv3_jax.train.sharding import batch_sharded, put_batch, replicated


def make_eval_step(
    spec: NetSpec,
    *,
    preprocess: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> Callable[[functional.Variables, dict], dict]:
    """Builds the jitted count of one batch.

    Args:
      spec: the network.
      preprocess: uint8 images -> normalised images [N, H, W, C].
      mesh: from `placement.make_mesh`.
      compute: types and forms of computation.

    Returns:
      step(variables, batch) -> float32 sums over the examples whose mask is 1: count, loss,
      top1, and top5 where there are more than five classes; and "unreadable", the number of
      examples left out as such, where the batch says so.
    """

    def step(variables, batch):
        logits, _ = functional.apply(spec, variables, preprocess(batch["image"]), compute=compute)
        labels, mask = batch["label"], batch["mask"]
        sums = {
            "count": jnp.sum(mask),
            # The padding's loss may be anything, NaN too; multiplying by the mask would keep it.
            "loss": jnp.sum(jnp.where(mask > 0, losses.cross_entropy(logits, labels), 0)),
            "top1": jnp.sum(losses.correct(logits, labels, 1) * mask),
        }
        if spec.num_classes > 5:
            sums["top5"] = jnp.sum(losses.correct(logits, labels, 5) * mask)
        if "unreadable" in batch:
            sums["unreadable"] = jnp.sum(batch["unreadable"])
        return sums

    whole, split = replicated(mesh), batch_sharded(mesh)
    return jax.jit(step, in_shardings=(whole, split), out_shardings=whole)


def evaluate(
    eval_step: Callable[[functional.Variables, dict], dict],
    variables: functional.Variables,
    batches: Iterable[dict],
    *,
    mesh: Mesh,
    expected: int,
) -> dict[str, float]:
    """Runs over all batches and divides once.

    Args:
      eval_step: from `make_eval_step`.
      variables: of the network.
      batches: host batches {"image", "label", "mask"}, as `data.loader.eval_batches` gives them.
      mesh: from `placement.make_mesh`.
      expected: number of examples that must have been counted.

    Returns:
      count (an int), mean loss, and the fractions top1 and top5 (if counted); "unreadable" (an
      int), if there were any examples that could not be read, which are not in the count.

    Raises:
      RuntimeError: the batches held another number of examples than `expected`.
    """
    totals = None
    for batch in batches:
        sums = eval_step(variables, put_batch(batch, mesh))
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    totals = {k: float(v) for k, v in jax.device_get(totals).items()}
    count = int(totals.pop("count"))
    unreadable = int(totals.pop("unreadable", 0))
    if count + unreadable != expected:
        raise RuntimeError(f"evaluation counted {count + unreadable} examples of {expected}")
    left_out = {"unreadable": unreadable} if unreadable else {}
    return {"count": count, **left_out, **{k: v / count for k, v in totals.items()}}
