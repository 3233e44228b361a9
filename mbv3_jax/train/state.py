"""Everything that training changes, as one pytree: what a step takes, returns and checkpoints.

The moving average covers parameters and BatchNorm statistics, both by the same functions with the
same decay: averaged weights with the latest statistics, or with statistics of another horizon,
would not be a network that was trained.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import check_number
from mbv3_jax.nn import functional
from mbv3_jax.train.hints import Hints

Tree = Any  # nested dicts of arrays

# A run has one seed; each use of randomness folds its own number into the key made from it;
# `schedules.py` has 2.
INIT_STREAM, STEP_STREAM, HINT_STREAM = 0, 1, 3

# Where the projections of hints stand among what an optimizer updates.
PROJECTIONS = "projections"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Training after `step` updates.

    step: int32 scalar, updates made so far.
    variables: {"params", "batch_stats"} of the network, float32.
    opt_state: the optimizer's own state.
    ema: the moving average of `variables`, or None where the run keeps none.
    """

    step: jax.Array
    variables: functional.Variables
    opt_state: Tree
    ema: functional.Variables | None

    @property
    def for_evaluation(self) -> functional.Variables:
        """The averaged variables if the run keeps an average, else the current ones."""
        return self.variables if self.ema is None else self.ema

    @property
    def trained(self) -> Tree:
        """What the optimizer updates."""
        return self.variables["params"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HintedState(TrainState):
    """The state of a run that also learns from hints.

    projections: see `hints.Hints.init`; they are no part of the network.
    """

    projections: Tree

    @property
    def trained(self) -> Tree:
        """What the optimizer updates."""
        return self.variables["params"] | {PROJECTIONS: self.projections}


def create_state(
    spec: NetSpec,
    tx: optax.GradientTransformation,
    *,
    seed: ArrayLike,
    with_ema: bool,
    initial: functional.Variables | None = None,
    hints: Hints | None = None,
) -> TrainState:
    """The state before the first step; jittable, a pure function of its arguments.

    Args:
      spec: the network.
      tx: the optimizer.
      seed: of the run.
      with_ema: whether the run keeps a moving average.
      initial: variables to start from; stages that are not in it are initialised.
      hints: the hints that the network also learns from; with them the state is a `HintedState`.
    """
    key = jax.random.fold_in(jax.random.key(seed), INIT_STREAM)
    variables = functional.init(spec, key)
    for kind, stages in (initial or {}).items():
        variables[kind] |= stages
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=None,
        ema=init_average(variables) if with_ema else None,
    )
    if hints:
        key = jax.random.fold_in(jax.random.key(seed), HINT_STREAM)
        state = HintedState(**vars(state), projections=hints.init(key))
    state = dataclasses.replace(state, opt_state=tx.init(state.trained))
    # Arrays filled with a Python number are weakly typed, those from a step or a checkpoint are
    # not; without the conversion the step would be compiled for each mixture of the two.
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)


def init_average(tree: Tree) -> Tree:
    """The average before the first update: a float32 copy of `tree`.

    A copy, never the same buffers: a step that donates its state may not donate one twice.
    """
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), tree)


def average_decay(decay: float, step: ArrayLike) -> jax.Array:
    """The decay to use at a step: min(decay, (1 + step) / (10 + step)).

    The ramp of TensorFlow's `ExponentialMovingAverage(decay, num_updates)`, which slim trained
    MobileNetV3 with. Without it an average at decay 0.9999 still holds a third of the random
    initialization after 10,000 steps.

    Args:
      decay: the decay to reach, from 0 to below 1.
      step: updates made before this one, 0 for the first; a scalar that may be traced.

    Returns:
      float32 scalar.

    Raises:
      ValueError: `decay` is out of range.
    """
    check_number("ema_decay", decay, at_least=0, below=1)
    t = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + t) / (10 + t))


def average_start(epochs: float | None, total_steps: int, steps_per_epoch: float) -> int | None:
    """The update after which the mean over the last epochs begins; None without such a mean.

    Raises:
      ValueError: the run is shorter than that.
    """
    if epochs is None:
        return None
    steps = max(1, round(epochs * steps_per_epoch))
    if steps > total_steps:
        raise ValueError(
            f"average_epochs: got {epochs}, but the run has only "
            f"{total_steps / steps_per_epoch:g} epochs"
        )
    return total_steps - steps


def mean_decay(start: int, step: ArrayLike) -> jax.Array:
    """The decay with which `update_average` is the mean of what came after `start` updates.

    Stochastic weight averaging (Izmailov et al., arXiv 1803.05407) after every update instead of
    every epoch, and of BatchNorm statistics as well, instead of a pass over the data. Until then it
    is 0, and the average is the latest.

    Args:
      start: from `average_start`.
      step: updates made before this one; a scalar that may be traced.

    Returns:
      float32 scalar.
    """
    count = jnp.maximum(jnp.asarray(step, jnp.float32) - start, 0)
    return count / (count + 1)


def update_average(ema_tree: Tree, new_tree: Tree, decay: ArrayLike) -> Tree:
    """decay * ema + (1 - decay) * new for every leaf, in float32.

    Args:
      ema_tree: the average so far: parameters, BatchNorm statistics, or a dict of both.
      new_tree: the values after this step's update, the same structure, any float type.
      decay: from `average_decay`.

    Returns:
      The new average, float32.
    """
    # Written as a correction, so that an average that has converged stays exactly where it is.
    rate = 1 - jnp.asarray(decay, jnp.float32)
    return jax.tree.map(
        lambda ema, new: jnp.asarray(ema + rate * (new.astype(jnp.float32) - ema), jnp.float32),
        ema_tree,
        new_tree,
    )
