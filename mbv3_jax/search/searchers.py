"""What all searchers share: random numbers that can be resumed, and the best point so far."""

import abc
import collections
from collections.abc import Callable, Sequence

import numpy as np

from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import install
from mbv3_jax.search.space import Point, Space


class Searcher(abc.ABC):
    """A search in `space`, decided by `seed`; see the package for the protocol."""

    def __init__(self, space: Space, seed: int = 0):
        self.space, self.seed = space, seed
        self.rng = np.random.default_rng(seed)
        self._best: tuple[Point, float] | None = None

    @abc.abstractmethod
    def ask(self, count: int) -> list[Point]:
        """Canonical points to evaluate next."""

    def tell(self, points: Sequence[Point], rewards: Sequence[float]) -> None:
        """Learns the rewards of points.

        Raises:
          ValueError: not as many rewards, or one that is no finite number.
        """
        rewards = np.asarray(rewards, float)
        if rewards.shape != (len(points),) or not np.all(np.isfinite(rewards)):
            raise ValueError(f"rewards: got {rewards}, expected {len(points)} finite numbers")
        for point, reward in zip(points, rewards.tolist(), strict=True):
            if self._best is None or reward > self._best[1]:
                self._best = tuple(point), reward
        self.learn(points, rewards)

    def learn(self, points: Sequence[Point], rewards: np.ndarray) -> None:  # noqa: B027
        """What a kind of searcher does with the rewards."""

    def best(self) -> tuple[Point, float]:
        """The point with the highest reward told so far, the first of equals.

        Raises:
          ValueError: none was told.
        """
        if self._best is None:
            raise ValueError("search: no reward was told yet")
        return self._best

    def state(self) -> dict:
        """What `load` takes."""
        best = self._best and {"point": list(self._best[0]), "reward": self._best[1]}
        return {"rng": self.rng.bit_generator.state, "best": best}

    def load(self, state: dict) -> None:
        self.rng.bit_generator.state = state["rng"]
        best = state["best"]
        self._best = best and (tuple(best["point"]), best["reward"])


def run(
    searcher: Searcher,
    reward: Callable[[Sequence[Point]], np.ndarray],
    *,
    steps: int,
    batch: int,
    after_step: Callable[[int, Sequence[Point], np.ndarray], None] = lambda *_: None,
) -> tuple[Point, float]:
    """Asks for `batch` points and tells their rewards, `steps` times; returns the best."""
    for step in range(steps):
        points = searcher.ask(batch)
        rewards = np.asarray(reward(points), float)
        searcher.tell(points, rewards)
        after_step(step, points, rewards)
    return searcher.best()


# Random search: the baseline that every other must beat.

_TRIES = 100


class Random(Searcher):
    """Draws every decision evenly, and no network twice while others are easily found."""

    def __init__(self, space, seed: int = 0):
        super().__init__(space, seed)
        self._seen = set()

    def ask(self, count):
        found = []
        for _ in range(_TRIES):
            for point in self.space.sample(self.rng, count):
                if point not in self._seen and len(found) < count:
                    self._seen.add(point)
                    found.append(point)
            if len(found) == count:
                return found
        return found + self.space.sample(self.rng, count - len(found))

    def state(self):
        return super().state() | {"seen": sorted(map(list, self._seen))}

    def load(self, state):
        super().load(state)
        self._seen = set(map(tuple, state["seen"]))


# Regularised evolution (Real et al., arXiv 1802.01548): tournaments, mutation, death by age.


class Evolution(Searcher):
    """The youngest `population` points; a child is the best of `tournament` of them, mutated once.

    The first `population` points are random. The defaults of the paper, 100 and 25, are for
    20,000 networks; the ones here are for some hundreds.
    """

    def __init__(self, space, seed: int = 0, *, population: int = 20, tournament: int = 5):
        super().__init__(space, seed)
        if not 1 <= tournament <= population:
            raise ValueError(
                f"evolution.tournament: got {tournament}, expected 1 to population {population}"
            )
        self.population, self.tournament = population, tournament
        self._living = collections.deque(maxlen=population)  # (point, reward), the oldest first
        self._asked = 0

    def ask(self, count):
        points = []
        for _ in range(count):
            if self._asked < self.population or not self._living:
                points += self.space.sample(self.rng, 1)
            else:
                some = self.rng.integers(len(self._living), size=self.tournament)
                parent = max((self._living[i] for i in some), key=lambda member: member[1])
                points.append(self.space.mutate(parent[0], self.rng))
            self._asked += 1
        return points

    def learn(self, points, rewards: np.ndarray):
        self._living.extend((tuple(p), r) for p, r in zip(points, rewards.tolist(), strict=True))

    def state(self):
        living = [[list(p), r] for p, r in self._living]
        return super().state() | {"living": living, "asked": self._asked}

    def load(self, state):
        super().load(state)
        self._living.clear()
        self._living.extend((tuple(p), r) for p, r in state["living"])
        self._asked = state["asked"]


# The front of accuracy and cost: NSGA-II by pymoo, and the measure of fronts.


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
        raise UsageError(f"NSGA-II: {e}; {install('search')}") from e
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
