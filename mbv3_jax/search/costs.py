"""Costs of points by name, each computed once."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.search.space import Point, Space


class Costs:
    """costs(points) -> {name: float array [N]}.

    Args:
      space: whose points it takes.
      functions: spec -> number by name: those of `rewards.COUNTS`, or a latency model's.
    """

    def __init__(self, space: Space, functions: Mapping[str, Callable[[NetSpec], float]]):
        self.space, self.functions = space, dict(functions)
        self._known: dict[Point, tuple[float, ...]] = {}

    def __call__(self, points: Sequence[Point]) -> dict[str, np.ndarray]:
        for point in map(tuple, points):
            if point not in self._known:
                spec = self.space.to_spec(point)
                self._known[point] = tuple(float(f(spec)) for f in self.functions.values())
        rows = np.array([self._known[tuple(p)] for p in points]).reshape(
            len(points), len(self.functions)
        )
        return dict(zip(self.functions, rows.T, strict=True))
