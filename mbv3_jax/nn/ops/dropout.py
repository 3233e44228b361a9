"""Dropout and drop-path, and the random keys that a network's layers draw from.

A training step has one key; `dropout_key` and `block_key` derive each layer's own from it. They
refuse a missing key: only training with neither dropout nor drop-path needs none.
"""

import jax
import jax.numpy as jnp


def dropout_key(key: jax.Array | None) -> jax.Array:
    """The key of the dropout before the logits, from the key of the training step."""
    return jax.random.fold_in(_required(key), 0)


def block_key(key: jax.Array | None, number: int) -> jax.Array:
    """The key of block `number` (from 1), from the key of the training step."""
    return jax.random.fold_in(_required(key), number)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes values of `x` with probability `rate` and scales the others up by 1 / (1 - rate).

    Raises:
      ValueError: there is no key.
    """
    keep = jax.random.bernoulli(_required(key), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def drop_path(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes whole examples of [batch, height, width, channels] with probability `rate`.

    The other examples are scaled up by 1 / (1 - rate). This is stochastic depth (Huang et al. 2016,
    arXiv:1603.09382), applied to each example.

    Raises:
      ValueError: there is no key.
    """
    keep = jax.random.bernoulli(_required(key), 1 - rate, (x.shape[0], 1, 1, 1))
    return jnp.where(keep, x / (1 - rate), 0)


def _required(key: jax.Array | None) -> jax.Array:
    if key is None:
        raise ValueError("key: training with dropout or drop_path needs a random key")
    return key
