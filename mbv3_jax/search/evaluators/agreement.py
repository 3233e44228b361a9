"""How far an evaluator may be trusted: its ranking held against accuracies it has not seen."""

import dataclasses
from collections.abc import Sequence

import numpy as np

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
