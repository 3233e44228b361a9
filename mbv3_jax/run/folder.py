"""The folder of a run: its configuration, metrics, checkpoints and result.

format.json       the version of what is in the folder; runs of version 1 have no such file
config.json       what the run was started with; another configuration is refused
spec.json         the network
classes.json      the names of the classes, by label
sessions.jsonl    a line for each start: command, commit, versions, devices
init.json         the folder whose weights the run started from, if any; see `train/warm_start.py`
teacher.json      the teachers that the run learns from, if any; see `train/teacher.py`
hierarchy.csv     the hierarchy of classes that the run learns by, if any; see `train/hierarchy.py`
metrics.jsonl     a line per log and evaluation; see `metrics.py`
metrics.damaged-* metrics.jsonl as it was when a run was resumed that had damaged lines in it
events.out.*      the same for TensorBoard
tracker.json      the record of the run in a tracker, if it has one; see `trackers.py`
checkpoints/      a folder per step; see `checkpoint.py`
predictions.npz   of every held-out image, if config.save_predictions; see `train/inference.py`
summary.json      the result, once the run has ended
lock              held by the command that writes here
"""

import contextlib
import functools
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.errors import InUse, RunError, UsageError, counted
from mbv3_jax.core.files import (
    check_storable,
    is_temporary,
    read_file,
    remove_temporaries,
    write_atomically,
)
from mbv3_jax.core.json_lines import append_line
from mbv3_jax.core.json_values import Number, as_type, parse_json, read_json
from mbv3_jax.run.config import (
    complete_config_from_json,
    config_differences,
    config_from_json,
    config_to_json,
    same_fields,
)

# The version of run folders and import folders that this code writes; it reads all up to it.
# 1: commit c7ffdd9 and earlier; has no format.json.
# 2: format.json; config.json has the group `loss`.
FORMAT_VERSION = 2
FORMAT_FILE = "format.json"

LOCK = "lock"
TEACHER_FILE = "teacher.json"
HIERARCHY_FILE = "hierarchy.csv"
SESSIONS = "sessions.jsonl"
# What a process that was killed in a run folder may have been writing.
_WRITTEN = (
    "config.json", FORMAT_FILE, "spec.json", "classes.json", "init.json", TEACHER_FILE,
    HIERARCHY_FILE, "metrics.jsonl", "predictions.npz", "summary.json", "tracker.json",
)  # fmt: skip
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_OTHER_WORKDIR = "choose another --workdir"


class PerClass(TypedDict):
    """An evaluation by label; see `train.measures`."""

    images: list[int]
    precision: list[Number]
    recall: list[Number]
    f1: list[Number]


class Measures(TypedDict):
    """An evaluation; see `train.evaluate`. Older versions wrote no more than the first five."""

    count: int
    loss: Number
    top1: NotRequired[Number]  # in every evaluation with one label per image
    top5: NotRequired[Number]
    unreadable: NotRequired[int]
    balanced_accuracy: NotRequired[Number]
    macro_precision: NotRequired[Number]
    macro_recall: NotRequired[Number]
    macro_f1: NotRequired[Number]
    ece: NotRequired[Number]
    per_class: NotRequired[PerClass]


class _Best(TypedDict):
    step: int
    top1: NotRequired[Number]
    metric: NotRequired[str]


class _EarlyStop(TypedDict):
    metric: str
    patience: int
    planned_steps: int


class _Statistics(TypedDict):
    mean: Number
    std: Number | None
    values: list[Number]


class Times(TypedDict):
    """What every summary.json holds; see `train.recorder` and `train.seeds`."""

    steps: int
    epochs: Number
    weights: str
    split: str
    seconds: Number
    images_per_second: Number


class _Test(Measures):
    split: str
    step: int


class Summary(Times):
    """summary.json of one run."""

    eval: Measures
    held_out: NotRequired[str]
    test: NotRequired[_Test]
    best: NotRequired[_Best]
    early_stop: NotRequired[_EarlyStop]


class SeedsSummary(Times):
    """summary.json of a folder whose runs, of several seeds, were trained at once."""

    seeds: list[int]
    count: int
    eval: dict[str, _Statistics]


class _Teacher(TypedDict):
    path: str
    digest: str


class _Format(TypedDict):
    version: int


def claim_folder(
    run: Path,
    config: ConfigDict,
    spec: NetSpec,
    class_names: Sequence[str] = (),
    init: dict | None = None,
    teachers: Sequence[dict] = (),
    hierarchy: str | None = None,
) -> contextlib.AbstractContextManager:
    """Makes the folder of a new run, or checks that an existing one has the same configuration.

    Args:
      run: the folder.
      config: of the run.
      spec: its network.
      class_names: by label.
      init: what init.json is to hold, for a run that starts from trained weights.
      teachers: what teacher.json is to hold, for a run that learns from others.
      hierarchy: what hierarchy.csv is to hold, for a run that learns by one.

    Returns:
      A context manager. After its end another command may use the folder, and also after this
      process has died in any way.

    Raises:
      UsageError: the path is not a folder, cannot be written, cannot hold checkpoints, is in use by
        another command, or holds a run of another configuration (the message lists the fields
        that differ), of another network, with other teachers or another hierarchy, or of a newer
        version.
    """
    path = run / "config.json"
    check_storable(run, _OTHER_WORKDIR)
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is a file, not a folder; {_OTHER_WORKDIR}")
    lock = contextlib.ExitStack()
    try:
        run.mkdir(parents=True, exist_ok=True)
        if path.exists():
            stored = _read_config(run, config_from_json)
            check_same_config(run, config, stored)
            _check_same_network(run, spec)
            _check_class_names(run, class_names)
            _check_same_inputs(run, teachers, hierarchy, _OTHER_WORKDIR)
            lock = lock_folder(run)
            _remove_leftovers(run)
            if not same_fields(config, stored):  # where the data lies now, for example
                write_atomically(path, config_to_json(config))
        elif foreign := sorted(p.name for p in run.iterdir() if not is_before_config(p.name)):
            raise UsageError(
                f"{run} is not a run folder (it holds {foreign[0]} and no config.json); "
                "choose another with --workdir"
            )
        else:
            lock = lock_folder(run)
            _remove_leftovers(run)
            write_format(run)  # before config.json, which makes it a run folder
            write_atomically(path, config_to_json(config))
        if not (run / "spec.json").exists():  # new, or killed since it wrote config.json
            write_atomically(run / "spec.json", spec_to_json(spec))
        if class_names and not (run / "classes.json").exists():
            names = json.dumps(class_names, indent=1, ensure_ascii=False)
            write_atomically(run / "classes.json", names)
        if init:
            write_atomically(run / "init.json", json.dumps(init, indent=1, ensure_ascii=False))
        _note_inputs(run, teachers, hierarchy)
        if not (run / "summary.json").exists():
            _write_session(run)
    except OSError as e:
        lock.close()
        raise UsageError(f"cannot write to {run}: {e.strerror}; {_OTHER_WORKDIR}") from e
    return lock


def _remove_leftovers(run: Path) -> None:
    """Removes the temporary files of a process that was killed; this one has locked the folder."""
    # Until a first session is noted nobody has put files of their own here.
    remove_temporaries(run, _WRITTEN, older=not (run / SESSIONS).exists())


def is_before_config(name: str) -> bool:
    """Returns whether a claim that was killed before it wrote config.json may have left a file."""
    return name in (LOCK, FORMAT_FILE) or is_temporary(name, ("config.json", FORMAT_FILE))


def write_format(folder: Path) -> None:
    """Records `FORMAT_VERSION` in a folder that is being made."""
    write_atomically(folder / FORMAT_FILE, json.dumps({"version": FORMAT_VERSION}))


def check_format(folder: Path) -> None:
    """Checks that a run folder or an import folder can be read.

    Raises:
      UsageError: it is of a newer version, or its format.json is damaged.
    """
    path = folder / FORMAT_FILE
    if not path.is_file():  # version 1
        return
    version = read_json(path, _Format, error=UsageError)["version"]
    if version > FORMAT_VERSION:
        raise UsageError(
            f"{folder} was written by a newer version of mbv3_jax, in format {version}; this one "
            f"reads formats up to {FORMAT_VERSION}"
        )


def lock_folder(run: Path) -> contextlib.ExitStack:
    """Locks a folder until the result is closed; the kernel drops the lock when the process dies.

    Raises:
      InUse: another command holds the lock.
    """
    lock = contextlib.ExitStack()
    if (run / "summary.json").exists():  # nothing more will be written
        return lock
    try:
        import fcntl  # not on Windows

        file = lock.enter_context((run / LOCK).open("a+"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.close()
        raise InUse(
            f"{run} is in use by another command ({(run / LOCK).read_text()}); wait for it, stop "
            f"it, or {_OTHER_WORKDIR}"
        ) from e
    except (ImportError, OSError) as e:  # Windows, or a file system without locks
        reason = getattr(e, "strerror", None) or e
        note = f"note: {run} cannot be locked ({reason}); make sure that no other command uses it"
        Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True).print(note)
        return lock
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return lock


def wait_for_folder(run: Path, *, seconds: float = 30.0) -> None:
    """Waits until the folder that the first process has claimed is visible here too.

    Raises:
      RunError: it does not appear; each machine has a folder of its own under that name.
    """
    end = time.monotonic() + seconds
    while not (run / "config.json").exists():
        if time.monotonic() > end:
            raise RunError(
                f"{run} is not the folder that the first process made: all processes need one "
                "--workdir, on a file system that they share"
            )
        time.sleep(0.1)


def check_same_config(run: Path, config: ConfigDict, stored: ConfigDict) -> None:
    """Raises UsageError, naming the fields, where the folder's configuration differs."""
    different = config_differences(config, stored)
    if different:
        listed = "\n".join(
            f"  {field}: this command {ours!r}, the folder {theirs!r}"
            for field, (ours, theirs) in different.items()
        )
        raise UsageError(
            f"{run} holds a run with another configuration:\n{listed}\n"
            "give these values, or choose another folder with --workdir"
        )


def _check_same_network(run: Path, spec: NetSpec) -> None:
    """The same configuration gives another network if the file of config.spec has changed."""
    path = run / "spec.json"
    if not path.exists():  # killed before it was written
        return
    stored = read_json(path, NetSpec, error=UsageError, advice=_OTHER_WORKDIR)
    if stored != spec:
        raise UsageError(
            f"{run} holds a run of another network than the configuration gives now, "
            f"{spec.name}; choose another folder with --workdir"
        )


def hold_inputs(folder: Path, teachers: Sequence[dict], hierarchy: str | None, advice: str) -> None:
    """Records what a search's trainings learn from in its folder, or checks that it is the same.

    Args:
      folder: of the search.
      teachers: as `claim_folder` takes them.
      hierarchy: the text of the file of `loss.hierarchy`; None for none.
      advice: what else can be done, for messages.

    Raises:
      UsageError: the teachers or the hierarchy differ, or a record is damaged.
    """
    _check_same_inputs(folder, teachers, hierarchy, advice)
    _note_inputs(folder, teachers, hierarchy)


def _check_same_inputs(
    folder: Path, teachers: Sequence[dict], hierarchy: str | None, advice: str
) -> None:
    """The same path may hold other weights, or another table, than when the run started."""
    path = folder / TEACHER_FILE
    if path.exists():  # there is a teacher, and the run was not killed before this was written
        stored = read_json(path, list[_Teacher], error=UsageError, advice=advice)
        for before, now in zip(stored, teachers, strict=False):
            if before["digest"] != now["digest"]:
                raise UsageError(
                    f"config.teacher: {now['path']} is another teacher than when {folder} started; "
                    f"put the old one back, or {advice}"
                )
    path = folder / HIERARCHY_FILE
    if hierarchy is not None and path.exists() and path.read_bytes() != hierarchy.encode():
        raise UsageError(
            f"config.loss.hierarchy: the file has changed since {folder} started; put back the old "
            f"one, of which {path} is a copy, or {advice}"
        )


def _note_inputs(folder: Path, teachers: Sequence[dict], hierarchy: str | None) -> None:
    """Writes teacher.json and hierarchy.csv, where there is something to write and no file yet."""
    path = folder / TEACHER_FILE
    if teachers and not path.exists():
        write_atomically(path, json.dumps(list(teachers), indent=1, ensure_ascii=False))
    path = folder / HIERARCHY_FILE
    if hierarchy is not None and not path.exists():
        write_atomically(path, hierarchy)


def _check_class_names(run: Path, class_names: Sequence[str]) -> None:
    """Finds a damaged classes.json now; `predict` reads it, when the run has been trained."""
    path, advice = run / "classes.json", "remove it and run the same command again"
    if not path.exists():
        return
    stored = read_json(path, list[str], error=UsageError, advice=advice)
    if class_names and len(stored) != len(class_names):
        raise UsageError(
            f"{path} is damaged: got {counted(len(stored), 'name')}, expected the "
            f"{len(class_names)} of the data; {advice}"
        )


def read_config(run: Path) -> ConfigDict:
    """The configuration of an existing run folder.

    Raises:
      UsageError: it is not a run folder, its config.json is damaged, or it was written by a newer
        version.
    """
    return _read_config(run, complete_config_from_json)


def _read_config(run: Path, parse: Callable[[bytes], ConfigDict]) -> ConfigDict:
    path = run / "config.json"
    if not path.is_file():
        reason = "it has no config.json" if run.is_dir() else "there is no such folder"
        raise UsageError(f"{run} is not a run folder: {reason}")
    check_format(run)
    return read_file(path, parse, error=UsageError, advice=_OTHER_WORKDIR)


def read_summary(run: Path) -> dict[str, Any] | None:
    """The result of a run or of several seeds, see `train.loop.train`; None if it has not ended.

    Raises:
      RunError: the file is damaged.
    """
    path = run / "summary.json"
    if not path.is_file():
        return None
    return read_file(path, parse_summary, advice="remove it and run the same command again")


def parse_summary(text: bytes) -> dict[str, Any]:
    """Returns what is in a summary.json, a `Summary` or a `SeedsSummary`.

    Raises:
      ValueError: it is neither.
    """
    tree = parse_json(text, dict)
    return dict(as_type(tree, SeedsSummary) if "seeds" in tree else as_type(tree, Summary))


def _write_session(run: Path) -> None:
    """Adds a line about this process: time, command, host, devices, versions, commit."""
    devices = jax.devices()
    session = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "host": socket.gethostname(),
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} processes",
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
    }
    append_line(run / SESSIONS, session)


@functools.cache
def _commit() -> str | None:
    """The commit of this code, with "-dirty" if it was changed; None outside of git."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=12")
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
