"""Everything that training changes, as one pytree: what a step takes, returns and checkpoints."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.nn import functional
from mbv3_jax.train import ema

Tree = Any  # nested dicts of arrays

# One seed a run; each use of randomness folds its own number into the key made of it.
INIT_STREAM, STEP_STREAM = 0, 1


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
        """The averaged variables where there are any, else the current ones."""
        return self.variables if self.ema is None else self.ema


def create(
    spec: NetSpec,
    tx: optax.GradientTransformation,
    *,
    seed: ArrayLike,
    with_ema: bool,
    initial: functional.Variables | None = None,
) -> TrainState:
    """The state before the first step; jittable, a pure function of its arguments.

    `initial` has variables to start from; stages that it does not have are fresh.
    """
    key = jax.random.fold_in(jax.random.key(seed), INIT_STREAM)
    variables = functional.init(spec, key)
    for kind, stages in (initial or {}).items():
        variables[kind] |= stages
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=tx.init(variables["params"]),
        ema=ema.init(variables) if with_ema else None,
    )
    # Arrays filled with a Python number are weakly typed, those that a step or a checkpoint gives
    # are not; left as they are, the step would be compiled for each mixture of the two.
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)
