"""Brief fine-tuning of parts of a network, all by one compiled step."""

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

_UNITS = ("steps", "epochs", "examples")
RATE_FACTOR = 0.1  # of the run's learning rate, where none is given


def tuning_config(
    config: ConfigDict, *, steps: int, rate: float | None, eval_split: str | None, seed: int
) -> ConfigDict:
    """The configuration of a run, made one of a brief fine-tuning at a constant learning rate.

    Args:
      config: of the run.
      steps: of a fine-tuning.
      rate: learning rate; None for a tenth of the run's.
      eval_split: `data.eval_split`; None leaves the run's.
      seed: of the order of the data and of all else that is random.
    """
    tree = config.to_dict()
    if rate is None:
        rate = RATE_FACTOR * tree["schedule"]["base_lr"]
    tree["schedule"] = dict.fromkeys(tree["schedule"]) | {"name": "constant", "base_lr": rate}
    tree["schedule"]["warmup_steps"] = 0
    for name in ("total", "eval_every", "checkpoint_every"):
        tree |= {f"{name}_{unit}": steps if unit == "steps" else None for unit in _UNITS}
    tree |= {"ema_decay": None, "seed": seed}
    if eval_split is not None:
        tree["data"]["eval_split"] = eval_split
    return ConfigDict(tree).lock()


class Tuner:
    """Fine-tunes and evaluates parts of the network of a run, by its data and its recipe.

    Args:
      run: its folder.
      model: what is in it.
      config: of `tuning_config`.
      interrupt: checked before each step and before each batch of an evaluation.

    Raises:
      UsageError: the configuration does not fit, or gives another network than the folder has.
    """

    def __init__(self, run: Path, model: Model, config: ConfigDict, interrupt: Interrupt):
        experiment = make_experiment(config, run)
        if experiment.spec.replace(name="") != model.spec.replace(name=""):
            raise UsageError(f"{run}: its configuration gives another network now than it holds")
        self.steps, self._interrupt = experiment.total_steps, interrupt
        # Running statistics are those of the last steps of a fine-tuning, however brief it is.
        decay = min(model.spec.bn_decay, max(0.0, 1 - 5 / self.steps))
        spec, tx = model.spec.replace(bn_decay=decay), _masked(experiment.tx)
        self._experiment = dataclasses.replace(experiment, spec=spec, tx=tx)
        self.split = experiment.eval_source.split

        def create(variables, ones, step):
            made = create_state(spec, tx, seed=0, with_ema=False, initial=variables)
            opt_state = made.opt_state._replace(mask=ones)
            return dataclasses.replace(made, step=step, opt_state=opt_state)

        placed = jax.tree.map(lambda x: x.sharding, self._experiment.abstract_state())
        self._create = jax.jit(create, out_shardings=placed)

    def tune(self, variables: Variables, kept: Kept, number: int) -> Variables:
        """Cuts the network down to the kept channels and trains what is left.

        The batches are those of the step `number` of NetAdapt, the same for all that it compares.

        Args:
          variables: of the whole network.
          kept: its channels that stay.
          number: of the step, from 0.

        Returns:
          Variables of the whole network on the device, zero outside of `kept` but for the running
          variances.

        Raises:
          RunError: the loss is not finite, or an example cannot be read.
          Preempted, KeyboardInterrupt: asked to stop.
        """
        ones = mask(self._experiment.spec, kept)
        cut = jax.tree.map(lambda x, one: np.asarray(x) * one, variables, ones)
        first, experiment = number * self.steps, self._experiment
        now = self._create(cut, ones["params"], np.int32(first))
        to_here = dataclasses.replace(experiment, total_steps=first + self.steps)
        batches, before = to_here.train_batches(first), None
        try:
            for batch in self._interrupt.between(batches):
                now, metrics = experiment.train_step(now, put_batch(batch, experiment.mesh))
                jax.block_until_ready(before)  # or batches would pile up
                before = metrics
        except BadExample as e:
            raise RunError(f"{e}") from e
        finally:
            batches.close()
        if not np.isfinite(metrics["loss"]):
            raise RunError(
                f"the loss of a fine-tuning is {metrics['loss']} after {self.steps} steps; choose "
                "a lower learning rate, and another folder"
            )
        return now.variables

    def top1(self, variables: Variables) -> float:
        """The fraction of right answers on all held-out examples."""
        try:
            return self._experiment.evaluate(variables, self._interrupt.between)["top1"]
        except BadExample as e:
            raise RunError(f"{e}") from e


class _Masked(NamedTuple):
    inner: Any
    mask: Any


def _masked(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with its updates multiplied by a mask that its state holds.

    Being data, another mask compiles nothing.
    """

    def init(params):
        return _Masked(tx.init(params), jax.tree.map(jnp.ones_like, params))

    def update(updates, masked, params=None):
        updates, inner = tx.update(updates, masked.inner, params)
        return jax.tree.map(jnp.multiply, updates, masked.mask), _Masked(inner, masked.mask)

    return optax.GradientTransformation(init, update)
