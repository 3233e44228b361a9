"""The table of the networks that benchmarks/toy_truth.py has trained."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mbv3_jax.search.evaluators import Table, agreement, split_half_reliability
from mbv3_jax.search.space import Point

TOY_TRUTH = Path(__file__).parent / "toy_truth.csv"


class ToyTable:
    """Every network of `toy_truth.SPACE`, trained with several seeds, both briefly and longer.

    Attributes:
      points: The networks.
      validation, test: Accuracies [networks, seeds] of the longer trainings.
      brief: Accuracies [networks, seeds] of the brief trainings, on the validation split.
      steps, brief_steps: The length of the trainings.
    """

    def __init__(self, path: Path = TOY_TRUTH):
        rows: dict[int, dict] = {}
        with path.open(newline="") as f:
            for row in csv.DictReader(f):
                point = tuple(map(int, row["point"].split("-")))
                value = float(row["validation"]), float(row["test"])
                rows.setdefault(int(row["steps"]), {})[point, int(row["seed"])] = value
        self.brief_steps, self.steps = min(rows), max(rows)
        long, brief = rows[self.steps], rows[self.brief_steps]
        self.points = sorted({p for p, _ in long})
        seeds = sorted({s for _, s in long})
        seeds = [s for s in seeds if all((p, s) in long for p in self.points)]
        shorts = [s for s in seeds if all((p, s) in brief for p in self.points)]
        values = np.array([[long[p, s] for s in seeds] for p in self.points])
        self.validation, self.test = values[..., 0], values[..., 1]
        self.brief = np.array([[brief[p, s][0] for s in shorts] for p in self.points])
        self._row = {p: i for i, p in enumerate(self.points)}

    def rows(self, points: Sequence[Point]) -> np.ndarray:
        """Returns the rows [N] of points in the arrays."""
        return np.array([self._row[tuple(p)] for p in points])

    def evaluator(self) -> Table:
        """Returns the evaluator of a search that knows every network's validation accuracy."""
        return Table(dict(zip(self.points, self.validation.tolist(), strict=True)))

    def describe(self) -> str:
        """Describes spread and reliability, as a list in Markdown."""
        mean, n = self.test.mean(1), self.brief.shape[1]
        of_seeds = self.test.std(1, ddof=1).mean()
        one = [agreement(self.brief[:, i], mean).spearman for i in range(n)]
        return (
            f"- {self.test.shape[1]} trainings of each network take {self.steps} steps, and {n} "
            f"brief ones {self.brief_steps}.\n"
            f"- Test accuracy ranges from {mean.min():.1%} to {mean.max():.1%}. Its standard "
            f"deviation is {mean.std():.1%}\n  between networks, and {of_seeds:.1%} between the "
            "seeds of a network.\n"
            f"- Split-half reliability is {split_half_reliability(self.test):.3f} for test "
            f"accuracy and {split_half_reliability(self.validation):.3f} for\n  validation "
            "accuracy.\n"
            "- Spearman's correlation with the mean test accuracy is "
            f"{np.mean(one):.3f} for one brief training and\n"
            f"  {agreement(self.validation.mean(1), mean).spearman:.3f} for the mean validation "
            "accuracy."
        )
