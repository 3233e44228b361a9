"""A table of true results, as an evaluator; and the one that comes with the space `toy`."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mbv3_jax.search.evaluators.agreement import agreement, split_half_reliability
from mbv3_jax.search.space import Point

TOY_TRUTH = Path(__file__).resolve().parent.parent / "data" / "toy_truth.csv"


class Table:
    """Accuracies looked up.

    Args:
      accuracies: of canonical points: a list of one per seed, fractions.
    """

    def __init__(self, accuracies: Mapping[Point, Sequence[float]]):
        self._mean = {p: float(np.mean(a)) for p, a in accuracies.items()}
        # Of the mean; with one seed nothing is known about it.
        self._error = {
            p: float(np.std(a, ddof=1) / np.sqrt(len(a))) if len(a) > 1 else float("nan")
            for p, a in accuracies.items()
        }

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Means over the seeds [N] and their standard errors [N].

        Raises:
          ValueError: a point is not in the table.
        """
        missing = [p for p in points if tuple(p) not in self._mean]
        if missing:
            raise ValueError(f"table: {len(missing)} points are not in it, the first {missing[0]}")
        rows = [tuple(p) for p in points]
        return np.array([self._mean[p] for p in rows]), np.array([self._error[p] for p in rows])


class ToyTable:
    """Every network of the space `toy` trained with several seeds, briefly and long.

    `validation` and `test` are float arrays [networks, seeds] of the long trainings, in the order
    of `points`; `brief` the same of the brief ones, on the validation split.
    """

    def __init__(self, path: Path = TOY_TRUTH):
        found: dict = {}
        with path.open(newline="") as f:
            for row in csv.DictReader(f):
                point = tuple(map(int, row["point"].split("-")))
                value = float(row["validation"]), float(row["test"])
                found.setdefault(int(row["steps"]), {})[point, int(row["seed"])] = value
        self.brief_steps, self.steps = min(found), max(found)
        long, brief = found[self.steps], found[self.brief_steps]
        self.points = sorted({p for p, _ in long})
        seeds = sorted({s for _, s in long})
        seeds = [s for s in seeds if all((p, s) in long for p in self.points)]
        shorts = [s for s in seeds if all((p, s) in brief for p in self.points)]
        values = np.array([[long[p, s] for s in seeds] for p in self.points])
        self.validation, self.test = values[..., 0], values[..., 1]
        self.brief = np.array([[brief[p, s][0] for s in shorts] for p in self.points])
        self._row = {p: i for i, p in enumerate(self.points)}

    def rows(self, points: Sequence[Point]) -> np.ndarray:
        """Where points are in the arrays."""
        return np.array([self._row[tuple(p)] for p in points])

    def evaluator(self) -> Table:
        """What a search that knew the validation accuracy of every network would ask."""
        return Table(dict(zip(self.points, self.validation.tolist(), strict=True)))

    def describe(self) -> str:
        """Spread and reliability, in Markdown."""
        mean, n = self.test.mean(1), self.brief.shape[1]
        own = self.test.std(1, ddof=1).mean()
        one = [agreement(self.brief[:, i], mean).spearman for i in range(n)]
        return (
            f"{len(self.points)} networks, {self.test.shape[1]} seeds of {self.steps} steps and "
            f"{n} of {self.brief_steps}. Test accuracy {mean.min():.1%} to {mean.max():.1%}, "
            f"deviation {mean.std():.1%} between networks and {own:.1%} between seeds of one. "
            f"Split-half reliability: test {split_half_reliability(self.test):.3f}, validation "
            f"{split_half_reliability(self.validation):.3f}. Spearman of one brief training with "
            f"the mean test accuracy: {np.mean(one):.3f}; of mean validation: "
            f"{agreement(self.validation.mean(1), mean).spearman:.3f}."
        )
