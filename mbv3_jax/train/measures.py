"""Measures of an evaluation by class, averaged over classes, and of its calibration.

The device sums only small arrays: three counts per class and the gaps of 15 bins. Only with two
classes does one number per example reach the host, for the measures that depend on the order of all
examples. No logits are collected, so 1,000 classes and 50,000 images cost next to nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.run import metrics
from mbv3_jax.train.losses import correct

# Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 5.
CALIBRATION_BINS = 15


def class_counts(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """What `measures` needs to know of each class, to be added up over batches.

    Args:
      logits: [batch, classes], any float type.
      labels: [batch] class numbers; one that is out of range counts for no class.
      mask: [batch], 1 for examples that count and 0 for the others.

    Returns:
      int32 [classes] each: "images" with this label, "predicted" as this class, and "hits", the
      images that are both. An image with NaN among its logits is predicted as no class.
    """
    classes = logits.shape[-1]

    def count(numbers: jax.Array, counts: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.one_hot(numbers, classes, dtype=jnp.int32) * counts[:, None], axis=0)

    counts = (mask > 0).astype(jnp.int32)
    valid = ~jnp.any(jnp.isnan(logits), axis=-1)
    return {
        "images": count(labels, counts),
        "predicted": count(jnp.argmax(logits, axis=-1), counts * valid),
        "hits": count(labels, counts * correct(logits, labels, 1).astype(jnp.int32)),
    }


def batch_values(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """What `measures` needs of each batch as it is; arguments as for `class_counts`.

    Returns:
      "gaps", float32 [bins]: over the examples whose confidence, the largest probability, lies in
      the bin (i/15, (i+1)/15], the sum of the confidence minus 1 if the answer is right. With two
      classes also "scores", the second logit minus the first, float32 [batch], which orders
      examples as their probability does but has no ties where that rounds to 1; and "labels" and
      "mask".
    """
    logits = logits.astype(jnp.float32)
    confidence = jnp.exp(jnp.max(jax.nn.log_softmax(logits, axis=-1), axis=-1))
    gap = jnp.where(mask > 0, confidence - correct(logits, labels, 1), 0)
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1)
    in_bins = jax.nn.one_hot(bins.astype(jnp.int32), CALIBRATION_BINS)
    # A NaN where it counts makes every bin NaN, and so the measure, as it does the loss.
    values = {"gaps": jnp.sum(in_bins * gap[:, None], axis=0)}
    if logits.shape[-1] == 2:
        values |= {"scores": logits[:, 1] - logits[:, 0], "labels": labels, "mask": mask}
    return values


def measures(
    counts: Mapping[str, np.ndarray], batches: Sequence[Mapping[str, np.ndarray]], count: int
) -> dict[str, Any]:
    """The measures of a whole evaluation.

    Precision is the part of the images predicted as a class that belong to it, recall the part of
    its images that are predicted as it, F1 their harmonic mean; 0 where there are no such images.
    "macro" averages over the classes that have images or were predicted, "weighted" over the
    images, both as scikit-learn does.

    Args:
      counts: the sums of `class_counts`.
      batches: the `batch_values` of each batch.
      count: how many examples were counted, at least 1.

    Returns:
      balanced_accuracy (the mean recall of the classes that have images), macro_precision,
      macro_recall, macro_f1, weighted_precision, weighted_recall, weighted_f1;
      ece, the expected calibration error (Naeini et al., AAAI 2015): |confidence - accuracy|,
      averaged over the bins by their numbers of examples;
      with two classes, if there are images of both: auc, the area under the ROC curve, and
      average_precision, both of the second class;
      per_class: {"images", "precision", "recall", "f1"}, lists by label.
    """
    images, predicted, hits = (
        np.asarray(counts[name], np.int64) for name in ("images", "predicted", "hits")
    )
    by_class = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, images),
        "f1": _ratio(2 * hits, images + predicted),
    }
    present = images + predicted > 0
    share = _ratio(images, np.full_like(images, images.sum()))
    gaps = np.sum([batch["gaps"] for batch in batches], axis=0, dtype=np.float64)
    return {
        "balanced_accuracy": _mean(by_class["recall"][images > 0]),
        **{f"macro_{name}": _mean(values[present]) for name, values in by_class.items()},
        **{f"weighted_{name}": float(values @ share) for name, values in by_class.items()},
        "ece": float(np.abs(gaps).sum() / count),
        **_of_two_classes(batches),
        metrics.PER_CLASS: {
            "images": images.tolist(),
            **{name: values.tolist() for name, values in by_class.items()},
        },
    }


def multi_label_measures(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """The measures of a whole evaluation with several labels per image.

    Each class is decided separately. Precision, recall and F1 are those at a probability of one
    half, as in `measures`.

    Args:
      batches: of each batch {"scores": logits [batch, classes], "labels": [batch, classes], 0 or 1,
        "mask": [batch], 1 for examples that count}; none where an evaluation has none of these.

    Returns:
      mean_average_precision, the mean of the average precisions (as scikit-learn has them) of the
      classes that have images, absent if none has; macro_precision, macro_recall, macro_f1;
      per_class: {"images", "average_precision", "precision", "recall", "f1"}, lists by label, with
      None for the average precision of a class without images.
    """
    if not batches[0]:
        return {}
    scores, labels, mask = (
        np.concatenate([batch[name] for batch in batches]) for name in ("scores", "labels", "mask")
    )
    scores, true = scores[mask > 0], labels[mask > 0] > 0.5
    from sklearn.metrics import average_precision_score  # takes a second to import

    images, predicted = true.sum(axis=0), (scores > 0).sum(axis=0)
    hits = (true & (scores > 0)).sum(axis=0)
    average: list[float | None] = []
    for label in range(true.shape[1]):
        score = scores[:, label]
        known = bool(images[label]) and not np.isnan(score).any()
        value = float("nan") if images[label] else None
        average.append(float(average_precision_score(true[:, label], score)) if known else value)
    by_class = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, images),
        "f1": _ratio(2 * hits, images + predicted),
    }
    defined = [value for value in average if value is not None]
    present = images + predicted > 0
    return {
        **({"mean_average_precision": float(np.mean(defined))} if defined else {}),
        **{f"macro_{name}": _mean(values[present]) for name, values in by_class.items()},
        metrics.PER_CLASS: {
            "images": images.tolist(),
            "average_precision": average,
            **{name: values.tolist() for name, values in by_class.items()},
        },
    }


def _ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """parts / wholes, 0 where there is nothing."""
    return parts / np.maximum(wholes, 1)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _of_two_classes(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The area under the ROC curve and the average precision; empty where they are not defined."""
    if "scores" not in batches[0]:
        return {}
    scores, labels, mask = (
        np.concatenate([batch[name] for batch in batches]) for name in ("scores", "labels", "mask")
    )
    scores, labels = scores[mask > 0], labels[mask > 0]
    if set(labels.tolist()) != {0, 1}:
        return {}
    if np.isnan(scores).any():  # as the loss of a network that has diverged
        return {"auc": float("nan"), "average_precision": float("nan")}
    # It takes a second to import, which other evaluations need not wait for.
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "auc": float(roc_auc_score(labels, scores)),
        "average_precision": float(average_precision_score(labels, scores)),
    }
