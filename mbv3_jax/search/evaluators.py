"""Estimates of accuracy: what an evaluator is, and how far one may be trusted.

Evaluators are `predictor.Predictor`, `proxy.Proxy`, `supernet.training.SharedWeights`, `Corrected`
here, which corrects another one by trainings, and `Table`, which looks up known accuracies.
`agreement` compares estimates with accuracies that the
evaluator has not seen.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mbv3_jax.search.space import Point

# A search that follows an evaluator below this rank correlation mostly follows its noise.
TRUSTED = 0.5


class Evaluator(Protocol):
    """Estimates the accuracy of networks without training each of them to the end."""

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Returns accuracies [N] (fractions) of N points and their standard deviations [N].

        The deviation is 0 where the accuracy is exact.
        """
        ...


class Corrected:
    """An evaluator whose estimates are corrected by the accuracies of some trained networks.

    Shared weights tell which of two networks of equal cost is better, but less well how much
    accuracy a higher cost gains once networks are trained on their own. A regression of the trained
    accuracies on the estimate and on the logarithm of the cost weighs the two.

    Args:
      evaluator: The evaluator.
      cost_of: Returns the costs [N] of N points.
      points, accuracies: The trained networks, at least `LEAST`, and their accuracies [N].
    """

    LEAST = 5

    def __init__(
        self,
        evaluator: Evaluator,
        cost_of: Callable[[Sequence[Point]], np.ndarray],
        points: Sequence[Point],
        accuracies: ArrayLike,
    ):
        self._evaluator, self._cost_of = evaluator, cost_of
        known, terms = np.asarray(accuracies, float), self._terms(points)
        self._factors = np.linalg.lstsq(terms, known, rcond=None)[0]
        left = known - terms @ self._factors
        self._deviation = float(np.sqrt(np.sum(left**2) / (len(known) - terms.shape[1])))

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the corrected estimates [N] and the deviation [N] of a training from them."""
        return self._terms(points) @ self._factors, np.full(len(points), self._deviation)

    def _terms(self, points: Sequence[Point]) -> np.ndarray:
        estimates = np.asarray(self._evaluator.evaluate(points)[0], float)
        return np.stack([np.ones(len(points)), estimates, np.log(self._cost_of(points))], axis=1)


# (points, seed) -> the accuracies [N], as fractions, of one brief training of each point.
TrainBriefly = Callable[[Sequence[Point], int], np.ndarray]


class Table:
    """An evaluator that looks up the accuracies of networks which have all been trained.

    Args:
      accuracies: The accuracies (fractions) of each canonical point, one for each seed.
    """

    def __init__(self, accuracies: Mapping[Point, Sequence[float]]):
        self._mean = {p: float(np.mean(a)) for p, a in accuracies.items()}
        # The standard error of the mean; it is unknown with a single seed.
        self._error = {
            p: float(np.std(a, ddof=1) / np.sqrt(len(a))) if len(a) > 1 else float("nan")
            for p, a in accuracies.items()
        }

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the means over the seeds [N] and their standard errors [N].

        Raises:
          ValueError: A point is not in the table.
        """
        missing = [p for p in points if tuple(p) not in self._mean]
        if missing:
            raise ValueError(f"table: {len(missing)} points are not in it, the first {missing[0]}")
        rows = [tuple(p) for p in points]
        return np.array([self._mean[p] for p in rows]), np.array([self._error[p] for p in rows])


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Rank correlations of an evaluator's estimates with held-out accuracies.

    Attributes:
      spearman, kendall: NaN where either side is constant or has fewer than two networks.
      count: The number of networks that were compared.
      reliability: The split-half reliability of the held-out accuracies, if it is known. No
        estimate can be expected to correlate with them better than its square root.
    """

    spearman: float
    kendall: float
    count: int
    reliability: float | None = None

    @property
    def trusted(self) -> bool:
        return self.spearman >= TRUSTED  # False for NaN

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of Spearman's correlation; None for fewer than four networks.

        By Fisher's transform, with the variance of Bonett and Wright (Psychometrika 65, 2000). For
        10 networks with a correlation of 0 it reaches from about -0.63 to 0.63.
        """
        if self.count < 4 or not np.isfinite(self.spearman):
            return None
        found = np.clip(self.spearman, -1 + 1e-9, 1 - 1e-9)
        half = stats.norm.ppf(0.975) * np.sqrt((1 + found**2 / 2) / (self.count - 3))
        low, high = np.tanh(np.arctanh(found) + np.array([-half, half]))
        return float(low), float(high)

    def describe(self) -> str:
        """Returns a line to print, and a warning if a search should not rely on the evaluator."""
        truth = (
            "" if self.reliability is None else f"; truth's own reliability {self.reliability:.2f}"
        )
        interval = self.interval
        between = "" if interval is None else f" (95%: {interval[0]:.2f} to {interval[1]:.2f})"
        line = (
            f"evaluator against held-out accuracy: Spearman {self.spearman:.2f}{between}, Kendall "
            f"{self.kendall:.2f}, {self.count} networks{truth}"
        )
        if not self.trusted:
            line += (
                f"\nwarning: below {TRUSTED}, the search rests on a bad evaluator; its choice is "
                "little better than a random one. More networks trained, or longer, would help"
            )
        return line


def agreement(
    estimates: ArrayLike, held_out: ArrayLike, reliability: float | None = None
) -> Agreement:
    """Compares estimates [N] with accuracies [N] that the evaluator has not seen.

    Raises:
      ValueError: The two are not vectors of the same length.
    """
    a, b = np.asarray(estimates, float), np.asarray(held_out, float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"agreement: got {a.shape} and {b.shape}, expected two equal [N]")
    if min(len(set(a)), len(set(b))) < 2:
        return Agreement(float("nan"), float("nan"), len(a), reliability)
    spearman, kendall = stats.spearmanr(a, b)[0], stats.kendalltau(a, b)[0]
    return Agreement(float(spearman), float(kendall), len(a), reliability)


def split_half_reliability(accuracies: np.ndarray) -> float:
    """Returns how well the mean accuracies over the seeds would be reproduced with other seeds.

    This is the mean correlation between two halves of the seeds over all ways to halve them,
    stepped up to all seeds by the Spearman-Brown formula 2r / (1 + r).

    Args:
      accuracies: [networks, seeds].

    Raises:
      ValueError: There are fewer than two seeds.
    """
    seeds = accuracies.shape[1]
    if seeds < 2:
        raise ValueError(f"reliability: got {seeds} seeds, expected at least 2")
    half, correlations = seeds // 2, []
    for some in itertools.combinations(range(seeds), half):
        others = [s for s in range(seeds) if s not in some][:half]
        a, b = accuracies[:, list(some)].mean(1), accuracies[:, others].mean(1)
        correlations.append(np.corrcoef(a, b)[0, 1])
    r = float(np.mean(correlations))
    return 2 * r / (1 + r)


def half_width(values: ArrayLike) -> float:
    """Returns half of the 95% interval of the mean of N >= 2 values (Student's t)."""
    return float(stats.sem(values) * stats.t.ppf(0.975, np.size(values) - 1))
