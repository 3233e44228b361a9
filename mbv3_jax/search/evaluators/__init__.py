"""How accurate networks are, without training each to the end.

An evaluator is anything with `evaluate(points) -> (accuracy, uncertainty)`: two float arrays [N],
fractions, for N points of its space; uncertainty is one standard deviation, 0 where it is exact.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from mbv3_jax.search.space import Point


class Evaluator(Protocol):
    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]: ...


# (points, seed) -> accuracies [N], fractions, of one training each.
TrainBriefly = Callable[[Sequence[Point], int], np.ndarray]
