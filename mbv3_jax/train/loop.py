"""The training loop: steps, logs, evaluations, checkpoints, and a result at the end."""

import collections
import json
import math
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.data.source import BadExample
from mbv3_jax.train import predictions, run_folder
from mbv3_jax.train.checkpoint import Checkpoints, Position
from mbv3_jax.train.errors import RunError
from mbv3_jax.train.evaluate import evaluate
from mbv3_jax.train.experiment import Experiment, make_experiment
from mbv3_jax.train.interrupt import Interrupt
from mbv3_jax.train.logging import Metrics, ProgressBar, best_record
from mbv3_jax.train.state import TrainState
from mbv3_jax.train.step import put_batch

# Steps that may be under way before the host waits for the oldest: enough to keep the device
# busy, few enough that a non-finite loss is found soon and batches do not pile up.
_IN_FLIGHT = 2


def train(config: ConfigDict, workdir: Path, console: Console | None = None) -> dict:
    """Trains what `config` says in the folder `workdir`, from its newest checkpoint if it has one.

    Args:
      config: see `configs/common.py`.
      workdir: the run folder, see `run_folder.py`.
      console: where progress goes; None for standard error.

    Returns:
      The summary that is also in summary.json: steps, the evaluation (of the average and of the
      raw weights), seconds and images/s of this session.

    Raises:
      UsageError: the configuration is wrong, or the folder is not this run's; nothing changed.
      RunError: the loss is not finite, or the folder can be neither read nor written; earlier
        checkpoints are intact.
      KeyboardInterrupt: after Ctrl-C, between two steps or two batches of an evaluation.
    """
    console = console or Console(stderr=True, markup=False)
    experiment = make_experiment(config, workdir)
    names, init = experiment.train_source.class_names, experiment.start_record()
    run_folder.claim(workdir, config, experiment.spec, names, init)
    if summary := run_folder.read_summary(workdir):
        return summary
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, keep_best=config.keep_best)
    try:
        state = _start(experiment, checkpoints, console)
        with Interrupt() as interrupt:
            return _Loop(experiment, workdir, checkpoints, console, interrupt).run(state)
    except OSError as e:
        raise RunError(
            f"stopped in {workdir}: {e}. When that is mended, {checkpoints.advice()}"
        ) from e
    except BadExample as e:
        raise RunError(
            f"{e}. When that is mended, {checkpoints.advice()}; with --config.data.on_error=skip "
            "it leaves such examples out, and counts them"
        ) from e
    finally:
        checkpoints.close()


def _start(experiment: Experiment, checkpoints: Checkpoints, console: Console) -> TrainState:
    """The newest checkpoint of the run folder; fresh weights where there is none."""
    steps = checkpoints.steps()
    if not steps:
        state = experiment.create_state()
        if experiment.start:  # from here on, the folder that it starts from is not needed
            console.print(f"starting from {experiment.start_record()['message']}")
            checkpoints.save(state, _position(experiment, 0), experiment.spec, experiment.config)
        return state
    state, position = checkpoints.restore(steps[-1], experiment.abstract_state())
    expected = _position(experiment, steps[-1])
    if position != expected:
        raise RunError(
            f"the data is not what step {steps[-1]} was trained on: the checkpoint has "
            f"{position}, this run would go on with {expected}"
        )
    console.print(f"resuming from step {steps[-1]} in {checkpoints.folder.parent}")
    return state


def _position(experiment: Experiment, step: int) -> Position:
    return Position(
        examples=step * experiment.config.batch_size,
        fingerprint=experiment.train_source.fingerprint,
    )


class _Loop:
    """One session of a run: from a state to the end."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        checkpoints: Checkpoints,
        console: Console,
        interrupt: Interrupt,
    ):
        self.interrupt = interrupt
        self.experiment, self.config = experiment, experiment.config
        self.workdir, self.checkpoints, self.console = workdir, checkpoints, console
        self.last_saved: int | None = None
        self.skipped = 0

    def run(self, state: TrainState) -> dict:
        start, total = int(state.step), self.experiment.total_steps
        self.last_saved = start if start or self.experiment.start else None
        self.metrics = Metrics(self.workdir, resume_step=start)
        self.pending = collections.deque()  # (step, metrics on the device), oldest first
        self.recent: list[dict] = []  # metrics on the host since the last log
        began = time.perf_counter()
        self.logged_at = began
        try:
            with ProgressBar(self.console, total_steps=total, start_step=start) as bar:
                state = self._steps(state, start, bar)
                self._save(state, bar)
            self.checkpoints.wait()
            return self._finish(state, time.perf_counter() - began, total - start)
        finally:
            self.metrics.close()

    def _steps(self, state: TrainState, start: int, bar: ProgressBar) -> TrainState:
        experiment = self.experiment
        batches = experiment.train_batches(start, on_skip=bar.print)
        try:
            for step in self.interrupt.between(range(start + 1, experiment.total_steps + 1)):
                batch = put_batch(next(batches), experiment.mesh)
                state, metrics = experiment.train_step(state, batch)
                self.pending.append((step, metrics))
                self._collect(bar, leave=_IN_FLIGHT)
                is_last = step == experiment.total_steps
                if step % experiment.eval_every == 0 and not is_last:
                    self._evaluate(state, bar)
                if step % experiment.checkpoint_every == 0 and not is_last:
                    self._save(state, bar)
        finally:
            batches.close()
            self.skipped = sum(batches.skipped.values())
        return state

    def _collect(self, bar: ProgressBar, leave: int = 0) -> None:
        """Fetches the metrics of all but the newest `leave` steps, holds them to be finite, logs.

        A record is the mean of the steps since the one before. There is one wherever there may be
        a checkpoint, so that a run that resumes there has no steps to remember.
        """
        every = [self.config.log_every_steps, self.experiment.checkpoint_every]
        if self.config.keep_best:
            every.append(self.experiment.eval_every)
        while len(self.pending) > leave:
            step, metrics = self.pending.popleft()
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            for name in ("loss", "grad_norm", "update_norm", "param_norm"):
                if not math.isfinite(values[name]):
                    raise RunError(self._not_finite(step, name, values[name]))
            self.recent.append(values)
            if step == self.experiment.total_steps or any(step % n == 0 for n in every):
                self._log(step, bar)

    def _not_finite(self, step: int, name: str, value: float) -> str:
        saved = "no checkpoint was written before it"
        if self.last_saved is not None:
            self.checkpoints.wait()
            saved = f"the last good checkpoint is {self.checkpoints.folder / str(self.last_saved)}"
        return (
            f"the {name} of step {step} is {value}: training stopped; {saved}. A lower "
            "config.schedule.base_lr, a longer warm-up or config.optimizer.clip_norm may help"
        )

    def _log(self, step: int, bar: ProgressBar) -> None:
        now = time.perf_counter()
        rate = len(self.recent) * self.config.batch_size / (now - self.logged_at)
        self.logged_at = now
        mean = {k: sum(r[k] for r in self.recent) / len(self.recent) for k in self.recent[0]}
        self.recent.clear()
        self.metrics.write(step, "train", {**mean, "images_per_second": rate})
        bar.update(step, loss=mean["loss"], top1=mean["top1"], rate=rate)

    def _save(self, state: TrainState, bar: ProgressBar) -> None:
        self._collect(bar)  # never keep a state whose loss was not finite
        step = int(state.step)
        if step == self.last_saved:
            return
        position = _position(self.experiment, step)
        self.checkpoints.save(state, position, self.experiment.spec, self.config)
        self.last_saved = step

    def _evaluate(self, state: TrainState, bar: ProgressBar) -> None:
        self._collect(bar)
        began = time.perf_counter()
        values = self._evaluate_variables(state.for_evaluation)
        self.logged_at += time.perf_counter() - began  # no part of the training rate
        step = int(state.step)
        self.metrics.write(step, "eval", values)
        bar.print(f"step {step}: held-out top-1 {values['top1']:.2%}, loss {values['loss']:.4f}")
        if unreadable := values.get("unreadable"):
            bar.print(f"step {step}: {unreadable} of the held-out images could not be read")
        if self.config.keep_best and best_record(self.workdir)["step"] == step:
            self._save(state, bar)

    def _evaluate_variables(self, variables) -> dict[str, float]:
        return evaluate_variables(self.experiment, variables, between=self.interrupt.between)

    def _finish(self, state: TrainState, seconds: float, steps: int) -> dict:
        experiment = self.experiment
        averaged = state.ema is not None
        values = self._evaluate_variables(state.for_evaluation)
        self.metrics.write(int(state.step), "eval", values)
        summary = {
            "steps": int(state.step),
            "epochs": int(state.step) / experiment.steps_per_epoch,
            "weights": "ema" if averaged else "raw",
            "split": experiment.eval_source.split,
            "eval": values,
            "seconds": seconds,
            "images_per_second": steps * self.config.batch_size / seconds,
        }
        if self.skipped:
            summary["skipped"] = self.skipped
        if averaged:
            summary["eval_raw"] = self._evaluate_variables(state.variables)
        if self.config.keep_best:
            best = best_record(self.workdir)
            summary["best"] = {name: best[name] for name in ("step", "top1")}
        if self.config.save_predictions:
            between, step = self.interrupt.between, int(state.step)
            predictions.save(
                self.workdir, experiment, state.for_evaluation, step=step, between=between
            )
        run_folder.write_atomically(self.workdir / "summary.json", json.dumps(summary, indent=1))
        return summary


def evaluate_variables(experiment: Experiment, variables, between=iter) -> dict[str, float]:
    """Evaluates on every held-out example; see `evaluate.evaluate`. `between` wraps the batches."""
    batches = experiment.eval_batches()
    try:
        return evaluate(
            experiment.eval_step,
            variables,
            between(batches),
            mesh=experiment.mesh,
            expected=len(experiment.eval_source),
        )
    finally:
        batches.close()
