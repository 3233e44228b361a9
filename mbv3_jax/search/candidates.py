"""Training candidates with the real trainer: a run folder each, which a second call finds again.

Several processes may share the work, on as many machines as see the folder: `Trainings` lists what
is wanted in `wanted.json`, `work` trains from the other end of the list. The lock of a run folder
says who is at what; what a killed process leaves, another goes on with.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch.spec import spec_to_json
from mbv3_jax.core.errors import InUse
from mbv3_jax.core.files import write_atomically
from mbv3_jax.run.folder import lock_folder, read_summary
from mbv3_jax.search.space import Point, Space

WANTED = "wanted.json"
_PATIENCE = 2.0  # seconds between looks at what another process trains


@dataclasses.dataclass
class Trainings:
    """trainings(points, seed) -> top-1 [N] on the held-out split, one training of each point.

    space: whose points.
    config: of a run, as `configs/found.py:spec=,TASK` gives it; its `spec` and `seed` are set here.
      Its data should hold out a split that is made for choosing, not the one that is reported in
      the end (clutter: data.eval_split=validation).
    folder: holds a run folder for each point and seed. A run that has ended there is not
      repeated, and one that was cut off goes on.
    console: where progress goes.
    """

    space: Space
    config: ConfigDict
    folder: Path
    console: Console | None = None

    def __call__(self, points: Sequence[Point], seed: int) -> np.ndarray:
        wanted = [self._wanted(tuple(point), seed) for point in points]
        write_atomically(self.folder / WANTED, json.dumps(wanted))
        missing = list(wanted)
        while missing:
            missing = [w for w in missing if not _train(self.config, w, self.console)]
            if missing:  # in other hands, which may let go of them
                time.sleep(_PATIENCE)
        return np.array([read_summary(Path(w["run"]))["eval"]["top1"] for w in wanted])

    def run_folder(self, point: Point, seed: int) -> Path:
        """Where the training of a point is."""
        return self.folder / f"{'-'.join(map(str, point))}_seed{seed}"

    def _wanted(self, point: Point, seed: int) -> dict:
        """An entry of wanted.json; the network's file is there."""
        specs = self.folder / "specs"
        specs.mkdir(parents=True, exist_ok=True)
        file = specs / f"{'-'.join(map(str, point))}.json"
        text = spec_to_json(self.space.to_spec(point))
        if not file.exists() or file.read_text() != text:
            write_atomically(file, text)
        return {"spec": str(file), "seed": seed, "run": str(self.run_folder(point, seed))}


def work(
    config: ConfigDict,
    folder: Path,
    ended: Callable[[], bool],
    console: Console | None = None,
) -> int:
    """Trains what another process's `Trainings` want, the last first, until `ended()`.

    Args:
      config, folder: theirs; relative paths are from the directory where that process started.
      ended: whether nothing more will be wanted.
      console: where progress goes.

    Returns:
      How many trainings this process brought to their end.
    """
    count = 0
    while not ended():
        path = folder / WANTED
        wanted = json.loads(path.read_text()) if path.exists() else []
        free = [w for w in reversed(wanted) if read_summary(Path(w["run"])) is None]
        done = next((w for w in free if _train(config, w, console)), None)
        count += done is not None
        if done is None:
            time.sleep(_PATIENCE)
    return count


def _train(config: ConfigDict, wanted: dict, console: Console | None) -> bool:
    """Trains an entry of wanted.json; False where another process is at it."""
    from mbv3_jax.train.loop import train

    run = Path(wanted["run"])
    run.mkdir(parents=True, exist_ok=True)
    try:
        lock_folder(
            run
        ).close()  # asked often while others train; opening the data would take longer
    except InUse:
        return False
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.spec, config.seed = wanted["spec"], wanted["seed"]
    try:
        train(config.lock(), run, console)
    except InUse:
        return False
    return True
