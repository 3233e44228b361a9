"""BatchNorm with float32 statistics."""

import jax
import jax.numpy as jnp


def batch_norm_train(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float, groups: int = 1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the statistics of the batch.

    Args:
      x: [N, H, W, C].
      scale: [C] float32.
      bias: [C] float32.
      eps: added to the variance.
      groups: the batch is split into this many contiguous groups, each normalised by its own
        statistics (1: the whole batch, across devices too).

    Returns:
      y [N, H, W, C] in the type of `x`, and the float32 mean and biased variance [C], averaged
      over the groups.

    Raises:
      ValueError: `groups` does not divide N.
    """
    n = x.shape[0]
    if groups < 1 or n % groups:
        raise ValueError(f"bn_groups: got {groups} for a batch of {n}, expected a divisor")
    grouped = x.astype(jnp.float32).reshape(groups, n // groups, *x.shape[1:])
    mean = jnp.mean(grouped, axis=(1, 2, 3))
    var = jnp.mean(jnp.square(grouped), axis=(1, 2, 3)) - jnp.square(mean)
    var = jnp.maximum(var, 0.0)
    factor = scale * jax.lax.rsqrt(var + eps)
    shift = bias - mean * factor
    y = grouped * factor[:, None, None, None] + shift[:, None, None, None]
    return y.astype(x.dtype).reshape(x.shape), jnp.mean(mean, axis=0), jnp.mean(var, axis=0)


def batch_norm_infer(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, *, eps: float
) -> jax.Array:
    """Normalises [N, H, W, C] by running statistics; every other argument is [C] float32."""
    factor = scale * jax.lax.rsqrt(var + eps)
    return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(x.dtype)
