"""The training loop: steps, logs, evaluations, checkpoints, and a result at the end.

Where a run starts. The rules apply in this order, and the code below follows them:

1. The configuration must be valid, and its data must open. Otherwise nothing is written.
2. The run folder is claimed (`run/folder.py`). It is refused, and left as it is, if it holds
   something that is not a run, a run of another configuration, of another network, with another
   teacher or another hierarchy of classes, or of a newer version of this code, or if another
   command uses it.
3. A run that has finished is not trained again: its summary is returned. With several seeds, some
   of which finished by themselves, the command is refused.
4. A run that has a checkpoint resumes from the newest one that is complete; what a killed process
   has only partly written does not count. With several seeds it is the newest that all of them
   have, and later ones are deleted. Checkpoints whose files are damaged are moved to the folder
   `damaged`, with a message, and the run resumes from the last intact one; with `config.on_damaged`
   "refuse", or if none is intact, the run is refused (`run/checkpoint.py`): the message says which
   to remove. So is a checkpoint of a network of another shape, or one that was trained on other
   data. None is ever skipped silently.
5. A run without a checkpoint whose configuration names a folder to start from (`config.init`)
   takes the weights of that folder (`train/warm_start.py`). If the run has started before, the
   weights must still be the same ones. It writes a checkpoint of step 0 first, so that rule 4
   applies from then on and the folder is not needed any more.
6. Any other run starts from random weights, which follow from its seed.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch import cost
from mbv3_jax.core.checks import in_pixels
from mbv3_jax.core.errors import Preempted, RunError, UsageError, counted, plain, printable
from mbv3_jax.data.source import BadExample
from mbv3_jax.run.checkpoint import newest_intact
from mbv3_jax.run.folder import claim_folder, read_summary, wait_for_folder
from mbv3_jax.run.interrupt import Interrupt, Interrupted
from mbv3_jax.run.metrics import ProgressBar, main_value
from mbv3_jax.run.processes import from_first, other_processes
from mbv3_jax.train.experiment import Experiment, compile_experiment
from mbv3_jax.train.plan import read_plan
from mbv3_jax.train.recorder import Recorder
from mbv3_jax.train.seeds import SeedRun, Stack, seed_runs, summarize
from mbv3_jax.train.sharding import put_batch
from mbv3_jax.train.sources import open_data
from mbv3_jax.train.state import TrainState
from mbv3_jax.train.trace import Trace

# Steps that may be under way before the host waits for the oldest: enough to keep the device
# busy, few enough that a non-finite loss is noticed soon and batches do not pile up.
_IN_FLIGHT = 2
Announce = Callable[[Experiment, Path], Sequence[str]]  # what to print of a run in a folder


def train(
    config: ConfigDict,
    workdir: Path,
    console: Console | None = None,
    *,
    announce: Announce | None = None,
) -> dict[str, Any]:
    """Trains what a configuration describes, or resumes it, in a run folder.

    Args:
      config: see `configs/common.py`.
      workdir: the run folder, see `run/folder.py`.
      console: where progress is printed; None for standard error.
      announce: what to print first; None for `opening`.

    Returns:
      The summary that is also in summary.json: steps, the evaluation (of the average and of the
      raw weights), seconds and images/s of this session. With several seeds: see
      `seeds.summarize`.

    Raises:
      UsageError: the configuration is wrong, or the folder is not that of this run or is in use;
        nothing was changed.
      RunError: the loss is not finite, or the folder can be neither read nor written; earlier
        checkpoints are intact.
      Preempted: a signal announced the end of the machine; the state between two steps is saved.
      KeyboardInterrupt: Ctrl-C was pressed; raised between two steps or two evaluation batches,
        with the state saved if this is the only process, or at once after a second time.
    """
    console = console or Console(stderr=True, markup=False, emoji=False)
    if config.seeds is not None and other_processes():
        raise UsageError("config: seeds: several seeds at once need a single process")
    plan = read_plan(config, workdir)  # rule 1
    experiment = compile_experiment(plan, open_data(plan))
    runs, init = seed_runs(config, workdir), experiment.init_record()
    with contextlib.ExitStack() as locks:

        def claim() -> dict[str, Any] | None:
            _claim_folders(locks, config, workdir, runs, experiment, init)  # rule 2
            return read_summary(workdir)

        if summary := from_first(claim):  # rule 3
            return summary
        wait_for_folder(workdir)
        interrupt = Interrupt(other_processes())
        recorders = [Recorder(experiment, run, interrupt) for run in runs]
        with _session(workdir, recorders, plan.data.on_error), interrupt:
            for line in (announce or opening)(experiment, workdir):
                console.print(line, soft_wrap=True)
            step = _newest_step(workdir, recorders, experiment)
            if step is not None:
                console.print(f"resuming from step {step} in {workdir.resolve()}", soft_wrap=True)
            elif init:
                console.print(f"starting from {init['message']}", soft_wrap=True)
            console.print("compiling the training step")
            stack = Stack(experiment)
            states = [_initial_state(experiment, recorder, step) for recorder in recorders]
            state = stack.join(states)
            del states  # the loop donates what it trains
            loop = Loop(experiment, stack, recorders, console, interrupt, workdir)
            summaries = loop.run(state, step or 0)
        return summarize(workdir, plan.seeds, summaries) if plan.seeds else summaries[0]


def opening(experiment: Experiment, workdir: Path) -> list[str]:
    """What to print before the first step: data, network and length, a line each."""
    data, spec, plan = experiment.data, experiment.spec, experiment.plan
    training = data.training
    devices = jax.devices()
    kind = f"{devices[0].platform} device"
    runs = f", {counted(len(plan.seeds), 'seed')} together" if plan.seeds else ""
    notes = []
    if plan.batch_size > len(training):
        notes.append(
            f"note: a batch of {plan.batch_size:,} holds more than all {len(training):,} training "
            f"images: {plain(data.total_steps / data.steps_per_epoch)} epochs are only "
            f"{counted(data.total_steps, 'step')}; a smaller batch_size would train for longer"
        )
    for every, what in ((plan.eval_every, "evaluates"), (plan.checkpoint_every, "saves")):
        if every.value == 0:
            notes.append(f"note: {every.field}=0 {what} after every step")
    if plan.schedule.options["base_lr"] == 0:
        notes.append("note: schedule.base_lr is 0: only BatchNorm's statistics will change")
    return [
        *_data_lines(experiment),
        f"network: {spec.name}, {in_pixels(spec.resolution)} pixels, "
        f"{cost.params(spec) / 1e6:.2f} million parameters, "
        f"{plain(cost.madds(spec) / 1e6)} million MAdds",
        f"training: {counted(data.total_steps, 'step')} of {counted(plan.batch_size, 'image')}, "
        f"{plain(data.total_steps / data.steps_per_epoch)} epochs, on "
        f"{counted(len(devices), kind)}{runs}",
        *([f"teacher: {experiment.teaching.description}"] if experiment.teaching else ()),
        f"run folder: {printable(str(workdir))}",
        *notes,
        *_data_notes(experiment),
    ]


def on_data(experiment: Experiment) -> list[str]:
    """Notes on the data, for commands that train many networks on it; a line each."""
    return [*_data_lines(experiment), *_data_notes(experiment)]


def _data_notes(experiment: Experiment) -> list[str]:
    return [f"note: {note}" for note in experiment.data.notes]


def _data_lines(experiment: Experiment) -> list[str]:
    training, held_out = experiment.data.training, experiment.data.held_out
    counts = training.counts()
    chance = held_out.counts() if held_out.label_kind == "single" else None
    classes = counted(training.num_classes, "class")
    if counts is not None:
        same, some = int(counts.min()) == int(counts.max()), f"{counts.min():,}"
        classes += f", {some if same else f'{some} to {counts.max():,}'} each"
    majority = ""
    if chance is not None and len(held_out):
        name = printable(held_out.class_names[int(chance.argmax())])
        majority = (
            f"; always answering {name} would be right for {chance.max() / len(held_out):.1%}"
        )
    tests = []
    if test := held_out.test:
        chosen = "best checkpoint" if experiment.plan.best_by else "last state"
        images = counted(len(test), f"{printable(test.split)} image")
        tests = [f"tests: {images}, on which the {chosen} is evaluated at the end"]
    return [
        f"data: {printable(training.name)}, "
        f"{counted(len(training), 'training image')} of {classes}",
        f"held out: {counted(len(held_out), f'{printable(held_out.split)} image')}{majority}",
        *tests,
    ]


def _claim_folders(
    locks: contextlib.ExitStack,
    config: ConfigDict,
    workdir: Path,
    runs: Sequence[SeedRun],
    experiment: Experiment,
    init: dict[str, Any] | None,
) -> None:
    """Claims the folder and, with several seeds, that of each run in it."""
    names = experiment.data.training.class_names
    inputs: dict[str, Any] = {
        "teachers": experiment.teaching.record if experiment.teaching else (),
        "hierarchy": experiment.hierarchy.text if experiment.hierarchy else None,
    }
    configs = {workdir: config} | {run.folder: run.config for run in runs}
    for folder, folder_config in configs.items():
        claim = claim_folder(folder, folder_config, experiment.spec, names, init, **inputs)
        locks.enter_context(claim)


def _newest_step(
    workdir: Path, recorders: Sequence[Recorder], experiment: Experiment
) -> int | None:
    """The newest step that all runs can resume from; None if they share no checkpoint (rule 4)."""
    checkpoints = [recorder.checkpoints for recorder in recorders]
    common = set.intersection(*(set(c.steps()) for c in checkpoints))
    newest = from_first(lambda: max(common, default=None))
    if len(recorders) > 1:
        finished = [r.run.folder.name for r in recorders if read_summary(r.run.folder)]
        if finished and newest != experiment.data.total_steps:  # rule 3
            raise UsageError(
                f"{workdir}: {', '.join(finished)} finished and the others did not, so they are "
                "not from one command; choose another --workdir"
            )
    step = newest
    if experiment.plan.on_damaged == "earlier":
        step = from_first(lambda: newest_intact(checkpoints))
    for run in checkpoints:
        if step != newest:
            run.look_again()
        if len(recorders) > 1:  # a kill came between the checkpoints of two runs
            run.discard_after(-1 if step is None else step)
    return step


def _initial_state(experiment: Experiment, recorder: Recorder, step: int | None) -> TrainState:
    """The state that a run continues from.

    Args:
      experiment: what is trained.
      recorder: of the run.
      step: of the checkpoint to resume from; None to start.

    Raises:
      RunError: the checkpoint is damaged, or was trained on other data.
    """
    if step is None:
        state = experiment.create_state(recorder.run.seed)  # rules 5 and 6
        if experiment.plan.warm_start:
            recorder.save(0, state)
        return state
    state, progress = recorder.checkpoints.restore(step, experiment.abstract_state())  # rule 4
    progress.check_data(recorder.progress(step), f"step {step}")
    recorder.continue_from(step, progress)
    return state


@contextlib.contextmanager
def _session(workdir: Path, recorders: Sequence[Recorder], on_error: str) -> Iterator[None]:
    """Closes the recorders at its end, and adds to what stopped training how to resume."""
    advice = recorders[0].checkpoints.advice
    try:
        yield
    except OSError as e:
        raise RunError(f"stopped in {workdir}: {e}. Once that is fixed, {advice()}") from e
    except BadExample as e:
        skipping = (
            "; with --config.data.on_error=skip a damaged file is left out and counted, but one "
            "that was removed has to be put back"
        )
        raise RunError(
            f"{e}. Once that is fixed, {advice()}{skipping if on_error == 'raise' else ''}"
        ) from e
    except Preempted as e:
        raise Preempted(f"preempted; {advice()}") from e
    finally:
        for recorder in recorders:
            recorder.close()


class Loop:
    """One session of a run, or of several that are trained together: from a state to the end.

    Args:
      experiment: what is trained.
      stack: joins and splits what belongs to several runs.
      recorders: one for each run.
      console: where progress is printed.
      interrupt: checked before each step.
      folder: the run folder, where a trace is written.
    """

    def __init__(
        self,
        experiment: Experiment,
        stack: Stack,
        recorders: Sequence[Recorder],
        console: Console,
        interrupt: Interrupt,
        folder: Path,
    ):
        self._experiment, self._stack, self._recorders = experiment, stack, recorders
        self._console, self._interrupt, self._folder = console, interrupt, folder
        # (step, metrics on the device) of the steps under way, oldest first
        self._pending: collections.deque[tuple[int, Any]] = collections.deque()
        self._skipped = 0

    def run(self, state: TrainState, start: int) -> list[dict[str, Any]]:
        """Trains from `state`, after `start` steps; returns a summary for each run."""
        total = self._experiment.data.total_steps
        for recorder in self._recorders:
            recorder.open_metrics(start)
        with ProgressBar(self._console, total_steps=total, start_step=start) as bar:
            state, step = self._train(state, start, bar)
            self._save(step, state, bar)
        for recorder in self._recorders:
            recorder.checkpoints.wait()
        skipped = self._count_skipped()
        return [
            recorder.finish(step, state_of_run, steps=step - start, skipped=skipped)
            for recorder, state_of_run in zip(
                self._recorders, self._stack.split(state), strict=True
            )
        ]

    def _train(self, state: TrainState, start: int, bar: ProgressBar) -> tuple[TrainState, int]:
        """Returns the state after the last step, and which step that was."""
        experiment, data, step = self._experiment, self._experiment.data, start
        batches = self._stack.train_batches(start, on_skip=bar.print)
        trace = Trace(experiment.plan.profile, self._folder / "profile", bar.print)
        try:
            if any(recorder.evaluation_due for recorder in self._recorders):
                self._evaluate(step, state, bar)
            last = step if self._stops(step, bar) else data.total_steps
            for number in self._interrupt.checked(range(start + 1, last + 1)):
                trace.before(number)
                with trace.step(number):
                    with trace.part("wait for a batch"):
                        batch = next(batches)
                    batch = put_batch(batch, experiment.mesh, axis=self._stack.batch_axis)
                    state, metrics = experiment.train_step(state, batch)
                step = number
                trace.after(number, state)
                bar.compiled(step)
                self._pending.append((step, metrics))
                self._record_metrics(bar, leave=_IN_FLIGHT)
                is_last = step == data.total_steps
                if step % data.eval_every == 0 and not is_last:
                    self._evaluate(step, state, bar)
                    if self._stops(step, bar):
                        break
                if step % data.checkpoint_every == 0 and not is_last:
                    self._save(step, state, bar)
        except (Preempted, Interrupted) as e:
            if isinstance(e, Interrupted):
                bar.print(f"interrupted: saving step {step}; Ctrl-C again leaves at once")
            self._save(step, state, bar)
            for recorder in self._recorders:
                recorder.checkpoints.wait()
            raise
        finally:
            trace.stop()
            batches.close()
            self._skipped = sum(batches.skipped.values())
        return state, step

    def _stops(self, step: int, bar: ProgressBar) -> bool:
        """Whether the run ends early, which no plan with several seeds does."""
        reason = self._recorders[0].reason_to_stop(step)
        if reason:
            bar.print(f"step {step}: {reason}: training stops early")
        return reason is not None

    def _record_metrics(self, bar: ProgressBar, leave: int = 0) -> None:
        """Fetches the metrics of all steps but the newest `leave`, and records them."""
        while len(self._pending) > leave:
            step, metrics = self._pending.popleft()
            logged = [
                recorder.add(step, {name: float(value) for name, value in values.items()})
                for recorder, values in zip(
                    self._recorders, self._stack.split(jax.device_get(metrics)), strict=True
                )
            ]
            records = [record for record in logged if record]  # all runs log at the same steps
            if records:
                name = "top1" if "top1" in records[0] else "label_accuracy"
                bar.update(
                    step,
                    loss=float(np.mean([record["loss"] for record in records])),
                    top1=float(np.mean([record[name] for record in records])),
                    of="top-1" if name == "top1" else "right labels",
                    rate=sum(record["images_per_second"] for record in records),
                )

    def _save(self, step: int, state: TrainState, bar: ProgressBar) -> None:
        self._record_metrics(bar)  # raises before a state is kept whose loss is not finite
        for recorder, state_of_run in zip(self._recorders, self._stack.split(state), strict=True):
            recorder.save(step, state_of_run)

    def _evaluate(self, step: int, state: TrainState, bar: ProgressBar) -> None:
        self._record_metrics(bar)
        for recorder in self._recorders:
            recorder.evaluation_due = True
        states = self._stack.split(state)
        for recorder, state_of_run in zip(self._recorders, states, strict=True):
            values = recorder.evaluate(step, state_of_run)
            where = f"step {step}{recorder.run.suffix}"
            bar.print(f"{where}: held-out {main_value(values)}, loss {values['loss']:.4f}")
            if unreadable := values.get("unreadable"):
                bar.print(f"{where}: {unreadable} of the held-out images could not be read")
        for recorder, state_of_run in zip(self._recorders, states, strict=True):
            recorder.evaluation_due = False
            if recorder.is_best(step):
                recorder.save(step, state_of_run)

    def _count_skipped(self) -> int:
        """How many training examples all processes have skipped."""
        if jax.process_count() == 1:
            return self._skipped
        return int(multihost_utils.process_allgather(np.int32(self._skipped)).sum())
