"""Brief trainings of candidates by the real trainer, each in a run folder of its own.

Several processes may share the work, on all machines that see the folder. `Trainings` lists the
trainings it needs in `wanted.json`, and `work` does them from the end of the list. The lock of a
run folder says who is training there; when a process is killed, another one resumes its training.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch.spec import spec_to_json
from mbv3_jax.core.errors import InUse, UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.core.json_values import read_json
from mbv3_jax.run.folder import hold_inputs, lock_folder, read_summary
from mbv3_jax.search.space import Point, Space
from mbv3_jax.train.experiment import Experiment
from mbv3_jax.train.hierarchy import hierarchy_text
from mbv3_jax.train.loop import Announce, on_data, train
from mbv3_jax.train.teacher import read_teacher

WANTED = "wanted.json"
_PATIENCE = 2.0  # seconds until a training that another process holds is looked at again


class _Entry(TypedDict):
    """A training in wanted.json."""

    spec: str
    seed: int
    run: str


@dataclasses.dataclass
class Trainings:
    """trainings(points, seed) -> top-1 [N] on the held-out split, by one training of each point.

    Attributes:
      space: The space of the points.
      config: The configuration of a run, as `configs/found.py:spec=,TASK` returns it; `spec` and
        `seed` are set here. Its data should hold out a split for choosing, not the one that is
        reported at the end (clutter: data.eval_split=validation).
      folder: Holds a run folder for each point and seed. Finished runs are not repeated, and
        interrupted ones are resumed.
      console: Where progress is printed.
    """

    space: Space
    config: ConfigDict
    folder: Path
    console: Console | None = None

    def __post_init__(self):
        self._announced = False
        if self.config.net.in_channels not in (None, 3):  # costs are those of colour images
            raise UsageError(
                f"config: brief.net.in_channels: got {self.config.net.in_channels}, but the "
                "networks of a search take 3"
            )

    def __call__(self, points: Sequence[Point], seed: int) -> np.ndarray:
        entries = [self._entry(tuple(point), seed) for point in points]
        write_atomically(self.folder / WANTED, json.dumps(entries))
        missing = list(entries)
        while missing:
            missing = [e for e in missing if not self._train(e)]
            if missing:  # other processes hold these, and may be killed
                time.sleep(_PATIENCE)
        return np.array([_top1(Path(entry["run"])) for entry in entries])

    def _train(self, entry: _Entry) -> bool:
        return _train_entry(self.config, entry, self.console, self._announce)

    def _announce(self, experiment: Experiment, run: Path) -> list[str]:
        """Prints, once, what all trainings have in common."""
        lines = [] if self._announced else on_data(experiment)
        self._announced = True
        return lines

    def run_folder(self, point: Point, seed: int) -> Path:
        """Returns the run folder of a point's training."""
        return self.folder / f"{'-'.join(map(str, point))}_seed{seed}"

    def _entry(self, point: Point, seed: int) -> _Entry:
        """Writes the network's file; returns the entry of wanted.json."""
        specs = self.folder / "specs"
        specs.mkdir(parents=True, exist_ok=True)
        file = specs / f"{'-'.join(map(str, point))}.json"
        text = spec_to_json(self.space.to_spec(point))
        if not file.exists() or file.read_bytes() != text.encode():
            write_atomically(file, text)
        return {"spec": str(file), "seed": seed, "run": str(self.run_folder(point, seed))}


def work(
    config: ConfigDict,
    folder: Path,
    ended: Callable[[], bool],
    console: Console | None = None,
) -> int:
    """Does the trainings that another process's `Trainings` lists, the last first.

    Args:
      config, folder: Those of the other process. Relative paths start at the directory where that
        process was started.
      ended: Returns whether no more trainings will be needed.
      console: Where progress is printed.

    Returns:
      The number of trainings that this process has finished.
    """
    count = 0
    while not ended():
        path = folder / WANTED
        entries = read_json(path, list[_Entry]) if path.exists() else []
        open_entries = [e for e in reversed(entries) if read_summary(Path(e["run"])) is None]
        done = next((e for e in open_entries if _train_entry(config, e, console, _nothing)), None)
        count += done is not None
        if done is None:
            time.sleep(_PATIENCE)
    return count


def _hold_inputs(config: ConfigDict, folder: Path) -> None:
    """All candidates of a search learn from the same, whenever they are trained."""
    given = config.get("teacher")  # absent in older folders
    paths = (given,) if isinstance(given, str) else given or ()
    teachers = [read_teacher(path).record() for path in paths]
    loss = config.get("loss") or {}  # a search's own has none
    try:
        hierarchy = hierarchy_text(loss["hierarchy"]) if loss.get("hierarchy") else None
    except ValueError as e:
        raise UsageError(f"config: {e}") from e
    hold_inputs(folder, teachers, hierarchy, "search in another folder")


def _nothing(experiment: Experiment, run: Path) -> list[str]:
    return []


def _train_entry(
    config: ConfigDict, entry: _Entry, console: Console | None, announce: Announce
) -> bool:
    """Does a training of wanted.json; returns False if another process is doing it."""
    run = Path(entry["run"])
    run.mkdir(parents=True, exist_ok=True)
    try:
        # The lock is tried often while others train, and opening the data would take longer.
        lock_folder(run).close()
    except InUse:
        return False
    _hold_inputs(config, run.parent)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.spec, config.seed = entry["spec"], entry["seed"]
    try:
        train(config.lock(), run, console, announce=announce)
    except InUse:
        return False
    return True


def _top1(run: Path) -> float:
    summary = read_summary(run)
    assert summary is not None, f"{run} has just been trained"
    return summary["eval"]["top1"]
