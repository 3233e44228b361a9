"""Ratios of latencies that were measured in turns."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mbv3_jax.latency.measure import Timing

_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A latency over the first model's: the median over turns, and its 95% interval."""

    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.low <= 1 <= self.high


def ratios(timings: Sequence[Timing]) -> list[Ratio]:
    """Each latency over the first one, turn by turn: what slows a turn slows both.

    The interval is a bootstrap over turns, with a fixed seed.

    Args:
      timings: of `measure_files`, which took turns; at least one.

    Raises:
      ValueError: they have different numbers of turns: not from one measurement.
    """
    if len({len(t.turns) for t in timings}) != 1:
        raise ValueError("timings: expected those of one measurement, with as many turns each")
    turns = np.array([t.turns for t in timings])
    of_turns = turns / turns[0]
    count = turns.shape[1]
    chosen = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    medians = np.median(of_turns[:, chosen], axis=2)
    low, high = np.quantile(medians, (0.025, 0.975), axis=1)
    middle = np.median(of_turns, axis=1)
    return [Ratio(*map(float, row)) for row in zip(middle, low, high, strict=True)]
