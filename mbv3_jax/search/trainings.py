"""Training candidates with the real trainer: a run folder each, which a second call finds again."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch.spec import to_json
from mbv3_jax.search.space import Point, Space
from mbv3_jax.train.run_folder import write_atomically


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
        return np.array([self._train(tuple(point), seed) for point in points])

    def run_folder(self, point: Point, seed: int) -> Path:
        """Where the training of a point is."""
        return self.folder / f"{'-'.join(map(str, point))}_seed{seed}"

    def _train(self, point: Point, seed: int) -> float:
        from mbv3_jax.train.loop import train

        specs = self.folder / "specs"
        specs.mkdir(parents=True, exist_ok=True)
        file = specs / f"{'-'.join(map(str, point))}.json"
        text = to_json(self.space.to_spec(point))
        if not file.exists() or file.read_text() != text:
            write_atomically(file, text)
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.spec, config.seed = str(file), seed
        return train(config.lock(), self.run_folder(point, seed), self.console)["eval"]["top1"]
