"""Checkpoints by Orbax: the whole state of a run in one atomic step, written in the background.

A step holds `state` (parameters, BatchNorm statistics, optimizer, average), `position` (how far
training has come in the data), `spec` (the network) and `config`, and checksums of their files.
Orbax writes into a temporary folder and renames it when it is complete, so that a killed writer
leaves nothing that looks like a checkpoint.

The storage below Orbax checks its own indices, but not the bytes of arrays: a run would silently
resume from other weights if one of their bits had flipped. Hence the checksums.
"""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from ml_collections import ConfigDict

from mbv3_jax.arch.spec import NetSpec, spec_from_json, spec_to_json
from mbv3_jax.core.checks import choose
from mbv3_jax.core.errors import RunError, UsageError, first_line
from mbv3_jax.core.files import check_storable
from mbv3_jax.core.json_lines import say
from mbv3_jax.nn import functional
from mbv3_jax.run import metrics
from mbv3_jax.run.config import config_from_json, config_to_json, is_multi_label
from mbv3_jax.run.digests import check_digests, write_digests
from mbv3_jax.run.folder import read_config

FOLDER = "checkpoints"
DAMAGED = "damaged"  # where those that cannot be read are kept

State = Any  # what the trainer trains: a pytree of arrays with a field `step`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training has come; with it a resumed run sees exactly the data that was next.

    examples: the number of examples that the run has seen, over all epochs and processes.
    fingerprint: of the training source; a different one means that the data has changed.
    unlogged: metrics of the latest steps, which the next record will average.
    evaluation_due: whether the run was preempted before or while it evaluated this step.
    extra: what else the training program must remember, as JSON values.
    held_out: fingerprint of the held-out source; "" in checkpoints of older versions.
    """

    examples: int
    fingerprint: str
    unlogged: tuple[dict[str, float], ...] = dataclasses.field(
        default=(), compare=False, repr=False
    )
    evaluation_due: bool = dataclasses.field(default=False, compare=False, repr=False)
    extra: dict | None = dataclasses.field(default=None, compare=False, repr=False)
    held_out: str = dataclasses.field(default="", compare=False, repr=False)

    def check_data(self, now: "Progress", where: str) -> None:
        """Checks that a run would resume on the data that it was trained on.

        If the held-out data differs, a message only says so: it changes what is reported, not what
        is learnt.

        Args:
          now: how far the run would have come on the data as it is now.
          where: the step, for messages.

        Raises:
          RunError: it would not.
        """
        if self != now:
            different = " and ".join(
                f"{field} {getattr(self, field)!r}, now {getattr(now, field)!r}"
                for field in ("examples", "fingerprint")
                if getattr(self, field) != getattr(now, field)
            )
            raise RunError(
                f"the data is not what {where} was trained on: {different}. Restore the examples "
                "that were there, under the names that they had, or choose another --workdir"
            )
        if self.held_out and self.held_out != now.held_out:
            say(
                f"the held-out data is not what {where} was evaluated on: {self.held_out!r}, now "
                f"{now.held_out!r}; evaluations before and after cannot be compared"
            )


def best_metric(config: ConfigDict) -> str:
    """The metric that chooses the best checkpoint of a run; older versions knew top-1 only.

    Without one it is top-1, or with several labels per image the mean average precision.

    Raises:
      ValueError: there is no such metric.
    """
    given = config.get("keep_best_metric")
    if given is None:
        return metrics.default_metric(multi_label=is_multi_label(config))
    return choose("keep_best_metric", given, metrics.EVAL_METRICS)


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      run: the run folder.
      keep: how many of the newest to keep.
      best_by: the metric of the best evaluation, whose checkpoint is kept too, see
        `metrics.best_record`; None to keep none.
      read_only: whether never to write, create or clean up anything.

    Raises:
      UsageError: its path cannot hold checkpoints.
      RunError: the folder cannot be made or read.
    """

    def __init__(
        self, run: Path | str, *, keep: int = 1, best_by: str | None = None, read_only: bool = False
    ):
        check_storable(Path(run), "rename it", read_only=read_only)
        # Orbax needs absolute paths.
        self.folder = epath.Path(run).resolve() / FOLDER
        self._writing: int | None = None
        _keep_quiet()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Newest(keep, self.folder.parent, best_by),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        handlers = ocp.DefaultCheckpointHandlerRegistry()
        for item in ("position", "spec", "config"):
            for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
                handlers.add(item, args)
        for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
            handlers.add("state", args)
        try:
            if not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)  # Orbax would find out at a save
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, handler_registry=handlers
            )
        except Exception as e:  # whatever the storage raises
            raise RunError(f"cannot use {self.folder}: {first_line(e)}") from e

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def find(self, step: int | str | None) -> int:
        """The step that is chosen by a number, by None (the newest checkpoint) or by "best".

        Raises:
          RunError: there is no checkpoint yet.
          UsageError: there is none of this step, or the run does not keep the best one.
        """
        run, steps = Path(self.folder.parent), self.steps()
        if step not in (None, "best"):
            self._check_exists(number := int(step), steps)
            return number
        if not steps:
            raise RunError(f"{run} has no checkpoint yet")
        if step == "best":
            config = read_config(run)
            try:
                best = metrics.best_record(run, best_metric(config))
            except ValueError as e:
                raise UsageError(f"{run / 'config.json'} is damaged: {e}") from e
            if not best or not config.keep_best:
                raise UsageError(
                    f"--step=best: {run} keeps no best checkpoint (config.keep_best is False, or "
                    "nothing was evaluated yet)"
                )
            return best["step"]
        return steps[-1]

    def _check_exists(self, step: int, steps: Sequence[int]) -> None:
        if step not in steps:
            listed = ", ".join(map(str, steps)) or "none"
            raise UsageError(f"no checkpoint of step {step} in {self.folder}; there are: {listed}")

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints past a step; a run that resumes there writes them again."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint; None if they are intact."""
        try:
            check_digests(self.folder / str(step))
        except ValueError as e:  # an OSError is of the disk, and may pass
            return first_line(e)
        return None

    def set_aside(self, step: int) -> Path:
        """Moves a checkpoint out of the way; returns its new folder."""
        folder = Path(self.folder.parent) / DAMAGED
        folder.mkdir(exist_ok=True)
        names = itertools.chain([str(step)], (f"{step}-{n}" for n in itertools.count(2)))
        kept = next(folder / name for name in names if not (folder / name).exists())
        Path(self.folder / str(step)).rename(kept)
        self.look_again()
        return kept

    def look_again(self) -> None:
        """Reads again which checkpoints exist: another process has moved some."""
        self._manager.reload()

    def save(self, state: State, progress: Progress, spec: NetSpec, config: ConfigDict) -> None:
        """Starts to write a checkpoint; the state may be donated as soon as this returns.

        Raises:
          RunError: this one, or the one before it, cannot be written.
        """
        step = int(state.step)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            position=ocp.args.JsonSave(dataclasses.asdict(progress)),
            spec=ocp.args.JsonSave({"json": spec_to_json(spec)}),
            config=ocp.args.JsonSave({"json": config_to_json(config)}),
        )
        self.wait()
        self._writing = step
        self._write(f"the checkpoint of step {step}", lambda: self._manager.save(step, args=items))

    def _seal(self) -> None:
        """Adds checksums to the checkpoint being written, just before Orbax renames its folder."""
        if jax.process_index():  # the first process renames it when all have written
            return
        name = str(self._writing)
        (folder,) = (p for p in self.folder.iterdir() if p.name.partition(".")[0] == name)
        write_digests(folder)

    def wait(self) -> None:
        """Waits until the checkpoint that `save` started is on disk.

        Raises:
          RunError: it could not be written.
        """
        what = f"the checkpoint of step {self._writing}"
        self._write(what, self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for what is being written and ends the threads; it raises nothing, `wait` does."""
        with contextlib.suppress(Exception):
            self._manager.close()

    def advice(self) -> str:
        """For messages: how to resume, and from which checkpoint."""
        with contextlib.suppress(Exception):
            self._manager.wait_until_finished()
        self.look_again()
        steps = self.steps()
        if not steps:
            return "run the same command again to start over"
        return f"run the same command again to resume from its last checkpoint, step {steps[-1]}"

    def _write(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as e:  # Orbax passes on whatever its storage raises
            raise RunError(
                f"could not write {what} in {self.folder}: {first_line(e)}. Once there is room and "
                f"the path is fixed, {self.advice()}"
            ) from e

    def restore(self, step: int, abstract: State) -> tuple[State, Progress]:
        """Reads a checkpoint into the shapes, types and placement of `abstract`.

        Raises:
          RunError: it does not exist, is damaged, is of another network or of another step.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore()
        )
        restored = self._read(step, lambda: self._manager.restore(step, args=args))
        self._check_step(step, restored["state"].step)
        return restored["state"], Progress(**restored["position"])

    def variables(
        self, step: int, abstract: functional.Variables, *, averaged: bool
    ) -> functional.Variables:
        """Reads only the network's variables, or their average, as NumPy arrays.

        Args:
          step: which checkpoint.
          abstract: the structure of the variables, see `functional.shapes`.
          averaged: whether to read the average.

        Raises:
          RunError: the checkpoint does not exist, is damaged or is of another step.
        """
        name, folder = "ema" if averaged else "variables", self.folder / str(step) / "state"
        read = self._read(step, lambda: read_arrays(folder, {name: abstract, "step": 0}))
        self._check_step(step, read["step"])
        return read[name]

    def description(self, step: int) -> tuple[NetSpec, ConfigDict]:
        """The network and the configuration stored with a checkpoint.

        Raises:
          RunError: it does not exist, is damaged or is of another step.
        """
        args = ocp.args.Composite(spec=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())

        def read() -> tuple[NetSpec, ConfigDict]:
            restored = self._manager.restore(step, args=args)
            config = config_from_json(restored["config"]["json"])
            return spec_from_json(restored["spec"]["json"]), config

        described = self._read(step, read)
        folder = self.folder / str(step) / "state"
        self._check_step(step, self._read(step, lambda: read_arrays(folder, {"step": 0}))["step"])
        return described

    def _check_step(self, step: int, found: Any) -> None:
        """Checks that the step in the state, under its checksum, is the name of the folder.

        The folders of two checkpoints of a run are alike in everything else.
        """
        if int(found) != step:
            raise RunError(
                f"{self.folder / str(step)} holds the checkpoint of step {int(found)}: it was "
                f"renamed, or swapped with another; rename it to {int(found)}, or remove it, and "
                "run the same command again"
            )

    def _read(self, step: int, action: Callable[[], Any]) -> Any:
        steps = self.steps()
        self._check_exists(step, steps)
        try:
            check_digests(self.folder / str(step))
            return action()
        except Exception as e:  # a damaged file can make the storage raise anything
            earlier = [s for s in steps if s < step]
            advice = f"to resume from step {earlier[-1]}, remove" if earlier else "remove"
            raise RunError(
                f"the checkpoint {self.folder / str(step)} cannot be read: {first_line(e)}; "
                f"{advice} that folder and run the same command again"
            ) from e


def newest_intact(runs: Sequence[Checkpoints], *, note: Callable[[str], None] = say) -> int | None:
    """The newest step of which all runs have a checkpoint with intact files.

    Damaged later ones are set aside. If none is intact nothing is moved, and the newest step is
    returned: reading it will report what is wrong.

    Args:
      runs: one or more, in the only process, or the first one.
      note: called with a message for each checkpoint that was set aside.

    Returns:
      The step; None if there is none that all have.
    """
    common = sorted(set.intersection(*(set(run.steps()) for run in runs)), reverse=True)
    damaged: list[tuple[Checkpoints, int, str]] = []
    for step in common:
        found = [(run, step, damage) for run in runs if (damage := run.damage(step))]
        if not found:
            break
        damaged += found
    else:
        return max(common, default=None)
    for run, later, damage in damaged:
        where = run.folder / str(later)
        note(f"the checkpoint {where} cannot be read: {damage}; it is now {run.set_aside(later)}")
    return step


@dataclasses.dataclass
class _Newest:
    """Orbax's policy: keeps the newest `keep` checkpoints of a run, and the best by a metric."""

    keep: int
    run: epath.Path
    best_by: str | None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = metrics.best_record(Path(self.run), self.best_by) if self.best_by else None
        first = len(checkpoints) - self.keep
        return [
            i >= first or (best is not None and c.step == best["step"])
            for i, c in enumerate(checkpoints)
        ]


def write_arrays(folder: epath.Path, tree: functional.Variables) -> None:
    """Writes nested dicts of NumPy arrays into a new folder, and waits until they are on disk."""
    _keep_quiet()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(folder, ocp.args.PyTreeSave(tree))


def read_arrays(folder: epath.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Reads those arrays of a folder that `abstract` has, as NumPy arrays.

    Raises:
      ValueError: the folder lacks some of them; the message names the first.
      Exception: whatever Orbax raises for a damaged folder.
    """
    one = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
        item=jax.tree.map(lambda _: 0, abstract),
        restore_args=jax.tree.map(lambda _: one, abstract),
        partial_restore=True,
    )
    _keep_quiet()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arrays = reader.restore(folder.resolve(), args)
    # Where the folder lacks an array, the placeholder comes back.
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    missing = [path for path, leaf in leaves if not isinstance(leaf, np.ndarray)]
    if missing:
        name = "/".join(str(part.key) for part in missing[0])
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ValueError(f"its array {name} is missing{more}")
    return arrays


def is_averaged(run: Path, config: ConfigDict, weights: str) -> bool:
    """Whether the choice "auto", "ema" or "raw" means the average of this run's weights.

    Raises:
      UsageError: "ema" was chosen for a run that keeps no average.
    """
    averages = config.ema_decay, config.get("average_epochs")  # absent in older folders
    has_average = averages != (None, None)
    if weights == "ema" and not has_average:
        raise UsageError(f"{run} keeps no average (config.ema_decay is None); use --weights=raw")
    return has_average and weights != "raw"


def _keep_quiet() -> None:
    """Keeps Orbax from printing errors that exceptions report anyway.

    Orbax logs what it raises as well. And when one of many reads or writes fails, it closes the
    event loop that the others then report to, each with a traceback.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    if not isinstance(sys.unraisablehook, _AllButClosedLoops):
        sys.unraisablehook = _AllButClosedLoops(sys.unraisablehook)


class _AllButClosedLoops:
    """The hook before it, which is not called for event loops that have been closed."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)
