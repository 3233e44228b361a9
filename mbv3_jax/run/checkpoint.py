"""Checksums over the files of a checkpoint.

The storage below Orbax checks its own indices, but not the bytes of arrays: with a bit flipped in
one of them, a run would silently go on from other weights.
"""

import contextlib
import dataclasses
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from ml_collections import ConfigDict

from mbv3_jax.arch.spec import NetSpec, spec_from_json, spec_to_json
from mbv3_jax.core.errors import RunError, UsageError, first_line
from mbv3_jax.nn import functional
from mbv3_jax.run import metrics
from mbv3_jax.run.config import config_from_json, config_to_json
from mbv3_jax.run.folder import read_config

DIGESTS = "digests.json"
_CHUNK = 1 << 24


def write_digests(folder: epath.Path) -> None:
    """Adds to `folder` the checksums of all files in its subfolders."""
    (folder / DIGESTS).write_text(json.dumps(_digests(folder), indent=1))


def check_digests(folder: epath.Path) -> None:
    """Holds the files to what `write` found.

    Raises:
      ValueError: a file is missing, surplus or changed; the message names the first.
    """
    try:
        expected = json.loads((folder / DIGESTS).read_text())
    except (OSError, ValueError) as e:
        raise ValueError(f"its {DIGESTS} is missing or damaged") from e
    got = _digests(folder)
    for name in sorted(expected.keys() | got.keys()):
        if name not in got:
            raise ValueError(f"its file {name} is missing")
        if got[name] != expected.get(name):
            raise ValueError(f"its file {name} is damaged: other bytes than were written")


def _digests(folder: epath.Path) -> dict[str, int]:
    """Path within `folder` -> CRC-32 of the file's bytes."""
    found, folders = {}, [item for item in folder.iterdir() if item.is_dir()]
    for inner in folders:
        for path in inner.iterdir():
            if path.is_dir():
                folders.append(path)
            else:
                found[path.relative_to(folder).as_posix()] = _crc(path)
    return found


def _crc(path: epath.Path) -> int:
    crc = 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


# Checkpoints by Orbax: everything that a run is, in one atomic step, written in the background.
#
# A step holds `state` (parameters, BatchNorm statistics, optimizer, average), `position` (where in
# the data it stands), `spec` (the network) and `config`, under checksums. Orbax writes into a
# temporary folder and renames it when complete, so that a killed writer leaves nothing that looks
# like a checkpoint.

FOLDER = "checkpoints"
State = Any  # what the trainer keeps: a pytree of arrays with a field `step`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Where in the data training stands; with it, a resumed run sees just what was to come.

    examples: how many the run has seen, over all epochs and processes.
    fingerprint: of the training source; another one means that the data has changed.
    unlogged: metrics of the latest steps, which the next record is to average.
    evaluation_due: whether the run was asked to leave before or while it evaluated this step.
    extra: what else the program that trains must remember, as JSON has it.
    """

    examples: int
    fingerprint: str
    unlogged: tuple[dict[str, float], ...] = dataclasses.field(
        default=(), compare=False, repr=False
    )
    evaluation_due: bool = dataclasses.field(default=False, compare=False, repr=False)
    extra: dict | None = dataclasses.field(default=None, compare=False, repr=False)


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      run: the run folder.
      keep: how many to keep, the newest.
      keep_best: keep the one of the best evaluation too, see `logging.best_record`.
      read_only: never write, create or clean up.

    Raises:
      RunError: the folder cannot be made or read.
    """

    def __init__(
        self, run: Path | str, *, keep: int = 1, keep_best: bool = False, read_only: bool = False
    ):
        # Orbax wants absolute paths; epath leaves bucket paths as they are.
        self.folder = epath.Path(run).resolve() / FOLDER
        self._writing: int | None = None
        _keep_quiet()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Newest(keep, self.folder.parent if keep_best else None),
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
        """The steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def find(self, step: int | str | None) -> int:
        """The step itself, of the newest checkpoint for None, of the best for "best".

        Raises:
          RunError: there is no checkpoint yet.
          UsageError: the run does not keep the best.
        """
        run, steps = Path(self.folder.parent), self.steps()
        if not steps:
            raise RunError(f"{run} has no checkpoint yet")
        if step == "best":
            best = metrics.best_record(run)
            if not best or not read_config(run).keep_best:
                raise UsageError(
                    f"--step=best: {run} keeps no best checkpoint (config.keep_best is False, or "
                    "nothing was evaluated yet)"
                )
            return best["step"]
        return steps[-1] if step is None else step

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints past a step, which a run that goes on from there writes again."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def save(self, state: State, position: Position, spec: NetSpec, config: ConfigDict) -> None:
        """Starts to write a checkpoint; the state may be donated as soon as this returns.

        Raises:
          RunError: this one, or the one before it, cannot be written.
        """
        step = int(state.step)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            position=ocp.args.JsonSave(dataclasses.asdict(position)),
            spec=ocp.args.JsonSave({"json": spec_to_json(spec)}),
            config=ocp.args.JsonSave({"json": config_to_json(config)}),
        )
        self.wait()
        self._writing = step
        self._write(f"the checkpoint of step {step}", lambda: self._manager.save(step, args=items))

    def _seal(self) -> None:
        """Adds checksums to the checkpoint being written, just before Orbax renames its folder."""
        if jax.process_index():  # the first process renames it, when all have written
            return
        name = str(self._writing)
        (folder,) = (p for p in self.folder.iterdir() if p.name.partition(".")[0] == name)
        write_digests(folder)

    def wait(self) -> None:
        """Returns when what `save` started is on disk.

        Raises:
          RunError: it could not be written.
        """
        what = f"the checkpoint of step {self._writing}"
        self._write(what, self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for what is being written and ends the threads. Raises nothing; `wait` does."""
        with contextlib.suppress(Exception):
            self._manager.close()

    def advice(self) -> str:
        """For messages: the newest complete checkpoint, and how to go on from it."""
        with contextlib.suppress(Exception):
            self._manager.wait_until_finished()
        self._manager.reload()
        steps = self.steps()
        where = f"from its last checkpoint, step {steps[-1]}" if steps else "from the start"
        return f"the same command run again goes on {where}"

    def _write(self, what: str, action) -> None:
        try:
            action()
        except Exception as e:  # Orbax passes on whatever its storage raises
            raise RunError(
                f"could not write {what} in {self.folder}: {first_line(e)}. When there is room "
                f"and the path is mended, {self.advice()}"
            ) from e

    def restore(self, step: int, abstract: State) -> tuple[State, Position]:
        """Reads a checkpoint into the shapes, types and placement of `abstract`.

        Raises:
          RunError: it is not there, damaged, or of another network.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore()
        )
        restored = self._read(step, lambda: self._manager.restore(step, args=args))
        return restored["state"], Position(**restored["position"])

    def variables(
        self, step: int, abstract: functional.Variables, *, averaged: bool
    ) -> functional.Variables:
        """Reads only the network's variables, or their average, as NumPy arrays.

        Raises:
          RunError: the checkpoint is not there, or damaged.
        """
        name, folder = "ema" if averaged else "variables", self.folder / str(step) / "state"
        return self._read(step, lambda: read_arrays(folder, {name: abstract})[name])

    def description(self, step: int) -> tuple[NetSpec, ConfigDict]:
        """The network and the configuration stored with a checkpoint.

        Raises:
          RunError: it is not there or damaged.
        """
        args = ocp.args.Composite(spec=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
        restored = self._read(step, lambda: self._manager.restore(step, args=args))
        spec = spec_from_json(restored["spec"]["json"])
        return spec, config_from_json(restored["config"]["json"])

    def _read(self, step: int, action):
        steps = self.steps()
        if step not in steps:
            listed = ", ".join(map(str, steps)) or "none"
            raise RunError(f"no checkpoint of step {step} in {self.folder}; there are: {listed}")
        try:
            check_digests(self.folder / str(step))
            return action()
        except Exception as e:  # whatever a damaged file makes the storage raise
            earlier = [s for s in steps if s < step]
            advice = f"to go on from step {earlier[-1]}, remove" if earlier else "remove"
            raise RunError(
                f"the checkpoint {self.folder / str(step)} cannot be read: {first_line(e)}; "
                f"{advice} that folder and run the same command again"
            ) from e


@dataclasses.dataclass
class _Newest:
    """Which checkpoints to keep: the newest `keep`, and the best of the run folder `run`."""

    keep: int
    run: epath.Path | None

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        best = metrics.best_record(Path(self.run)) if self.run else None
        first = len(checkpoints) - self.keep
        return [
            i >= first or (best is not None and c.step == best["step"])
            for i, c in enumerate(checkpoints)
        ]


def write_arrays(folder: epath.Path, tree: functional.Variables) -> None:
    """Writes nested dicts of NumPy arrays into a new folder; returns when they are on disk."""
    _keep_quiet()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(folder, ocp.args.PyTreeSave(tree))


def read_arrays(folder: epath.Path, abstract: functional.Variables) -> functional.Variables:
    """Reads what `abstract` has of the arrays in a folder, as NumPy arrays."""
    one = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
        item=jax.tree.map(lambda _: 0, abstract),
        restore_args=jax.tree.map(lambda _: one, abstract),
        partial_restore=True,
    )
    _keep_quiet()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder.resolve(), args)


def is_averaged(run: Path, config: ConfigDict, weights: str) -> bool:
    """Whether "auto", "ema" or "raw" means the average of this run's weights.

    Raises:
      UsageError: "ema" of a run that keeps no average.
    """
    has_average = config.ema_decay is not None
    if weights == "ema" and not has_average:
        raise UsageError(f"{run} keeps no average (config.ema_decay is None); use --weights=raw")
    return has_average and weights != "raw"


def _keep_quiet() -> None:
    """Leaves errors to the exceptions that report them.

    Orbax logs what it raises as well. And when one of many reads or writes fails, it closes the
    event loop that the others then report to, with a traceback each.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    if sys.unraisablehook is not _all_but_closed_loops:
        _all_but_closed_loops.hook = sys.unraisablehook
        sys.unraisablehook = _all_but_closed_loops


def _all_but_closed_loops(unraisable) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        _all_but_closed_loops.hook(unraisable)
