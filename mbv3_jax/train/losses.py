"""The training loss, and the counting of right answers."""

import jax
import jax.numpy as jnp

from mbv3_jax.core.checks import check_number


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Softmax cross-entropy of each example, computed in float32.

    Label smoothing mixes the label with the uniform distribution (Szegedy et al.,
    arXiv 1512.00567, section 7): with p = softmax(logits) and K classes,

        loss = -(1 - s) * log p[label] - s / K * sum_k log p[k].

    Args:
      logits: [N, K], any float type.
      labels: [N] class numbers, or [N, K] distributions whose rows sum to one.
      label_smoothing: s, from 0 to below 1.

    Returns:
      [N] float32. NaN where a class number is not in 0..K-1: a label that the network has no
      output for (1001 classes, say, against 1000) must stop the run, not train as no label.

    Raises:
      ValueError: on shapes or types other than these, or a smoothing out of range.
    """
    check_number("loss.label_smoothing", label_smoothing, at_least=0, below=1)
    _check(logits, labels)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if labels.ndim == 1:
        loss = -_at_label(log_p, labels)
    else:
        loss = -jnp.sum(labels.astype(jnp.float32) * log_p, axis=-1)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * jnp.mean(log_p, axis=-1)
    return loss


def correct(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether each label is among the k largest logits.

    Among equal logits the lower class number ranks first, as in `argmax`. So constant logits
    score 1/K on balanced labels: neither everything nor nothing. A row that holds a NaN is
    wrong, although `argmax` would return the position of the NaN, and so is a label out of range.

    Args:
      logits: [N, K], any float type.
      labels: [N] class numbers, or [N, K] distributions, of which the largest entry is the label.
      k: from 1 to K.

    Returns:
      [N] float32, 1.0 or 0.0.

    Raises:
      ValueError: on shapes or types other than these, or k out of range.
    """
    _check(logits, labels)
    classes = logits.shape[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"top_k: got {k!r}, expected 1 to the number of classes, {classes}")
    if labels.ndim == 2:
        labels = jnp.argmax(labels, axis=-1)
    own = _at_label(logits, labels)[:, None]
    lower = jnp.arange(classes) < labels[:, None]
    ahead = jnp.sum((logits > own) | ((logits == own) & lower), axis=-1)
    valid = ~jnp.isnan(own[:, 0]) & ~jnp.any(jnp.isnan(logits), axis=-1)
    return jnp.asarray((ahead < k) & valid, jnp.float32)


def _at_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    """values[n, labels[n]], NaN where labels[n] is out of range."""
    # JAX wraps negative indices like NumPy; moved past the end they are filled as the others.
    labels = jnp.where(labels < 0, values.shape[-1], labels)
    picked = jnp.take_along_axis(
        values, labels[:, None], axis=-1, mode="fill", fill_value=float("nan")
    )
    return picked[:, 0]


def _check(logits: jax.Array, labels: jax.Array) -> None:
    if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits: got {logits.dtype}{list(logits.shape)}, expected floats [N, K]")
    kind = jnp.integer if labels.ndim == 1 else jnp.floating
    if labels.shape != logits.shape[: labels.ndim] or not jnp.issubdtype(labels.dtype, kind):
        n, k = logits.shape
        raise ValueError(
            f"labels: got {labels.dtype}{list(labels.shape)}, expected integers [{n}] or floats "
            f"[{n}, {k}] for logits [{n}, {k}]"
        )
