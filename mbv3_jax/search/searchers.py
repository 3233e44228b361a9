"""Searchers that learn from the rewards of the points they asked for, and the front of a space.

`Random`, `LocalSearch`, `Evolution` and `policy_gradient.PolicyGradient` share the protocol of
`Searcher`: `ask` for points, `tell` their rewards, save and load the `state`. NSGA-II works on
accuracy and cost instead of on one reward, so that it is a function. `strategies.SEARCHERS` lists
all of them.
"""

import abc
import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import install
from mbv3_jax.search.space import Point, Space

# How often `Random` draws again to find networks that it has not asked for yet.
_TRIES = 100


class Searcher(abc.ABC):
    """A search in a space that its seed determines, and that can be saved and resumed.

    Args:
      space: The space of the points.
      seed: Seed of all random decisions.
    """

    def __init__(self, space: Space, seed: int | tuple[int, ...] = 0):
        self.space, self.seed = space, seed
        self.rng = np.random.default_rng(seed)
        self._best: tuple[Point, float] | None = None

    @abc.abstractmethod
    def ask(self, count: int) -> list[Point]:
        """Returns canonical points to evaluate next."""

    def tell(self, points: Sequence[Point], rewards: ArrayLike) -> None:
        """Learns from the rewards [N] of N points.

        Raises:
          ValueError: The number of rewards differs, or one is not a finite number.
        """
        values = np.asarray(rewards, float)
        if values.shape != (len(points),) or not np.all(np.isfinite(values)):
            raise ValueError(f"rewards: got {values}, expected {len(points)} finite numbers")
        for point, reward in zip(points, values.tolist(), strict=True):
            if self._best is None or reward > self._best[1]:
                self._best = tuple(point), reward
        self.learn(points, values)

    def learn(self, points: Sequence[Point], rewards: np.ndarray) -> None:  # noqa: B027
        """Updates the searcher by checked rewards; a random search has nothing to update."""

    def best(self) -> tuple[Point, float]:
        """Returns the point with the highest reward so far, the first of equals.

        Raises:
          ValueError: No reward was told yet.
        """
        if self._best is None:
            raise ValueError("search: no reward was told yet")
        return self._best

    def state(self) -> dict:
        """Returns what `load` takes."""
        best = self._best and {"point": list(self._best[0]), "reward": self._best[1]}
        return {"rng": self.rng.bit_generator.state, "best": best}

    def load(self, state: dict) -> None:
        """Continues from what `state` returned."""
        self.rng.bit_generator.state = state["rng"]
        best = state["best"]
        self._best = best and (tuple(best["point"]), best["reward"])


def run(
    searcher: Searcher,
    reward: Callable[[Sequence[Point]], ArrayLike],
    *,
    steps: int,
    batch: int,
    after_step: Callable[[int, Sequence[Point], np.ndarray], None] = lambda *_: None,
) -> tuple[Point, float]:
    """Asks for `batch` points and tells their rewards, `steps` times.

    Args:
      searcher: The searcher.
      reward: Returns the rewards [N] of N points.
      steps: The number of updates.
      batch: The number of points for each update.
      after_step: Called with the step from 0, the points and their rewards.

    Returns:
      The best point and its reward.
    """
    for step in range(steps):
        points = searcher.ask(batch)
        rewards = np.asarray(reward(points), float)
        searcher.tell(points, rewards)
        after_step(step, points, rewards)
    return searcher.best()


class Random(Searcher):
    """Draws every decision uniformly: the baseline that every other searcher must beat.

    No network is drawn twice as long as new ones are easily found.
    """

    def __init__(self, space: Space, seed: int = 0):
        super().__init__(space, seed)
        self._seen: set[Point] = set()

    def ask(self, count: int) -> list[Point]:
        fresh: list[Point] = []
        for _ in range(_TRIES):
            for point in self.space.sample(self.rng, count):
                if point not in self._seen and len(fresh) < count:
                    self._seen.add(point)
                    fresh.append(point)
            if len(fresh) == count:
                return fresh
        return fresh + self.space.sample(self.rng, count - len(fresh))

    def state(self) -> dict:
        return super().state() | {"seen": sorted(map(list, self._seen))}

    def load(self, state: dict) -> None:
        super().load(state)
        self._seen = set(map(tuple, state["seen"]))


class LocalSearch(Searcher):
    """Changes up to `changes` decisions of the best point so far, drawn at random.

    It begins with random points. More than one decision is changed at a time, because a wider stage
    may be an improvement only if another one becomes narrower.

    Args:
      space, seed: As for `Searcher`.
      changes: The most decisions that are changed at a time.
    """

    def __init__(self, space: Space, seed: int | tuple[int, ...] = 0, *, changes: int = 2):
        super().__init__(space, seed)
        self.changes = changes

    def ask(self, count: int) -> list[Point]:
        if self._best is None:
            return self.space.sample(self.rng, count)
        points = []
        for changes in self.rng.integers(1, self.changes + 1, size=count):
            point = self._best[0]
            for _ in range(changes):
                point = self.space.mutate(point, self.rng)
            points.append(point)
        return points


class Evolution(Searcher):
    """Regularised evolution (Real et al., arXiv 1802.01548): tournaments, mutation, death by age.

    A child is the best of `tournament` random members, mutated once; it replaces the oldest
    member. The first `population` points are random.

    Args:
      space, seed: As for `Searcher`.
      population: The number of members. The paper's 100 and tournaments of 25 are for 20,000
        networks; the defaults here are for a few hundred.
      tournament: The number of members that each parent is the best of.

    Raises:
      ValueError: The tournament is larger than the population, or below 1.
    """

    def __init__(self, space: Space, seed: int = 0, *, population: int = 20, tournament: int = 5):
        super().__init__(space, seed)
        if not 1 <= tournament <= population:
            raise ValueError(
                f"evolution.tournament: got {tournament}, expected 1 to population {population}"
            )
        self.population, self.tournament = population, tournament
        # Pairs of point and reward, the oldest first.
        self._living: collections.deque[tuple[Point, float]] = collections.deque(maxlen=population)
        self._asked = 0

    def ask(self, count: int) -> list[Point]:
        points: list[Point] = []
        for _ in range(count):
            if self._asked < self.population or not self._living:
                points += self.space.sample(self.rng, 1)
            else:
                contenders = self.rng.integers(len(self._living), size=self.tournament)
                parent = max((self._living[i] for i in contenders), key=lambda member: member[1])
                points.append(self.space.mutate(parent[0], self.rng))
            self._asked += 1
        return points

    def learn(self, points: Sequence[Point], rewards: np.ndarray) -> None:
        self._living.extend((tuple(p), r) for p, r in zip(points, rewards.tolist(), strict=True))

    def state(self) -> dict:
        living = [[list(p), r] for p, r in self._living]
        return super().state() | {"living": living, "asked": self._asked}

    def load(self, state: dict) -> None:
        super().load(state)
        self._living.clear()
        self._living.extend((tuple(p), r) for p, r in state["living"])
        self._asked = state["asked"]


def front(accuracy: ArrayLike, costs: ArrayLike) -> list[int]:
    """Returns the indices of the Pareto-optimal points among N, the cheapest first.

    A point is left out if another one that costs no more is at least as accurate.
    """
    accuracies, best, indices = np.asarray(accuracy), -np.inf, []
    for i in np.lexsort((-accuracies, np.asarray(costs))):
        if accuracies[i] > best:
            best = accuracies[i]
            indices.append(int(i))
    return indices


def hypervolume(accuracy: np.ndarray, costs: np.ndarray, *, worst: float, most: float) -> float:
    """Returns the area that N points dominate, above accuracy `worst` and below cost `most`.

    The area is in units of accuracy times cost, so that costs are best given as logarithms or as
    fractions of a target.
    """
    area, level = 0.0, worst
    for i in front(accuracy, costs):
        if costs[i] < most and accuracy[i] > level:
            area += (accuracy[i] - level) * (most - costs[i])
            level = accuracy[i]
    return float(area)


def nsga2(
    space: Space,
    objectives: Callable[[Sequence[Point]], tuple[ArrayLike, ArrayLike]],
    *,
    generations: int,
    population: int = 40,
    seed: int = 0,
) -> list[tuple[Point, float, float]]:
    """Finds the front of accuracy and cost by NSGA-II (Deb et al. 2002, as pymoo has it).

    Args:
      space: The space of the points.
      objectives: Returns the accuracies [N] and the costs [N] of N points.
      generations, population: `generations * population` points are evaluated.
      seed: Seed of all random decisions.

    Returns:
      (point, accuracy, cost) of each visited point that no other visited point dominates, the
      cheapest first.

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
        raise UsageError(f"NSGA-II: {e}; {install('search')}") from e
    seen: dict[Point, tuple[float, float]] = {}

    class Networks(Problem):
        def __init__(self):
            upper = [len(d.choices) - 1 for d in space.decisions]
            super().__init__(n_var=len(upper), n_obj=2, xl=0, xu=upper, vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args, **kwargs) -> None:
            points = [space.canonical(row) for row in x]
            accuracy, costs = (np.asarray(values, float) for values in objectives(points))
            pairs = zip(accuracy.tolist(), costs.tolist(), strict=True)
            seen.update(zip(points, pairs, strict=True))
            out["F"] = np.stack([-accuracy, costs], 1)

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
