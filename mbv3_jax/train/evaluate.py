"""Evaluation: every example exactly once, sums divided once at the end."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import RunError, counted
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.train.hierarchy import Hierarchy
from mbv3_jax.train.losses import (
    bce,
    class_numbers,
    correct,
    cross_entropy,
    label_accuracy,
    semantic_hits,
)
from mbv3_jax.train.measures import batch_values, class_counts, measures, multi_label_measures
from mbv3_jax.train.sharding import batch_sharded, put_batch, replicated

EvalStep = Callable[[functional.Variables, dict], dict]


def make_eval_step(
    spec: NetSpec,
    *,
    preprocess: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    multi_label: bool = False,
    hierarchy: Hierarchy | None = None,
) -> EvalStep:
    """Builds the jitted evaluation of one batch.

    Args:
      spec: the network.
      preprocess: uint8 images -> normalised images [batch, height, width, channels].
      mesh: from `sharding.make_mesh`.
      compute: types and forms of computation.
      multi_label: whether an image has several labels; its labels are then float32
        [batch, classes], and the sums are count, loss (binary cross-entropy) and label_accuracy.
      hierarchy: of the classes of a network that was trained by it; None for none.

    Returns:
      step(variables, batch) -> float32 sums over the examples whose mask is 1: count, loss
      (cross-entropy), top1, and top5 if there are more than five classes; and, if the batch has
      "unreadable", the number of examples that were left out because they cannot be read. Also
      "classes", see `measures.class_counts`, to be added up too, and "batch", see
      `measures.batch_values`, which is not. With a hierarchy also semantic_hits and
      semantic_levels, see `losses.semantic_hits`.
    """

    def step(variables, batch):
        logits, _ = functional.apply(spec, variables, preprocess(batch["image"]), compute=compute)
        labels, mask = batch["label"], batch["mask"]
        loss = (bce if multi_label else cross_entropy)(logits, labels)
        # The padding's loss may be anything, NaN too; multiplying by the mask would keep it.
        sums = {"count": jnp.sum(mask), "loss": jnp.sum(jnp.where(mask > 0, loss, 0))}
        if "unreadable" in batch:
            sums["unreadable"] = jnp.sum(batch["unreadable"])
        if multi_label:
            sums["label_accuracy"] = jnp.sum(label_accuracy(logits, labels) * mask)
            values = {"scores": logits.astype(jnp.float32), "labels": labels, "mask": mask}
            return {**sums, "batch": values}
        labels = class_numbers(labels)  # of probabilities, the most probable
        sums["top1"] = jnp.sum(correct(logits, labels, 1) * mask)
        if spec.num_classes > 5:
            sums["top5"] = jnp.sum(correct(logits, labels, 5) * mask)
        if hierarchy is not None:
            hits, levels = semantic_hits(logits, labels, hierarchy)
            sums |= {"semantic_hits": hits @ mask, "semantic_levels": levels @ mask}
        return {
            **sums,
            "classes": class_counts(logits, labels, mask),
            "batch": batch_values(logits, labels, mask),
        }

    whole, split = replicated(mesh), batch_sharded(mesh)
    return jax.jit(step, in_shardings=(whole, split), out_shardings=whole)


def evaluate(
    eval_step: EvalStep,
    variables: functional.Variables,
    batches: Iterable[dict],
    *,
    mesh: Mesh,
    expected: int,
) -> dict[str, Any]:
    """Evaluates all batches and divides the sums once.

    Args:
      eval_step: from `make_eval_step`.
      variables: of the network.
      batches: host batches {"image", "label", "mask"}, see `data.loader.eval_batches`.
      mesh: from `sharding.make_mesh`.
      expected: the number of examples that must have been counted.

    Returns:
      count (an int), mean loss, and the fractions top1 and top5 (if counted); and, if some
      examples could not be read, their number "unreadable" (an int), which is not in the count;
      and with a hierarchy semantic_accuracy, the fraction of the levels on which they are right.
      Then what `measures.measures` or `measures.multi_label_measures` returns.

    Raises:
      RunError: no example could be read.
      RuntimeError: the batches held another number of examples than expected.
    """
    device_totals, values_of_batches = None, []
    for batch in batches:
        sums = dict(eval_step(variables, put_batch(batch, mesh)))
        values_of_batches.append(sums.pop("batch", {}))
        device_totals = (
            sums if device_totals is None else jax.tree.map(jnp.add, device_totals, sums)
        )
    on_host = jax.device_get(device_totals)
    counts = on_host.pop("classes", None)
    totals = {k: float(v) for k, v in on_host.items()}
    count = int(totals.pop("count"))
    unreadable = int(totals.pop("unreadable", 0))
    if count + unreadable != expected:
        raise RuntimeError(f"evaluation counted {count + unreadable} examples of {expected}")
    if not count:
        raise RunError(f"none of {counted(expected, 'image')} to evaluate on could be read")
    hits, levels = (totals.pop(f"semantic_{of}", 0.0) for of in ("hits", "levels"))
    semantic = {"semantic_accuracy": hits / levels} if levels else {}
    left_out = {"unreadable": unreadable} if unreadable else {}
    values = {"count": count, **left_out, **{k: v / count for k, v in totals.items()}, **semantic}
    if counts is None:
        return values | multi_label_measures(jax.device_get(values_of_batches))
    return values | measures(counts, jax.device_get(values_of_batches), count)
