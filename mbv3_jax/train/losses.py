"""Training losses by name, class weights, and counting correct predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mbv3_jax.core.checks import check_number, choose
from mbv3_jax.core.packages import LazyModule
from mbv3_jax.core.registry import Registry, option_names
from mbv3_jax.train.hierarchy import Hierarchy, Level

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:  # configs/common.py reads the options of the losses, without waiting for JAX
    jax, jnp = LazyModule("jax"), LazyModule("jax.numpy")

# (logits, labels) -> the loss of each example; a factory gets both positionally, as below.
Loss = Callable[["jax.Array", "jax.Array"], "jax.Array"]

# A loss is a function of logits [batch, classes] and labels, [batch] class numbers or, after mixup,
# [batch, classes] distributions; it returns float32 [batch]. Its options are keyword-only:
#
#   @LOSSES.register("poly")
#   def poly(logits, labels, *, epsilon: float = 1.0): ...
LOSSES: Registry[Callable[..., jax.Array]] = Registry("loss")


def make_loss(
    name: str,
    *,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
    **options: Any,
) -> Loss:
    """The loss function that a configuration asks for.

    Args:
      name: a key of `LOSSES`.
      label_smoothing: of a loss that has this option; 0 counts as not given.
      class_weights: from `class_weights`, [classes]: the loss of an example is multiplied by the
        weight of its label; after mixup by the mixture of the weights. None for none.
      **options: of the loss; None counts as not given.

    Returns:
      loss(logits, labels) -> float32 [batch].

    Raises:
      ValueError: the name is unknown, or the loss does not have an option.
    """
    choose("loss.name", name, LOSSES)
    if label_smoothing and "label_smoothing" not in option_names(LOSSES[name]):
        raise ValueError(
            f"label_smoothing: got {label_smoothing}, but loss.name={name} has none; "
            "--config.label_smoothing=0 clears it"
        )
    loss = LOSSES.bind(name, options | {"label_smoothing": label_smoothing or None})
    if class_weights is None:
        return loss

    def weighted(logits: jax.Array, labels: jax.Array) -> jax.Array:
        weights = jnp.asarray(class_weights, jnp.float32)
        of_examples = weights[labels] if labels.ndim == 1 else labels @ weights
        return of_examples * loss(logits, labels)

    return weighted


def class_weights(
    given: str | Sequence[float] | None, *, num_classes: int, counts: np.ndarray | None
) -> np.ndarray | None:
    """The weight of each class in the training loss.

    "balanced" is n / (classes * count), as in scikit-learn: each class that has images then has the
    same share of the loss, and the mean weight of an example is 1, so that learning rates keep
    their meaning. A class without training images, whose weight nothing uses, gets 0.

    Args:
      given: "balanced", the weights by label, or None.
      num_classes: of the data.
      counts: the training images of each class, [classes]; None if they are not known.

    Returns:
      float32 [classes]; None if none are given.

    Raises:
      ValueError: `given` is something else, or "balanced" without known counts.
    """
    field = "loss.class_weights"
    if given is None:
        return None
    if isinstance(given, str):
        if given != "balanced":
            raise ValueError(
                f"{field}: got {given!r}, expected 'balanced' or {num_classes} numbers"
            )
        if counts is None:
            raise ValueError(
                f"{field}: got 'balanced', but this data does not know how many images each class "
                f"has before they are read; expected {num_classes} numbers"
            )
        present = counts > 0
        weights = counts.sum() / (present.sum() * np.maximum(counts, 1))
        return np.where(present, weights, 0).astype(np.float32)
    if not isinstance(given, tuple | list) or len(given) != num_classes:
        expected = f"'balanced' or {num_classes} numbers, one for each class"
        raise ValueError(f"{field}: got {given!r}, expected {expected}")
    checked = [check_number(f"{field}[{i}]", w, at_least=0) for i, w in enumerate(given)]
    if not any(checked):
        raise ValueError(f"{field}: got only zeros, with which nothing is learnt")
    return np.array(checked, np.float32)


@LOSSES.register("cross_entropy")
def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Softmax cross-entropy of each example, computed in float32.

    Label smoothing mixes the label with the uniform distribution (Szegedy et al.,
    arXiv 1512.00567, section 7): with p = softmax(logits) and K classes,

        loss = -(1 - s) * log p[label] - s / K * sum_k log p[k].

    Args:
      logits: [batch, classes], any float type.
      labels: [batch] class numbers, or [batch, classes] distributions whose rows sum to one.
      label_smoothing: s, from 0 to below 1.

    Returns:
      float32 [batch]. NaN for a class number out of range: a label that the network has no output
      for (1001 classes, say, against 1000) must stop the run, not train as no label.

    Raises:
      ValueError: the shapes or types are others, or the smoothing is out of range.
    """
    check_number("label_smoothing", label_smoothing, at_least=0, below=1)
    _check_shapes(logits, labels)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if labels.ndim == 1:
        loss = -_at_label(log_p, labels)
    else:
        loss = -jnp.sum(labels.astype(jnp.float32) * log_p, axis=-1)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * jnp.mean(log_p, axis=-1)
    return loss


@LOSSES.register("bce")
def bce(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Binary cross-entropy with sigmoids, averaged over the classes, in float32.

    For several labels per image: each class is decided separately, with p = sigmoid(logit).
    Smoothing mixes each label with 1/2.

    Args:
      logits: [batch, classes], any float type.
      labels: [batch, classes], from 0 to 1.
      label_smoothing: s, from 0 to below 1.

    Returns:
      float32 [batch].

    Raises:
      ValueError: the shapes or types are others, or the smoothing is out of range.
    """
    check_number("label_smoothing", label_smoothing, at_least=0, below=1)
    _check_shapes(logits, labels)
    if labels.ndim == 1:
        raise ValueError("loss.name: got 'bce', which is for several labels per image")
    logits = logits.astype(jnp.float32)
    labels = (1 - label_smoothing) * labels.astype(jnp.float32) + label_smoothing / 2
    return jnp.mean(jax.nn.softplus(logits) - labels * logits, axis=-1)


@LOSSES.register("binary_cross_entropy")
def binary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
) -> jax.Array:
    """Each class decided separately (Wightman et al., arXiv 2110.00476), in float32.

    For one label per image, which mixup may mix with another; several have `bce`. With
    p = sigmoid(logits) and targets t, which are the labels smoothed as by `cross_entropy`,

        loss = -mean_k (t[k] * log p[k] + (1 - t[k]) * log(1 - p[k])),

    the mean over classes, as in timm, so the loss and its gradients are small.

    Args:
      logits: [batch, classes], any float type.
      labels: [batch] class numbers, or [batch, classes] distributions.
      label_smoothing: from 0 to below 1.
      target_threshold: targets above it count as 1 and the others as 0, so that a mixed image has
        both of its classes; None leaves them as they are.

    Returns:
      float32 [batch]. NaN for a class number out of range, as `cross_entropy`.

    Raises:
      ValueError: the shapes or types are others, or an option is out of range.
    """
    check_number("label_smoothing", label_smoothing, at_least=0, below=1)
    if target_threshold is not None:
        check_number("loss.target_threshold", target_threshold, at_least=0, below=1)
    _check_shapes(logits, labels)
    logits, classes = logits.astype(jnp.float32), logits.shape[-1]
    valid = jnp.ones(len(logits), bool)
    if labels.ndim == 1:
        valid = (labels >= 0) & (labels < classes)
        labels = jax.nn.one_hot(labels, classes)
    targets = (1 - label_smoothing) * labels.astype(jnp.float32) + label_smoothing / classes
    if target_threshold is not None:
        targets = (targets > target_threshold).astype(jnp.float32)
    no = jax.nn.log_sigmoid(-logits)
    loss = -jnp.mean(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * no, axis=-1)
    return jnp.where(valid, loss, jnp.nan)


@LOSSES.register("focal")
def focal(logits: jax.Array, labels: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """Focal loss of each example (Lin et al., arXiv 1708.02002, section 3.2), in float32.

    With p = softmax(logits), loss = -(1 - p[label])**gamma * log p[label]: examples that are
    already classified well count less. The paper's alpha, a factor for each class, is
    `class_weights` here.

    Args:
      logits: [batch, classes], any float type.
      labels: [batch] class numbers, or [batch, classes] distributions, over which the loss of each
        class is averaged.
      gamma: 0 is cross-entropy; the paper found 2 to be best among 0 to 5.

    Returns:
      float32 [batch]. NaN for a class number out of range, as `cross_entropy`.

    Raises:
      ValueError: the shapes or types are others, or gamma is negative.
    """
    check_number("loss.gamma", gamma, at_least=0)
    _check_shapes(logits, labels)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if labels.ndim == 1:
        return _focal(_at_label(log_p, labels), gamma)
    return jnp.sum(labels.astype(jnp.float32) * _focal(log_p, gamma), axis=-1)


def _focal(log_p: jax.Array, gamma: float) -> jax.Array:
    # expm1 keeps the digits of a small 1 - p, which is never quite 0: a root has no slope there.
    not_p = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(jnp.float32).tiny)
    return -(not_p**gamma) * log_p


@LOSSES.register("semantic_softmax")
def semantic_softmax(
    logits: jax.Array,
    labels: jax.Array,
    *,
    hierarchy: str | Hierarchy,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """A softmax over the classes of each level of a hierarchy (Ridnik et al., arXiv 2104.10972).

    The loss is the sum over levels of weight * cross-entropy between the logits of the level's
    classes and the one of them that the label is or lies below, smoothed over these classes; a
    level below that of the label counts nothing. Weights and their source are in `hierarchy.py`.
    The mean over a batch is what Alibaba-MIIL/ImageNet21K computes
    (src_files/semantic/semantic_loss.py), whose code leaves out the deepest level.

    Args:
      logits: [batch, classes], any float type.
      labels: [batch] class numbers, or [batch, classes] distributions, over which the loss of each
        class is averaged.
      hierarchy: of the configuration, the path of a file, which `experiment.training_loss` reads;
        here what it holds.
      label_smoothing: s, from 0 to below 1, over the classes of a level.

    Returns:
      float32 [batch]. NaN for a class number out of range, as `cross_entropy`.

    Raises:
      ValueError: the shapes or types are others, or the smoothing is out of range.
    """
    check_number("label_smoothing", label_smoothing, at_least=0, below=1)
    _check_shapes(logits, labels)
    if isinstance(hierarchy, str) or hierarchy.num_classes != logits.shape[-1]:
        got = hierarchy if isinstance(hierarchy, str) else f"{hierarchy.num_classes} classes"
        raise ValueError(f"loss.hierarchy: got {got}, expected one of {logits.shape[-1]} classes")
    loss = jnp.zeros(len(logits), jnp.float32)
    for level in hierarchy.levels:
        log_p = jax.nn.log_softmax(logits[:, level.classes].astype(jnp.float32), axis=-1)
        targets = _at_level(labels, level)
        share = jnp.sum(targets, axis=-1)  # of the label that is on this level or below it
        of_level = (1 - label_smoothing) * jnp.sum(targets * log_p, axis=-1)
        of_level += label_smoothing * share * jnp.mean(log_p, axis=-1)
        loss -= level.weight * of_level
    if labels.ndim == 1:
        loss = jnp.where((labels >= 0) & (labels < logits.shape[-1]), loss, jnp.nan)
    return loss


def _at_level(labels: jax.Array, level: Level) -> jax.Array:
    """Labels, [batch] or [batch, all classes], as float32 [batch, classes of the level]."""
    count = len(level.classes)
    if labels.ndim == 1:
        return jax.nn.one_hot(jnp.asarray(level.position)[labels], count)  # zeros of -1
    rows = np.where(level.position < 0, count, level.position)
    summed = jax.ops.segment_sum(labels.astype(jnp.float32).T, rows, num_segments=count + 1)
    return summed[:count].T


def semantic_hits(
    logits: jax.Array, labels: jax.Array, hierarchy: Hierarchy
) -> tuple[jax.Array, jax.Array]:
    """On how many levels each example is right, and on how many its label has a class.

    An example is right on a level if the largest logit of the level's classes is that of the one
    that the label is or lies below. As `correct` has it, the lower of equal ones counts, and a NaN
    among the logits makes it wrong.

    Args:
      logits: [batch, classes], any float type.
      labels: [batch] class numbers.
      hierarchy: of these classes.

    Returns:
      float32 [batch] both.
    """
    hits = levels = jnp.zeros(len(logits), jnp.float32)
    valid = ~jnp.any(jnp.isnan(logits), axis=-1)
    for level in hierarchy.levels:
        wanted = jnp.asarray(level.position)[labels]
        found = jnp.argmax(logits[:, level.classes], axis=-1)
        hits += (found == wanted) & valid
        levels += wanted >= 0
    return hits, levels


def correct(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether each label is among the k largest logits.

    Among equal logits the lower class number ranks first, as in `argmax`. So constant logits score
    1/K on balanced labels, neither 1 nor 0. A row that holds a NaN counts as wrong, although
    `argmax` would return the position of the NaN, and so does a label out of range.

    Args:
      logits: [batch, classes], any float type.
      labels: [batch] class numbers, or [batch, classes] distributions, whose largest entry is the
        label.
      k: from 1 to the number of classes.

    Returns:
      float32 [batch], 1.0 or 0.0.

    Raises:
      ValueError: the shapes or types are others, or k is out of range.
    """
    _check_shapes(logits, labels)
    classes = logits.shape[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"top_k: got {k!r}, expected 1 to the number of classes, {classes}")
    if labels.ndim == 2:
        labels = jnp.argmax(labels, axis=-1)
    logit = _at_label(logits, labels)[:, None]
    lower = jnp.arange(classes) < labels[:, None]
    ahead = jnp.sum((logits > logit) | ((logits == logit) & lower), axis=-1)
    valid = ~jnp.isnan(logit[:, 0]) & ~jnp.any(jnp.isnan(logits), axis=-1)
    return jnp.asarray((ahead < k) & valid, jnp.float32)


def label_accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The fraction of the classes that are decided correctly at a probability of one half.

    Args:
      logits: [batch, classes], of sigmoids.
      labels: [batch, classes], from 0 to 1.

    Returns:
      float32 [batch].
    """
    return jnp.mean((logits > 0) == (labels >= 0.5), axis=-1, dtype=jnp.float32)


def class_numbers(labels: jax.Array) -> jax.Array:
    """The label of each example, int32 [batch]: of distributions, the most probable class."""
    return labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1).astype(jnp.int32)


def _at_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    """values[n, labels[n]], NaN where labels[n] is out of range."""
    # JAX wraps negative indices as NumPy does; moved past the end they are filled like the others.
    labels = jnp.where(labels < 0, values.shape[-1], labels)
    picked = jnp.take_along_axis(
        values, labels[:, None], axis=-1, mode="fill", fill_value=float("nan")
    )
    return picked[:, 0]


def _check_shapes(logits: jax.Array, labels: jax.Array) -> None:
    if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits: got {logits.dtype}{list(logits.shape)}, expected floats [N, K]")
    kind = jnp.integer if labels.ndim == 1 else jnp.floating
    if labels.shape != logits.shape[: labels.ndim] or not jnp.issubdtype(labels.dtype, kind):
        n, k = logits.shape
        raise ValueError(
            f"labels: got {labels.dtype}{list(labels.shape)}, expected integers [{n}] or floats "
            f"[{n}, {k}] for logits [{n}, {k}]"
        )
