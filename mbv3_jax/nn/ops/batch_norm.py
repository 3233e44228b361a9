"""BatchNorm with float32 statistics, together with the nonlinearity that follows it.

The gradients are written out. They keep only the layer's input; the normalised values are computed
again, which costs less than storing and loading them. Each statistic is a separate plain sum: XLA
on CPU hands plain sums to a library, which runs at the speed of memory, but compiles a reduction of
several operands to scalar code.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

_PIXELS = (0, 1, 2)


def batch_norm_train(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    eps: float,
    groups: int = 1,
    act: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the statistics of the batch, then applies `act`.

    Args:
      x: [N, H, W, C].
      scale: [C] float32.
      bias: [C] float32.
      eps: added to the variance.
      groups: the batch is split into this many contiguous groups, each normalised by its own
        statistics (1: the whole batch, across devices too).
      act: elementwise and differentiable, applied in float32. It must be the same object at every
        call: a new lambda would be compiled again.

    Returns:
      y [N, H, W, C] in the type of `x`, and the float32 mean and biased variance [C], averaged
      over the groups.

    Raises:
      ValueError: `groups` does not divide N.
    """
    n = x.shape[0]
    if groups < 1 or n % groups:
        raise ValueError(f"bn_groups: got {groups} for a batch of {n}, expected a divisor")
    if groups == 1:
        return _normalise(x, scale, bias, eps, act)
    y, mean, var = jax.vmap(lambda group: _normalise(group, scale, bias, eps, act))(
        x.reshape(groups, n // groups, *x.shape[1:])
    )
    return y.reshape(x.shape), jnp.mean(mean, axis=0), jnp.mean(var, axis=0)


def batch_norm_infer(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, *, eps: float
) -> jax.Array:
    """Normalises [N, H, W, C] by running statistics; every other argument is [C] float32."""
    factor, shift = batch_norm_affine(scale, bias, mean, var, eps=eps)
    return (x.astype(jnp.float32) * factor + shift).astype(x.dtype)


def batch_norm_affine(
    scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, *, eps: float
) -> tuple[jax.Array, jax.Array]:
    """The factor and the shift that `batch_norm_infer` applies, [C] float32 each."""
    factor = scale * jax.lax.rsqrt(var + eps)
    return factor, bias - mean * factor


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(x, scale, bias, eps, act):
    return _normalise_forward(x, scale, bias, eps, act)[0]


def _normalise_forward(x, scale, bias, eps, act):
    x32 = x.astype(jnp.float32)
    # Two passes: the difference of moments loses the variance where the mean is large.
    mean = jnp.mean(x32, axis=_PIXELS)
    var = jnp.mean(jnp.square(x32 - mean), axis=_PIXELS)
    factor = scale * jax.lax.rsqrt(var + eps)
    y = x32 * factor + (bias - mean * factor)
    y = act(y) if act else y
    return (y.astype(x.dtype), mean, var), (x, scale, bias, mean, var)


def _normalise_backward(eps, act, saved, cotangents):
    x, scale, bias, mean, var = saved
    dy, dmean, dvar = cotangents
    x32, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    inverse = jax.lax.rsqrt(var + eps)
    factor = scale * inverse
    if act:
        _, pull = jax.vjp(act, x32 * factor + (bias - mean * factor))
        (dy,) = pull(dy)
    pixels = x.size // x.shape[-1]
    dbias = jnp.sum(dy, axis=_PIXELS)
    dscale = (jnp.sum(dy * x32, axis=_PIXELS) - mean * dbias) * inverse
    # dx = factor * (dy - mean(dy) - normalised * mean(dy * normalised)), plus the gradients of the
    # returned statistics, collected into one multiple of x and one constant for each channel.
    slope = (2 * dvar - factor * inverse * dscale) / pixels
    constant = (dmean - factor * dbias) / pixels - slope * mean
    dx = dy * factor + x32 * slope + constant
    return dx.astype(x.dtype), dscale, dbias


_normalise.defvjp(_normalise_forward, _normalise_backward)
