"""What a run writes into its folder while it trains: metrics, checkpoints, evaluations, summary."""

import json
import math
import time
from typing import Any

import jax

from mbv3_jax.core.errors import RunError, counted
from mbv3_jax.core.files import write_atomically
from mbv3_jax.core.json_lines import say
from mbv3_jax.data.source import Source
from mbv3_jax.nn import functional
from mbv3_jax.run.checkpoint import Checkpoints, Progress
from mbv3_jax.run.config import flatten_config
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.metrics import Metrics, best_record, evaluations_since_best, means
from mbv3_jax.run.processes import from_first, is_first
from mbv3_jax.run.trackers import Tracking
from mbv3_jax.train.experiment import Experiment
from mbv3_jax.train.inference import save_predictions
from mbv3_jax.train.seeds import SeedRun
from mbv3_jax.train.sharding import replicated
from mbv3_jax.train.state import TrainState

_MUST_BE_FINITE = ("loss", "grad_norm", "update_norm", "param_norm")


class Recorder:
    """Records one session of one run.

    Args:
      experiment: what is trained.
      run: the run; its folder has been claimed.
      interrupt: checked before each batch of an evaluation.

    Attributes:
      checkpoints: those of the run.
      evaluation_due: whether an evaluation has started and not finished.
    """

    def __init__(self, experiment: Experiment, run: SeedRun, interrupt: Interrupt):
        self.run = run
        self._experiment, self._plan, self._data = experiment, experiment.plan, experiment.data
        self._early, self._interrupt = experiment.plan.early_stop, interrupt
        self.checkpoints = Checkpoints(
            run.folder, keep=self._plan.keep_checkpoints, best_by=self._plan.best_by
        )
        self.evaluation_due = False
        self._last_saved: int | None = None
        self._unlogged: list[dict[str, float]] = []  # metrics of the steps since the last log
        self._metrics: Metrics | None = None

    def continue_from(self, step: int, progress: Progress) -> None:
        """Takes over what the checkpoint of a step says about the session before."""
        self._last_saved = step
        self._unlogged, self.evaluation_due = list(progress.unlogged), progress.evaluation_due

    def open_metrics(self, step: int) -> None:
        """Opens the metrics of a session that starts after `step` steps, and starts its clock."""
        if is_first():
            name, fields = self._plan.tracker, flatten_config(self.run.config)
            tracking = Tracking(name, self.run.folder, fields) if name else None
            self._metrics = Metrics(
                self.run.folder,
                resume_step=step,
                recorded_step=step - len(self._unlogged),
                keep_best=self._plan.best_by is not None,
                early_stop=self._early is not None,
                tracking=tracking,
            )
        self._started = self._logged_at = time.perf_counter()

    def close(self) -> None:
        """Closes the metrics, and waits for the checkpoint that is being written."""
        if self._metrics:
            self._metrics.close()
        self.checkpoints.close()

    def add(self, step: int, values: dict[str, float]) -> dict[str, float] | None:
        """Takes the metrics of a step; writes and returns a record if one is due.

        A record is the mean over the steps since the one before it.

        Raises:
          RunError: one of the metrics is not finite.
        """
        for name in _MUST_BE_FINITE:
            if not math.isfinite(values[name]):
                raise RunError(self._not_finite(step, name, values[name]))
        self._unlogged.append(values)
        # One is due wherever there may be a checkpoint, too.
        every = [self._plan.log_every_steps, self._data.checkpoint_every]
        if self._plan.best_by or self._early:
            every.append(self._data.eval_every)
        if step != self._data.total_steps and all(step % n for n in every):
            return None
        now, count = time.perf_counter(), len(self._unlogged)
        rate = count * self._plan.batch_size / (now - self._logged_at)
        self._logged_at = now
        mean = {k: sum(r[k] for r in self._unlogged) / count for k in values}
        self._unlogged.clear()
        epoch = step / self._data.steps_per_epoch
        self._write(step, "train", {**mean, "epoch": epoch, "images_per_second": rate})
        return {**mean, "images_per_second": rate}

    def _not_finite(self, step: int, name: str, value: float) -> str:
        saved = "no checkpoint was written before it"
        if self._last_saved is not None:
            self.checkpoints.wait()
            folder = self.checkpoints.folder / str(self._last_saved)
            saved = f"the last good checkpoint is {folder}"
        return (
            f"the {name} of step {step}{self.run.suffix} is {value}: training stopped; {saved}. "
            "A lower config.schedule.base_lr, a longer warm-up or config.optimizer.clip_norm may "
            "help"
        )

    def save(self, step: int, state: TrainState) -> None:
        """Starts to write a checkpoint, unless that of this step exists.

        Raises:
          RunError: it, or the one before, cannot be written.
        """
        if step == self._last_saved:
            return
        progress = self.progress(
            step, unlogged=tuple(self._unlogged), evaluation_due=self.evaluation_due
        )
        self.checkpoints.save(state, progress, self._experiment.spec, self.run.config)
        self._last_saved = step

    def progress(self, step: int, **session: Any) -> Progress:
        """How far a run of this data has come after `step` steps.

        Args:
          step: how many steps.
          **session: fields of `Progress` that say what the session leaves to the next one.
        """
        return Progress(
            examples=step * self._plan.batch_size,
            fingerprint=self._data.training.fingerprint,
            held_out=self._data.held_out.fingerprint,
            **session,
        )

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Evaluates, writes the record and returns it.

        Raises:
          RunError: it lacks the metric of the best checkpoint or of early stopping.
        """
        started = time.perf_counter()
        values = means(self._evaluate(state.for_evaluation))
        for metric in filter(None, (self._plan.best_by, self._early and self._early.metric)):
            if metric not in values:
                raise RunError(
                    f"{metric}: not defined for these held-out images, whose labels are all alike; "
                    "choose another metric, and another --workdir"
                )
        self._logged_at += time.perf_counter() - started  # not part of the training rate
        self._write(step, "eval", values)
        return values

    def is_best(self, step: int) -> bool:
        """Whether the run keeps its best checkpoint, and this step is the best so far."""
        if not self._plan.best_by:
            return False
        best = self._best(self._plan.best_by)
        return best is not None and best["step"] == step

    def _best(self, metric: str) -> dict[str, Any] | None:
        return from_first(lambda: best_record(self.run.folder, metric))

    def reason_to_stop(self, step: int) -> str | None:
        """Why the run ends after this step, before its last one; None if it continues.

        It follows from the records of the evaluations up to here, which a resumed run has too, so
        that it ends at the same step.
        """
        early = self._early
        if early is None or step == self._data.total_steps:
            return None
        since = from_first(lambda: evaluations_since_best(self.run.folder, early.metric))
        if since < early.patience:
            return None
        return f"no better {early.metric} in {counted(since, 'evaluation')}"

    def finish(self, step: int, state: TrainState, *, steps: int, skipped: int) -> dict[str, Any]:
        """Evaluates the last state and writes the summary.

        Args:
          step: the last one.
          state: after it.
          steps: how many this session has trained.
          skipped: how many training examples could not be read.

        Returns:
          What is in summary.json, see `loop.train`.
        """
        seconds = time.perf_counter() - self._started
        averaged = state.ema is not None
        values = self._evaluate(state.for_evaluation)
        self._write(step, "eval", means(values))
        summary = {
            "steps": step,
            "epochs": step / self._data.steps_per_epoch,
            "weights": "ema" if averaged else "raw",
            "split": self._data.held_out.split,
            "held_out": self._data.held_out.fingerprint,
            "eval": values,
            "seconds": seconds,
            "images_per_second": steps * self._plan.batch_size / seconds,
        }
        if skipped:
            summary["skipped"] = skipped
        if averaged:
            summary["eval_raw"] = means(self._evaluate(state.variables))
        metric = self._plan.best_by
        if metric and (best := self._best(metric)):
            other = {} if metric == "top1" else {"metric": metric, metric: best[metric]}
            known = {name: best[name] for name in ("step", "top1") if name in best}
            summary["best"] = known | other
        if self._early and step < self._data.total_steps:
            summary["early_stop"] = {
                "metric": self._early.metric,
                "patience": self._early.patience,
                "planned_steps": self._data.total_steps,
            }
        if test := self._data.held_out.test:
            at, weights = self._chosen(step, state)
            result = self._evaluate(weights, test)
            summary["test"] = {"split": test.split, "step": at, **result}
            self._write(at, "test", means(result))
        if self._plan.save_predictions:
            save_predictions(
                self.run.folder,
                self._experiment,
                state.for_evaluation,
                step=step,
                wrap_batches=self._interrupt.checked,
            )
        if is_first():
            write_atomically(self.run.folder / "summary.json", json.dumps(summary, indent=1))
        return summary

    def _chosen(self, step: int, state: TrainState) -> tuple[int, functional.Variables]:
        """The step and the weights that the run has chosen on the held-out examples.

        Args:
          step: the last one.
          state: after it.
        """
        metric = self._plan.best_by
        best = self._best(metric) if metric else None
        if best is None or best["step"] == step:
            return step, state.for_evaluation
        shapes = functional.shapes(self._experiment.spec)
        averaged = state.ema is not None
        try:
            arrays = self.checkpoints.variables(best["step"], shapes, averaged=averaged)
        except RunError as e:  # what was trained has a result all the same
            say(f"the last state is tested instead of the best checkpoint: {e}")
            return step, state.for_evaluation
        return best["step"], jax.device_put(arrays, replicated(self._experiment.mesh))

    def _evaluate(
        self, variables: functional.Variables, source: Source | None = None
    ) -> dict[str, Any]:
        return self._experiment.evaluate(
            variables, wrap_batches=self._interrupt.checked, source=source
        )

    def _write(self, step: int, kind: str, values: dict[str, float]) -> None:
        if self._metrics:
            self._metrics.write(step, kind, values)
