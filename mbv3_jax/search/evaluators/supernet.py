"""Shared weights as an evaluator."""

from collections.abc import Sequence

import numpy as np

from mbv3_jax.search.space import Point
from mbv3_jax.search.supernet.training import Programs

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
