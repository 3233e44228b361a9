"""What one run writes into its folder as it goes: metrics, checkpoints, evaluations, the result."""

import json
import math
import time
from pathlib import Path

from mbv3_jax.core.errors import RunError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.run.checkpoint import Checkpoints, Position
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.metrics import Metrics, best_record
from mbv3_jax.run.processes import from_first, is_first
from mbv3_jax.train.experiment import Experiment
from mbv3_jax.train.predictions import save_predictions
from mbv3_jax.train.state import TrainState

_HELD_FINITE = ("loss", "grad_norm", "update_norm", "param_norm")


class Record:
    """One session of one run, from the step that `resume` finds.

    Args:
      experiment: what is trained.
      workdir: the run folder, claimed.
      interrupt: checked before each batch of an evaluation.
    """

    def __init__(self, experiment: Experiment, workdir: Path, interrupt: Interrupt):
        self.experiment, self.workdir, self.interrupt = experiment, workdir, interrupt
        self.config = config = experiment.config
        self.checkpoints = Checkpoints(
            workdir, keep=config.keep_checkpoints, keep_best=config.keep_best
        )
        self.last_saved: int | None = None
        self.evaluation_due = False
        self._recent: list[dict[str, float]] = []  # metrics of the steps since the last log
        self._metrics: Metrics | None = None

    def resume(self, step: int | None) -> TrainState:
        """The state of a checkpoint; None for fresh weights.

        Raises:
          RunError: the checkpoint is damaged, or was trained on other data.
        """
        experiment = self.experiment
        if step is None:
            state = experiment.create_state()
            if experiment.start:  # from here on, the folder that it starts from is not needed
                self.save(0, state)
            return state
        state, position = self.checkpoints.restore(step, experiment.abstract_state())
        expected = self._position(step)
        if position != expected:
            raise RunError(
                f"the data is not what step {step} was trained on: the checkpoint has "
                f"{position}, this run would go on with {expected}"
            )
        self.last_saved = step
        self._recent, self.evaluation_due = list(position.unlogged), position.evaluation_due
        return state

    def begin(self, step: int) -> None:
        """Opens the metrics; training goes on from `step`."""
        if is_first():
            self._metrics = Metrics(self.workdir, resume_step=step)
        self.began = self._logged_at = time.perf_counter()

    def close(self) -> None:
        """Closes the metrics and ends the writing of checkpoints."""
        if self._metrics:
            self._metrics.close()
        self.checkpoints.close()

    def add(self, step: int, values: dict[str, float]) -> dict[str, float] | None:
        """Takes the metrics of a step; returns the record if they complete one.

        A record is the mean of the steps since the one before.

        Raises:
          RunError: one of them is not finite.
        """
        for name in _HELD_FINITE:
            if not math.isfinite(values[name]):
                raise RunError(self._not_finite(step, name, values[name]))
        self._recent.append(values)
        # There is one wherever there may be a checkpoint, too.
        every = [self.config.log_every_steps, self.experiment.checkpoint_every]
        if self.config.keep_best:
            every.append(self.experiment.eval_every)
        if step != self.experiment.total_steps and all(step % n for n in every):
            return None
        now, count = time.perf_counter(), len(self._recent)
        rate = count * self.config.batch_size / (now - self._logged_at)
        self._logged_at = now
        mean = {k: sum(r[k] for r in self._recent) / count for k in values}
        self._recent.clear()
        epoch = step / self.experiment.steps_per_epoch
        self._write(step, "train", {**mean, "epoch": epoch, "images_per_second": rate})
        return {**mean, "images_per_second": rate}

    def _not_finite(self, step: int, name: str, value: float) -> str:
        saved = "no checkpoint was written before it"
        if self.last_saved is not None:
            self.checkpoints.wait()
            saved = f"the last good checkpoint is {self.checkpoints.folder / str(self.last_saved)}"
        return (
            f"the {name} of step {step}{self.experiment.suffix} is {value}: training stopped; "
            f"{saved}. A lower "
            "config.schedule.base_lr, a longer warm-up or config.optimizer.clip_norm may help"
        )

    def save(self, step: int, state: TrainState) -> None:
        """Starts to write a checkpoint, if there is none of this step.

        Raises:
          RunError: it, or the one before, cannot be written.
        """
        if step == self.last_saved:
            return
        position = self._position(
            step, unlogged=tuple(self._recent), evaluation_due=self.evaluation_due
        )
        self.checkpoints.save(state, position, self.experiment.spec, self.config)
        self.last_saved = step

    def _position(self, step: int, **progress) -> Position:
        return Position(
            examples=step * self.config.batch_size,
            fingerprint=self.experiment.train_source.fingerprint,
            **progress,
        )

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Evaluates, writes the record and returns it."""
        began = time.perf_counter()
        values = self._evaluate(state.for_evaluation)
        self._logged_at += time.perf_counter() - began  # no part of the training rate
        self._write(step, "eval", values)
        return values

    def is_best(self, step: int) -> bool:
        """Whether the run keeps its best checkpoint, and that is this step."""
        if not self.config.keep_best:
            return False
        return from_first(lambda: best_record(self.workdir)["step"] == step)

    def finish(self, step: int, state: TrainState, *, steps: int, skipped: int) -> dict:
        """Evaluates the end and writes the summary.

        Args:
          step: the last.
          state: after it.
          steps: of this session.
          skipped: training examples that could not be read.

        Returns:
          What is in summary.json, see `loop.train`.
        """
        experiment = self.experiment
        seconds = time.perf_counter() - self.began
        averaged = state.ema is not None
        values = self._evaluate(state.for_evaluation)
        self._write(step, "eval", values)
        summary = {
            "steps": step,
            "epochs": step / experiment.steps_per_epoch,
            "weights": "ema" if averaged else "raw",
            "split": experiment.eval_source.split,
            "eval": values,
            "seconds": seconds,
            "images_per_second": steps * self.config.batch_size / seconds,
        }
        if skipped:
            summary["skipped"] = skipped
        if averaged:
            summary["eval_raw"] = self._evaluate(state.variables)
        if self.config.keep_best:
            best = from_first(lambda: best_record(self.workdir))
            summary["best"] = {name: best[name] for name in ("step", "top1")}
        if self.config.save_predictions:
            save_predictions(
                self.workdir,
                experiment,
                state.for_evaluation,
                step=step,
                between=self.interrupt.between,
            )
        if is_first():
            text = json.dumps(summary, indent=1)
            write_atomically(self.workdir / "summary.json", text)
        return summary

    def _evaluate(self, variables) -> dict[str, float]:
        return self.experiment.evaluate(variables, between=self.interrupt.between)

    def _write(self, step: int, kind: str, values: dict[str, float]) -> None:
        if self._metrics:
            self._metrics.write(step, kind, values)
