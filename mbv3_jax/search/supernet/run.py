"""A supernet's training in a folder: the real data and optimizer, checkpoints, resumption."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.errors import Preempted, RunError, UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.data import loader
from mbv3_jax.data.source import BadExample, Source
from mbv3_jax.run.checkpoint import Checkpoints, Progress, newest_intact
from mbv3_jax.run.folder import hold_inputs
from mbv3_jax.run.interrupt import Interrupt, Interrupted
from mbv3_jax.run.metrics import ProgressBar
from mbv3_jax.run.processes import other_processes
from mbv3_jax.search.objective import Problem
from mbv3_jax.search.space import Point, Space
from mbv3_jax.search.supernet import network
from mbv3_jax.search.supernet.training import Controllers, Programs, SharedWeights
from mbv3_jax.train.experiment import Experiment, make_experiment, training_loss
from mbv3_jax.train.loop import on_data
from mbv3_jax.train.state import TrainState

# The number of held-out batches that the trained weights are evaluated on, at most.
_EVAL_BATCHES = 16
# What `config.shared.net` can change in the networks besides the layers of the largest one.
_CONSTANTS = ("dropout", "drop_path", "padding", "bn_eps")


def train_supernet(
    config: ConfigDict,
    problem: Problem,
    folder: Path,
    console: Console,
    *,
    seed: int,
    points: int = 2,
    learning_rate: float | str | None = None,
) -> tuple[Controllers, SharedWeights]:
    """Trains shared weights and a controller for each reward, or resumes their training.

    The batch is split over all devices and processes; every process runs the same controllers on
    the same accuracies. After any interruption the result has the same bits.

    Args:
      config: The configuration of a run, as `configs/found.py` returns it. Data, batch size,
        optimizer, steps and checkpoints are taken from it. Its data should hold out a split for
        choosing.
      problem: What the controllers search for.
      folder: Holds `largest.json`, `checkpoints/` and, with such a loss, `hierarchy.csv`.
      console: Where progress is printed.
      seed: Seed of the training and of the controllers.
      points, learning_rate: As for `Controllers`.

    Returns:
      The controllers, and the trained weights as an evaluator.

    Raises:
      UsageError: The configuration is wrong, the data has another number of classes, or its
        held-out split is smaller than a batch.
      RunError: The loss is not finite, an image cannot be read, or a checkpoint cannot be written
        or read.
      Preempted, KeyboardInterrupt: After a signal, between two steps, and saved.
    """
    if (teacher := config.get("teacher")) is not None:
        raise UsageError(
            f"config: shared.teacher: got {teacher!r}, but shared weights learn from labels alone; "
            "--config.shared.teacher=None clears it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    spec = _largest(problem.space)
    write_atomically(folder / "largest.json", spec_to_json(spec))
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.spec, config.seed = str(folder / "largest.json"), seed
        config.ema_decay = config.average_epochs = None
    experiment = make_experiment(config.lock(), folder)
    if experiment.spec.num_classes != spec.num_classes:
        raise UsageError(
            f"config: space.num_classes: got {spec.num_classes}, but the data {config.data.name!r} "
            f"has {experiment.spec.num_classes} classes"
        )
    if experiment.spec.in_channels != spec.in_channels:
        raise UsageError(
            f"config: shared.net.in_channels: got {experiment.spec.in_channels}, but the networks "
            f"of a search take {spec.in_channels}"
        )
    hierarchy = experiment.hierarchy.text if experiment.hierarchy else None
    hold_inputs(folder, (), hierarchy, "search in another folder")
    for line in on_data(experiment):
        console.print(line, soft_wrap=True)
    held_out, batch_size = experiment.data.held_out, config.batch_size
    if len(held_out) < batch_size:
        raise UsageError(
            f"config: shared.batch_size: got {batch_size}, but the held-out split "
            f"{held_out.split!r} of {held_out.name!r} has only {len(held_out)} images; the weights "
            "are evaluated on whole batches"
        )
    # The networks have the dropout of config.shared, as candidates have that of config.brief.
    space = problem.space.replace(**{f: getattr(experiment.spec, f) for f in _CONSTANTS})
    _largest(space)
    programs = Programs(
        space,
        experiment.tx,
        preprocess=(experiment.preprocess, experiment.eval_preprocess),
        mesh=experiment.mesh,
        compute=experiment.compute,
        loss=training_loss(experiment.plan, experiment.data, experiment.hierarchy),
    )
    controllers = Controllers(
        space,
        problem.costs,
        problem.rewards,
        total_steps=experiment.data.total_steps,
        seed=seed,
        points=points,
        learning_rate=learning_rate,
        images=batch_size,
    )
    count = min(_EVAL_BATCHES, len(held_out) // batch_size)
    try:
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            params = _Session(config, experiment, programs, controllers, checkpoints, console).run()
        with contextlib.closing(held_out_batches(experiment, 0, count)) as batches:
            return controllers, SharedWeights(programs, params, list(batches))
    except BadExample as e:
        raise RunError(f"{e}. Once that is fixed, run the same command again to resume") from e


def _largest(space: Space) -> NetSpec:
    try:
        return network.largest(space)
    except ValueError as e:
        raise UsageError(f"config: space: {e}") from e


class EvalViews(Source):
    """The evaluation views of a source, also where a loader asks for random training views."""

    def __init__(self, source: Source):
        self._source = source
        self.name, self.split = source.name, source.split
        self.resolution, self.class_names = source.resolution, source.class_names
        self.fingerprint, self.encoded = source.fingerprint, source.encoded

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, indices, views=None):
        return self._source.batch(indices)

    def load(self, indices, views=None):
        return self._source.load(indices)

    def where(self, index: int) -> str:
        return self._source.where(index)


def held_out_batches(experiment: Experiment, start: int, stop: int) -> loader.Batches:
    """Returns the batches `start` to `stop` of an endless, shuffled sequence of held-out images.

    They are as large as those of training, and show the evaluation view of each image.
    """
    source = EvalViews(experiment.data.held_out)
    return experiment.train_batches(start, stop_step=stop, source=source)


@dataclasses.dataclass
class _Session:
    """The training from the newest checkpoint to the end, in this process."""

    config: ConfigDict
    experiment: Experiment
    programs: Programs
    controllers: Controllers
    checkpoints: Checkpoints
    console: Console

    def run(self) -> network.Tree:
        """Trains to the end; returns the weights."""
        experiment, total = self.experiment, self.experiment.data.total_steps
        state, step = self._begin()
        if step == total:
            return state.variables["params"]
        batches = experiment.train_batches(step)
        held_out = held_out_batches(experiment, step, total)
        seed, size = experiment.plan.seed, experiment.plan.batch_size
        began = step, time.perf_counter()
        try:
            with (
                Interrupt(other_processes()) as interrupt,
                ProgressBar(self.console, total_steps=total, start_step=step) as bar,
            ):
                for number in interrupt.checked(range(step + 1, total + 1)):
                    point = self.controllers.draw(number - 1)
                    state, metrics = self.programs.step(state, next(batches), point, seed)
                    accuracy_of = self._accuracy_of(state.variables["params"], next(held_out))
                    self.controllers.learn(number - 1, accuracy_of)
                    step = number
                    if step % experiment.plan.log_every_steps == 0 or step == total:
                        loss, top1 = self._finite(step, metrics)
                        rate = (step - began[0]) * size / (time.perf_counter() - began[1])
                        bar.update(step, loss=loss, top1=top1, rate=rate)
                        began = step, time.perf_counter()
                    if step % experiment.data.checkpoint_every == 0 or step == total:
                        self._finite(step, metrics)
                        self._save(state, step)
        except Interrupted:
            self._save(state, step)
            raise
        except Preempted as e:
            self._save(state, step)
            raise Preempted(f"preempted; {self.checkpoints.advice()}") from e
        finally:
            batches.close()
            held_out.close()
        self.checkpoints.wait()
        return state.variables["params"]

    def _accuracy_of(
        self, params: network.Tree, batch: dict
    ) -> Callable[[Sequence[Point]], np.ndarray]:
        """The accuracies of points on a held-out batch by the weights now."""
        size = self.experiment.plan.batch_size
        return lambda points: self.programs.correct(params, batch, points) / size

    def _begin(self) -> tuple[TrainState, int]:
        """Returns the state of the newest checkpoint, or a fresh one, and its step."""
        step = newest_intact([self.checkpoints])
        if step is None:
            return self.experiment.create_state(), 0
        abstract = self.experiment.abstract_state()
        state, position = self.checkpoints.restore(step, abstract)
        position.check_data(self._position(step), f"step {step} of {self.checkpoints.folder}")
        assert position.extra is not None, "`_save` stores the controllers"
        self.controllers.load(position.extra)
        self.console.print(f"shared weights: resuming from step {step}")
        return state, step

    def _position(self, step: int, extra: dict | None = None) -> Progress:
        return Progress(
            examples=step * self.experiment.plan.batch_size,
            fingerprint=self.experiment.data.training.fingerprint,
            held_out=self.experiment.data.held_out.fingerprint,
            extra=extra,
        )

    def _save(self, state: TrainState, step: int) -> None:
        position = self._position(step, self.controllers.state())
        self.checkpoints.save(state, position, self.experiment.spec, self.config)
        self.checkpoints.wait()

    def _finite(self, step: int, metrics) -> tuple[float, float]:
        loss, top1 = (float(x) for x in jax.device_get(metrics))
        if not math.isfinite(loss):
            raise RunError(
                f"the loss of step {step} of the shared weights is {loss}; "
                f"{self.checkpoints.advice()}. A lower schedule.base_lr may help"
            )
        return loss, top1
