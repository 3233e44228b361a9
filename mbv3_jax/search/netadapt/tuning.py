"""Brief fine-tuning of narrowed networks, all by one compiled step."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.data.source import BadExample
from mbv3_jax.nn.functional import Variables
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.model import Model
from mbv3_jax.search.netadapt.masks import Kept, mask
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.sharding import put_batch
from mbv3_jax.train.state import create_state

# The learning rate over the run's, unless a rate is given.
RATE_FACTOR = 0.1
_UNITS = ("steps", "epochs", "examples")


def tuning_config(
    config: ConfigDict, *, steps: int, rate: float | None, eval_split: str | None, seed: int
) -> ConfigDict:
    """Returns the configuration of a brief fine-tuning at a constant learning rate.

    Args:
      config: The configuration of the run that trained the network.
      steps: The number of steps of a fine-tuning.
      rate: The learning rate; None for a tenth of the run's.
      eval_split: `data.eval_split`; None for the run's.
      seed: Seed of the order of the data and of everything else that is random.
    """
    tree = config.to_dict()
    if rate is None:
        rate = RATE_FACTOR * tree["schedule"]["base_lr"]
    tree["schedule"] = dict.fromkeys(tree["schedule"]) | {"name": "constant", "base_lr": rate}
    tree["schedule"]["warmup_steps"] = 0
    for name in ("total", "eval_every", "checkpoint_every"):
        tree |= {f"{name}_{unit}": steps if unit == "steps" else None for unit in _UNITS}
    tree |= {"ema_decay": None, "average_epochs": None, "seed": seed}
    if distillation := tree.get("distillation"):  # absent in older folders
        # Every fine-tuning would have to train the projections from the start.
        distillation |= {"features": None, "features_weight": None}
    if eval_split is not None:
        tree["data"]["eval_split"] = eval_split
    return ConfigDict(tree).lock()


class Tuner:
    """Fine-tunes and evaluates narrowed networks with the data and the recipe of a run.

    Args:
      run: The folder of the run.
      model: The network in it.
      config: The result of `tuning_config`.
      interrupt: Checked before each step and before each batch of an evaluation.

    Raises:
      UsageError: The configuration does not fit, or describes another network than `model`.
    """

    def __init__(self, run: Path, model: Model, config: ConfigDict, interrupt: Interrupt):
        experiment = make_experiment(config, run)
        if experiment.spec.replace(name="") != model.spec.replace(name=""):
            raise UsageError(
                f"{run}: its configuration now describes another network than the one it holds"
            )
        self.steps, self._interrupt = experiment.data.total_steps, interrupt
        self.teachers = experiment.teaching.record if experiment.teaching else []
        self.hierarchy = experiment.hierarchy.text if experiment.hierarchy else None
        # The running statistics must follow even a brief fine-tuning.
        decay = min(model.spec.bn_decay, max(0.0, 1 - 5 / self.steps))
        spec, tx = model.spec.replace(bn_decay=decay), _masked(experiment.tx)
        self._experiment = experiment.with_network(spec, tx)
        self.split = experiment.data.held_out.split

        def create(variables, ones, step):
            made = create_state(spec, tx, seed=0, with_ema=False, initial=variables)
            opt_state = made.opt_state._replace(mask=ones)
            return dataclasses.replace(made, step=step, opt_state=opt_state)

        placed = jax.tree.map(lambda x: x.sharding, self._experiment.abstract_state())
        self._create = jax.jit(create, out_shardings=placed)

    def tune(self, variables: Variables, kept: Kept, number: int) -> Variables:
        """Cuts the network down to the kept channels and trains what is left.

        All proposals of a NetAdapt step see the same batches.

        Args:
          variables: The variables of the whole network.
          kept: The channels that stay.
          number: The number of the NetAdapt step, from 0.

        Returns:
          Variables of the whole network on the device, zero outside of `kept` except for the
          running variances.

        Raises:
          RunError: The loss is not finite, or an example cannot be read.
          Preempted, KeyboardInterrupt: After a signal.
        """
        ones = mask(self._experiment.spec, kept)
        cut = jax.tree.map(lambda x, one: np.asarray(x) * one, variables, ones)
        first, experiment = number * self.steps, self._experiment
        state = self._create(cut, ones["params"], np.int32(first))
        batches = experiment.train_batches(first, stop_step=first + self.steps)
        previous = None
        try:
            for batch in self._interrupt.checked(batches):
                state, metrics = experiment.train_step(state, put_batch(batch, experiment.mesh))
                jax.block_until_ready(previous)  # or batches would pile up
                previous = metrics
        except BadExample as e:
            raise RunError(f"{e}") from e
        finally:
            batches.close()
        if not np.isfinite(metrics["loss"]):
            raise RunError(
                f"the loss of a fine-tuning is {metrics['loss']} after {self.steps} steps; choose "
                "a lower learning rate, and another folder"
            )
        return state.variables

    def top1(self, variables: Variables) -> float:
        """Returns the fraction of correct predictions on all held-out examples."""
        try:
            return self._experiment.evaluate(variables, self._interrupt.checked)["top1"]
        except BadExample as e:
            raise RunError(f"{e}") from e


class _Masked(NamedTuple):
    inner: Any
    mask: Any


def _masked(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the optimizer with its updates multiplied by a mask in its state.

    The mask is data, so that another mask needs no compilation.
    """

    def init(params):
        return _Masked(tx.init(params), jax.tree.map(jnp.ones_like, params))

    def update(updates, masked, params=None):
        updates, inner = tx.update(updates, masked.inner, params)
        return jax.tree.map(jnp.multiply, updates, masked.mask), _Masked(inner, masked.mask)

    return optax.GradientTransformation(init, update)
