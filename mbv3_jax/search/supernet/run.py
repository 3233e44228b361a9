"""A supernet's training in a folder: the real data and optimizer, checkpoints, resumption."""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch.spec import spec_to_json
from mbv3_jax.core.errors import Preempted, RunError, UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.data import loader
from mbv3_jax.run.checkpoint import Checkpoints, Position
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.metrics import ProgressBar
from mbv3_jax.run.processes import other_processes
from mbv3_jax.search.evaluators import SharedWeights
from mbv3_jax.search.objective import Costs, Reward
from mbv3_jax.search.space import Space
from mbv3_jax.search.supernet import network
from mbv3_jax.search.supernet.training import Controllers, Programs
from mbv3_jax.train.experiment import Experiment, make_experiment

# Held-out batches that the trained weights are evaluated on.
_BATCHES = 16


def train(
    config: ConfigDict,
    space: Space,
    costs: Costs,
    rewards: Mapping[str, Reward],
    folder: Path,
    console: Console,
    *,
    seed: int,
    points: int = 2,
    learning_rate: float | str | None = None,
) -> tuple[Controllers, SharedWeights]:
    """Trains shared weights and a controller for each reward, or goes on with it.

    The batch is split over all devices and processes; each process runs the same controllers on
    the same accuracies. The same command ends with the same bits after any interruption.

    Args:
      config: of a run, as `configs/found.py` gives it: data, batch size, optimizer, steps and
        checkpoints are taken from it. Its data should hold out a split that is made for choosing.
      space, costs, rewards: what is searched; see `Controllers`.
      folder: holds `largest.json` and `checkpoints/`.
      console: where progress goes.
      seed, points, learning_rate: of the controllers, see there.

    Raises:
      UsageError: the configuration is wrong, or the data has another number of classes.
      RunError: the loss is not finite, or a checkpoint cannot be written or read.
      Preempted, KeyboardInterrupt: after a signal, between two steps; saved in the first case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        spec = network.largest(space)
    except ValueError as e:
        raise UsageError(f"config: space: {e}") from e
    write_atomically(folder / "largest.json", spec_to_json(spec))
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.spec, config.seed, config.ema_decay = str(folder / "largest.json"), seed, None
    experiment = make_experiment(config.lock(), folder)
    if experiment.spec.num_classes != spec.num_classes:
        raise UsageError(
            f"config: space.num_classes: got {spec.num_classes}, but the data {config.data.name!r} "
            f"has {experiment.spec.num_classes} classes"
        )
    programs = Programs(
        space,
        experiment.tx,
        preprocess=(experiment.preprocess[0], experiment.eval_preprocess),
        mesh=experiment.mesh,
        compute=experiment.compute,
        label_smoothing=config.label_smoothing,
    )
    controllers = Controllers(
        space,
        costs,
        rewards,
        total_steps=experiment.total_steps,
        seed=seed,
        points=points,
        learning_rate=learning_rate,
        images=config.batch_size,
    )
    checkpoints = Checkpoints(folder)
    try:
        params = _Session(experiment, programs, controllers, checkpoints, console).run()
    finally:
        checkpoints.close()
    count = min(_BATCHES, len(experiment.eval_source) // config.batch_size)
    held = _held_out(experiment, 0, count)
    try:
        return controllers, SharedWeights(programs, params, held)
    finally:
        held.close()


def _held_out(experiment: Experiment, start: int, stop: int):
    """Batches of the held-out split, as large as those of training."""
    config = experiment.config
    return loader.train_batches(
        experiment.eval_source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start,
        stop_step=stop,
        num_workers=config.data.num_workers,
        num_threads=config.data.num_threads,
        prefetch_batches=config.data.prefetch_batches,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_error=config.data.on_error,
    )


@dataclasses.dataclass
class _Session:
    experiment: Experiment
    programs: Programs
    controllers: Controllers
    checkpoints: Checkpoints
    console: Console

    def run(self):
        """Trains to the end; returns the weights."""
        experiment, total = self.experiment, self.experiment.total_steps
        state, step = self._begin()
        if step == total:
            return state.variables["params"]
        batches = experiment.train_batches(step)
        held = _held_out(experiment, step, total)
        seed, size = experiment.config.seed, experiment.config.batch_size
        began = step, time.perf_counter()
        try:
            with (
                Interrupt(other_processes()) as interrupt,
                ProgressBar(self.console, total_steps=total, start_step=step) as bar,
            ):
                for number in interrupt.between(range(step + 1, total + 1)):
                    point = self.controllers.draw(number - 1)
                    state, metrics = self.programs.step(state, next(batches), point, seed)
                    params, now = state.variables["params"], next(held)
                    self.controllers.learn(
                        number - 1,
                        lambda p, params=params, now=now: (
                            self.programs.correct(params, now, p) / size
                        ),
                    )
                    step = number
                    if step % experiment.config.log_every_steps == 0 or step == total:
                        loss, top1 = self._finite(step, metrics)
                        rate = (step - began[0]) * size / (time.perf_counter() - began[1])
                        bar.update(step, loss=loss, top1=top1, rate=rate)
                        began = step, time.perf_counter()
                    if step % experiment.checkpoint_every == 0 or step == total:
                        self._finite(step, metrics)
                        self._save(state, step)
        except Preempted as e:
            self._save(state, step)
            raise Preempted(f"stopped on request; {self.checkpoints.advice()}") from e
        finally:
            batches.close()
            held.close()
        self.checkpoints.wait()
        return state.variables["params"]

    def _begin(self):
        """The state of the newest checkpoint, or a fresh one, and its step."""
        steps = self.checkpoints.steps()
        if not steps:
            return self.experiment.create_state(), 0
        abstract = self.experiment.abstract_state()
        state, position = self.checkpoints.restore(steps[-1], abstract)
        expected = self._position(steps[-1])
        if position != expected:
            raise RunError(
                f"the data is not what step {steps[-1]} of {self.checkpoints.folder} was trained "
                f"on: it has {position}, this command would go on with {expected}"
            )
        self.controllers.load(position.extra)
        self.console.print(f"shared weights: resuming from step {steps[-1]}")
        return state, steps[-1]

    def _position(self, step: int, extra: dict | None = None) -> Position:
        return Position(
            examples=step * self.experiment.config.batch_size,
            fingerprint=self.experiment.train_source.fingerprint,
            extra=extra,
        )

    def _save(self, state, step: int) -> None:
        position = self._position(step, self.controllers.state())
        self.checkpoints.save(state, position, self.experiment.spec, self.experiment.config)
        self.checkpoints.wait()

    def _finite(self, step: int, metrics) -> tuple[float, float]:
        loss, top1 = (float(x) for x in jax.device_get(metrics))
        if not math.isfinite(loss):
            raise RunError(
                f"the loss of step {step} of the shared weights is {loss}; "
                f"{self.checkpoints.advice()}. A lower schedule.base_lr may help"
            )
        return loss, top1
