"""The front of accuracy and cost: NSGA-II by pymoo, and the measure of fronts."""

from collections.abc import Callable, Sequence

import numpy as np

from mbv3_jax.search.space import Point, Space
from mbv3_jax.train.errors import UsageError


def nsga2(
    space: Space,
    objectives: Callable[[Sequence[Point]], tuple[np.ndarray, np.ndarray]],
    *,
    generations: int,
    population: int = 40,
    seed: int = 0,
) -> list[tuple[Point, float, float]]:
    """The points that no other found point surpasses in both accuracy and cost.

    Args:
      space: where.
      objectives: points -> accuracy [N], cost [N].
      generations, population: `generations * population` points are evaluated.
      seed: decides everything.

    Returns:
      (point, accuracy, cost), the cheapest first.

    Raises:
      UsageError: pymoo is not installed.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling
        from pymoo.optimize import minimize
    except ImportError as e:
        raise UsageError(f"NSGA-II: {e}; pip install -r requirements-search.txt") from e
    seen: dict[Point, tuple[float, float]] = {}

    class Networks(Problem):
        def __init__(self):
            upper = [len(d.choices) - 1 for d in space.decisions]
            super().__init__(n_var=len(upper), n_obj=2, xl=0, xu=upper, vtype=int)

        def _evaluate(self, x, out, *args, **kwargs):
            points = [space.canonical(row) for row in x]
            accuracy, costs = objectives(points)
            values = zip(np.asarray(accuracy).tolist(), np.asarray(costs).tolist(), strict=True)
            seen.update(zip(points, values, strict=True))
            out["F"] = np.stack([-np.asarray(accuracy, float), np.asarray(costs, float)], 1)

    algorithm = NSGA2(
        pop_size=population,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=3, vtype=float, repair=RoundingRepair()),
        mutation=PM(eta=3, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    minimize(Networks(), algorithm, ("n_gen", generations), seed=seed, verbose=False)
    points = list(seen)
    accuracy, costs = (np.array([seen[p][i] for p in points]) for i in range(2))
    return [(points[i], float(accuracy[i]), float(costs[i])) for i in front(accuracy, costs)]


def front(accuracy: np.ndarray, costs: np.ndarray) -> list[int]:
    """Which of N points no other surpasses: not at the same cost or less more accurate."""
    best, found = -np.inf, []
    for i in np.lexsort((-np.asarray(accuracy), np.asarray(costs))):
        if accuracy[i] > best:
            best = accuracy[i]
            found.append(int(i))
    return found


def hypervolume(accuracy: np.ndarray, costs: np.ndarray, *, worst: float, most: float) -> float:
    """The area that N points surpass, above accuracy `worst` and below cost `most`.

    Costs are best given as logarithms or as parts of a target: the area is in units of both.
    """
    area, level = 0.0, worst
    for i in front(accuracy, costs):
        if costs[i] < most and accuracy[i] > level:
            area += (accuracy[i] - level) * (most - costs[i])
            level = accuracy[i]
    return float(area)
