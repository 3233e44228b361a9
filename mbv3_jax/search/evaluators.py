"""How accurate networks are, without training each to the end.

An evaluator is anything with `evaluate(points) -> (accuracy, uncertainty)`: two float arrays [N],
fractions, for N points of its space; uncertainty is one standard deviation, 0 where it is exact.
"""

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mbv3_jax.search.space import Point
from mbv3_jax.search.supernet.training import Programs


class Evaluator(Protocol):
    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]: ...


# (points, seed) -> accuracies [N], fractions, of one training each.
TrainBriefly = Callable[[Sequence[Point], int], np.ndarray]


# How far an evaluator may be trusted: its ranking held against accuracies it has not seen.

# Below this rank correlation a search follows the evaluator's noise more than the networks.
TRUSTED = 0.5


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Rank correlations of estimates with held-out accuracies.

    spearman, kendall: nan where either side is constant, or there are fewer than two networks.
    count: networks compared.
    reliability: the split-half reliability of the held-out accuracies, if known; no estimate can
      correlate with them better than about its root.
    """

    spearman: float
    kendall: float
    count: int
    reliability: float | None = None

    @property
    def trusted(self) -> bool:
        return self.spearman >= TRUSTED  # nan is not

    def describe(self) -> str:
        """A line, and a second one where a search should not rest on it."""
        truth = (
            "" if self.reliability is None else f"; truth's own reliability {self.reliability:.2f}"
        )
        line = (
            f"evaluator against held-out accuracy: Spearman {self.spearman:.2f}, Kendall "
            f"{self.kendall:.2f}, {self.count} networks{truth}"
        )
        if not self.trusted:
            line += (
                f"\nwarning: below {TRUSTED}, the search rests on a bad evaluator; its choice is "
                "little better than a random one. More networks trained, or longer, would help"
            )
        return line


def agreement(
    estimated: Sequence[float], held_out: Sequence[float], reliability: float | None = None
) -> Agreement:
    """Compares estimates [N] with accuracies [N] that the evaluator has not seen."""
    from scipy import stats

    a, b = np.asarray(estimated, float), np.asarray(held_out, float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"agreement: got {a.shape} and {b.shape}, expected two equal [N]")
    if min(len(set(a)), len(set(b))) < 2:
        return Agreement(float("nan"), float("nan"), len(a), reliability)
    spearman, kendall = stats.spearmanr(a, b)[0], stats.kendalltau(a, b)[0]
    return Agreement(float(spearman), float(kendall), len(a), reliability)


def split_half_reliability(accuracies: np.ndarray) -> float:
    """How well accuracies [N networks, S seeds], averaged over the seeds, would repeat.

    The mean correlation of one half of the seeds with the other, over all halvings, stepped up to
    all seeds by Spearman and Brown's formula 2r / (1 + r).
    """
    import itertools

    seeds = accuracies.shape[1]
    if seeds < 2:
        raise ValueError(f"reliability: got {seeds} seeds, expected at least 2")
    half, found = seeds // 2, []
    for some in itertools.combinations(range(seeds), half):
        others = [s for s in range(seeds) if s not in some][:half]
        a, b = accuracies[:, list(some)].mean(1), accuracies[:, others].mean(1)
        found.append(np.corrcoef(a, b)[0, 1])
    r = float(np.mean(found))
    return 2 * r / (1 + r)


# A table of true results, as an evaluator; and the one that comes with the space `toy`.

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


# Shared weights as an evaluator.

_TOGETHER = 8  # points in one call; few enough that the last call wastes little


class SharedWeights:
    """Accuracies on held-out batches with the weights of a supernet.

    Args:
      programs: of the supernet.
      params: its weights.
      batches: held-out host batches of one size; BatchNorm takes each as it is.
    """

    def __init__(self, programs: Programs, params, batches: Sequence[dict]):
        self.programs, self.params, self.batches = programs, params, list(batches)
        if not self.batches:
            raise ValueError("supernet: got no held-out batches")

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Fractions that are right [N], and their standard errors [N] by the number of images."""
        found, count = [], sum(len(b["label"]) for b in self.batches)
        for start in range(0, len(points), _TOGETHER):
            some = list(points[start : start + _TOGETHER])
            padded = some + some[-1:] * (_TOGETHER - len(some))  # one program for all calls
            right = sum(self.programs.correct(self.params, b, padded) for b in self.batches)
            found.append(right[: len(some)] / count)
        accuracy = np.concatenate(found)
        return accuracy, np.sqrt(accuracy * (1 - accuracy) / count)
