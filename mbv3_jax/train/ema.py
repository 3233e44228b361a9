"""Exponential moving average of parameters and BatchNorm statistics.

Both trees go through the same functions with the same decay: averaged weights with the latest
statistics, or with statistics of another horizon, are not a network that anybody trained.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mbv3_jax.train.options import check_number

Tree = Any  # nested dicts of arrays


def init(tree: Tree) -> Tree:
    """The average before the first update: a float32 copy of `tree`.

    A copy, never the same buffers: a step that donates its state may not donate one twice.
    """
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), tree)


def decay_at(decay: float, step: ArrayLike) -> jax.Array:
    """The decay to use at a step: min(decay, (1 + step) / (10 + step)).

    The ramp of TensorFlow's `ExponentialMovingAverage(decay, num_updates)`, which slim trained
    MobileNetV3 with. Without it an average at decay 0.9999 still holds a third of the random
    initialization after 10,000 steps.

    Args:
      decay: the decay to reach, from 0 to below 1.
      step: updates made before this one: 0 at the first. Scalar, may be traced.

    Returns:
      float32 scalar.

    Raises:
      ValueError: if `decay` is out of range.
    """
    check_number("ema.decay", decay, at_least=0, below=1)
    t = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + t) / (10 + t))


def update(ema_tree: Tree, new_tree: Tree, decay: ArrayLike) -> Tree:
    """decay * ema + (1 - decay) * new for every leaf, in float32.

    Args:
      ema_tree: the average so far: parameters, BatchNorm statistics, or a dict of both.
      new_tree: the values after this step's update, the same structure, any float type.
      decay: from `decay_at`.

    Returns:
      The new average, float32.
    """
    # Written as a correction, so that an average that has arrived stays exactly where it is.
    rate = 1 - jnp.asarray(decay, jnp.float32)
    return jax.tree.map(
        lambda ema, new: jnp.asarray(ema + rate * (new.astype(jnp.float32) - ema), jnp.float32),
        ema_tree,
        new_tree,
    )
