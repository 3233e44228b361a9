"""The training loop: steps, logs, evaluations, checkpoints, and a result at the end."""

import collections
import contextlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.core.errors import Preempted, RunError
from mbv3_jax.data.source import BadExample
from mbv3_jax.run.folder import claim_folder, read_summary, wait_for_folder
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.metrics import ProgressBar
from mbv3_jax.run.processes import from_first, other_processes
from mbv3_jax.train import seeds
from mbv3_jax.train.experiment import Experiment, make_experiment
from mbv3_jax.train.recorder import Record
from mbv3_jax.train.sharding import put_batch
from mbv3_jax.train.state import TrainState

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
      raw weights), seconds and images/s of this session. Of several seeds: see `seeds.summarise`.

    Raises:
      UsageError: the configuration is wrong, or the folder is not this run's, or in use; nothing
        changed.
      RunError: the loss is not finite, or the folder can be neither read nor written; earlier
        checkpoints are intact.
      Preempted: after a signal that announces the end, saved between two steps.
      KeyboardInterrupt: after Ctrl-C, between two steps or two batches of an evaluation.
    """
    console = console or Console(stderr=True, markup=False, emoji=False)
    if config.seeds is not None:
        return _train_seeds(config, workdir, console)
    experiment = make_experiment(config, workdir)
    names, init = experiment.train_source.class_names, experiment.start_record()
    with contextlib.ExitStack() as claimed:

        def claim():
            lock = claim_folder(workdir, config, experiment.spec, names, init)
            claimed.enter_context(lock)
            return read_summary(workdir)

        if summary := from_first(claim):
            return summary
        wait_for_folder(workdir)
        interrupt = Interrupt(other_processes())
        record = Record(experiment, workdir, interrupt)
        with reported(workdir, [record]), interrupt:
            steps = record.checkpoints.steps()
            start = from_first(lambda: steps[-1] if steps else None)
            if start is not None:
                console.print(f"resuming from step {start} in {workdir.resolve()}")
            elif experiment.start:
                console.print(f"starting from {init['message']}")
            state = record.resume(start)
            (summary,) = Loop(experiment, [record], console, interrupt).run(state, start or 0)
            return summary


def _train_seeds(config: ConfigDict, workdir: Path, console: Console) -> dict:
    """As `train`, for all of config.seeds; see `seeds.py`."""
    experiments, folders = seeds.open_runs(config, workdir)
    with seeds.claim(workdir, config, experiments, folders):
        if summary := read_summary(workdir):
            return summary
        with Interrupt() as interrupt:
            records, common = seeds.begin(experiments, folders, interrupt)
            with reported(workdir, records):
                together = seeds.Seeds(experiments)
                states = seeds.start(experiments, records, common, console)
                state = together.together(states)
                del states
                summaries = Loop(together, records, console, interrupt).run(state, common or 0)
        return seeds.summarise(workdir, config.seeds, summaries)


@contextlib.contextmanager
def reported(workdir: Path, records: Sequence[Record]):
    """Ends a session: closes its records, and says how to go on after what stopped it."""
    try:
        yield
    except OSError as e:
        raise RunError(
            f"stopped in {workdir}: {e}. When that is mended, {records[0].checkpoints.advice()}"
        ) from e
    except BadExample as e:
        raise RunError(
            f"{e}. When that is mended, {records[0].checkpoints.advice()}; with "
            "--config.data.on_error=skip it leaves such examples out, and counts them"
        ) from e
    except Preempted as e:
        raise Preempted(f"stopped on request; {records[0].checkpoints.advice()}") from e
    finally:
        for record in records:
            record.close()


class Loop:
    """One session of a run, or of several in step (`seeds.py`): from a state to the end.

    Args:
      experiment: what is trained; its `members` takes apart what belongs to several runs.
      records: one a run.
      console: where progress goes.
      interrupt: checked before each step.
    """

    def __init__(
        self,
        experiment: Experiment | seeds.Seeds,
        records: Sequence[Record],
        console: Console,
        interrupt: Interrupt,
    ):
        self.experiment, self.records = experiment, records
        self.console, self.interrupt = console, interrupt
        self.skipped = 0

    def run(self, state: TrainState, start: int) -> list[dict]:
        """Trains from `state`, after `start` steps; returns a summary for each record."""
        total = self.experiment.total_steps
        self.pending = collections.deque()  # (step, metrics on the device), oldest first
        for record in self.records:
            record.begin(start)
        with ProgressBar(self.console, total_steps=total, start_step=start) as bar:
            state = self._steps(state, start, bar)
            self._save(total, state, bar)
        for record in self.records:
            record.checkpoints.wait()
        skipped = self._all_skipped()
        return [
            record.finish(total, part, steps=total - start, skipped=skipped)
            for record, part in zip(self.records, self.experiment.members(state), strict=True)
        ]

    def _steps(self, state: TrainState, start: int, bar: ProgressBar) -> TrainState:
        experiment, step = self.experiment, start
        batches = experiment.train_batches(start, on_skip=bar.print)
        try:
            if any(record.evaluation_due for record in self.records):
                self._evaluate(step, state, bar)
            for number in self.interrupt.between(range(start + 1, experiment.total_steps + 1)):
                batch = put_batch(next(batches), experiment.mesh, axis=experiment.batch_axis)
                state, metrics = experiment.train_step(state, batch)
                step = number
                self.pending.append((step, metrics))
                self._collect(bar, leave=_IN_FLIGHT)
                is_last = step == experiment.total_steps
                if step % experiment.eval_every == 0 and not is_last:
                    self._evaluate(step, state, bar)
                if step % experiment.checkpoint_every == 0 and not is_last:
                    self._save(step, state, bar)
        except Preempted:
            self._save(step, state, bar)
            for record in self.records:
                record.checkpoints.wait()
            raise
        finally:
            batches.close()
            self.skipped = sum(batches.skipped.values())
        return state

    def _collect(self, bar: ProgressBar, leave: int = 0) -> None:
        """Fetches the metrics of all but the newest `leave` steps and hands them to the records."""
        while len(self.pending) > leave:
            step, metrics = self.pending.popleft()
            members = self.experiment.members(jax.device_get(metrics))
            logged = [
                record.add(step, {k: float(v) for k, v in values.items()})
                for record, values in zip(self.records, members, strict=True)
            ]
            if logged[0]:
                loss, top1 = (np.mean([r[k] for r in logged]) for k in ("loss", "top1"))
                rate = sum(r["images_per_second"] for r in logged)
                bar.update(step, loss=loss, top1=top1, rate=rate)

    def _save(self, step: int, state: TrainState, bar: ProgressBar) -> None:
        self._collect(bar)  # never keep a state whose loss was not finite
        for record, part in zip(self.records, self.experiment.members(state), strict=True):
            record.save(step, part)

    def _evaluate(self, step: int, state: TrainState, bar: ProgressBar) -> None:
        self._collect(bar)
        for record in self.records:
            record.evaluation_due = True
        for record, part in zip(self.records, self.experiment.members(state), strict=True):
            values = record.evaluate(step, part)
            of = f"step {step}{record.experiment.suffix}"
            bar.print(f"{of}: held-out top-1 {values['top1']:.2%}, loss {values['loss']:.4f}")
            if unreadable := values.get("unreadable"):
                bar.print(f"{of}: {unreadable} of the held-out images could not be read")
        for record, part in zip(self.records, self.experiment.members(state), strict=True):
            record.evaluation_due = False
            if record.is_best(step):
                record.save(step, part)

    def _all_skipped(self) -> int:
        """The training examples skipped by all processes."""
        if jax.process_count() == 1:
            return self.skipped
        return int(multihost_utils.process_allgather(np.int32(self.skipped)).sum())
