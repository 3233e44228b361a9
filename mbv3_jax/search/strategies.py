"""The registry of searchers: how `config.searcher` becomes a search on any evaluator.

`SEARCHERS` has one entry for each searcher: a factory whose keywords are the options that
`config.searcher` can set. `propose` runs a searcher on an evaluator.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np
from ml_collections import ConfigDict

from mbv3_jax.core.checks import check_whole, choose
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import install, installed
from mbv3_jax.core.registry import call_with_options, option_names
from mbv3_jax.search.evaluators import Evaluator
from mbv3_jax.search.objective import Costs, Reward
from mbv3_jax.search.policy_gradient import POLICIES, PolicyGradient
from mbv3_jax.search.predictor import Predictor
from mbv3_jax.search.proxy import Proxy
from mbv3_jax.search.searchers import Evolution, LocalSearch, Random, Searcher, nsga2, run
from mbv3_jax.search.space import Point, Space

STEPS, BATCH = 300, 16

# The learning rate of each policy, times the number of steps.
_RATES = {"factorised": 1.6, "lstm": 0.6}

# How `propose_trainings` refines what a searcher finds, and the most points that it draws for.
_REFINED, _AT_ONCE, _HOPEFUL = 16, 64, 300

# Called with a step's number from 0, its points and their rewards.
AfterStep = Callable[[int, Sequence[Point], np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a searcher maximises: the reward of an evaluator's accuracy and of the costs."""

    evaluator: Evaluator
    costs: Costs
    reward: Reward

    def __call__(self, points: Sequence[Point]) -> np.ndarray:
        """Returns the rewards [N] of N points."""
        return self.reward(self.accuracies(points), self.costs(points))

    def accuracies(self, points: Sequence[Point]) -> np.ndarray:
        """Returns what the evaluator says [N] of N points."""
        if isinstance(self.evaluator, Predictor | Proxy):  # quicker than with the uncertainty
            return self.evaluator.expect(points)
        return self.evaluator.evaluate(points)[0]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A searcher with its options, ready to be run on any goal.

    Attributes:
      search: Searches with a seed; returns the points it has visited with their rewards.
      finds_front: Whether these are only the front of accuracy and cost.
    """

    search: Callable[[Goal, int, AfterStep], Mapping[Point, float]]
    finds_front: bool = False


def _policy_gradient(
    space: Space, *, steps: int = STEPS, batch: int = BATCH, policy: str = "factorised"
) -> Strategy:
    """REINFORCE; the learning rate suits the number of steps."""
    choose("searcher.policy", policy, POLICIES)
    rate = _RATES[policy] / _check_effort(steps, batch)

    def create(seed: int) -> Searcher:
        return PolicyGradient(space, seed, total_steps=steps, policy=policy, learning_rate=rate)

    return _by_reward(create, steps, batch)


def _evolution(
    space: Space,
    *,
    steps: int = STEPS,
    batch: int = BATCH,
    population: int = 20,
    tournament: int = 5,
) -> Strategy:
    """Regularised evolution."""
    _check_effort(steps, batch)
    check_whole("searcher.population", population, 1)
    check_whole("searcher.tournament", tournament, 1, population)

    def create(seed: int) -> Searcher:
        return Evolution(space, seed, population=population, tournament=tournament)

    return _by_reward(create, steps, batch)


def _local_search(
    space: Space, *, steps: int = STEPS, batch: int = BATCH, changes: int = 2
) -> Strategy:
    """The best so far, changed in a few decisions."""
    _check_effort(steps, batch)
    check_whole("searcher.changes", changes, 1)
    return _by_reward(lambda seed: LocalSearch(space, seed, changes=changes), steps, batch)


def _random(space: Space, *, steps: int = STEPS, batch: int = BATCH) -> Strategy:
    """Random points, the baseline."""
    _check_effort(steps, batch)
    return _by_reward(lambda seed: Random(space, seed), steps, batch)


def _nsga2(space: Space, *, steps: int = STEPS, batch: int = BATCH) -> Strategy:
    """NSGA-II with `steps` generations of `batch` points; returns only the front."""
    _check_effort(steps, batch)
    if not installed("pymoo"):
        raise UsageError(f"config.searcher.name: nsga2 needs pymoo: {install('search')}")

    def search(goal: Goal, seed: int, after_step: AfterStep) -> Mapping[Point, float]:
        rewards: dict[Point, float] = {}
        generations: list[int] = []

        def objectives(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
            accuracies, costs = goal.accuracies(points), goal.costs(points)
            values = goal.reward(accuracies, costs)
            after_step(len(generations), points, values)
            generations.append(len(points))
            rewards.update(zip(points, values.tolist(), strict=True))
            return accuracies, goal.reward.relative(costs)

        optimal = nsga2(space, objectives, generations=steps, population=batch, seed=seed)
        return {point: rewards[point] for point, _, _ in optimal}

    return Strategy(search, finds_front=True)


# What `config.searcher.name` can be. A factory takes the space, and as keywords what
# `config.searcher` can set; it checks these before anything is trained.
SEARCHERS: dict[str, Callable[..., Strategy]] = {
    "policy_gradient": _policy_gradient,
    "evolution": _evolution,
    "local_search": _local_search,
    "random": _random,
    "nsga2": _nsga2,
}


def propose(
    space: Space,
    evaluator: Evaluator,
    costs: Costs,
    reward: Reward,
    *,
    seed: int,
    count: int = 1,
    after_step: AfterStep = lambda *_: None,
    searcher: str = "policy_gradient",
    **options,
) -> list[Point]:
    """Searches with an evaluator that needs no training.

    Args:
      space, evaluator, costs, reward: Where to search, and what to maximise.
      seed: Seed of the search.
      count: How many points to return.
      after_step: Called after each step of the searcher.
      searcher: One of `SEARCHERS`.
      **options: Options of that searcher, such as steps and batch: `steps` updates by `batch`
        points each.

    Returns:
      Up to `count` of the visited points, the one with the highest reward first.

    Raises:
      ValueError: The searcher or an option is unknown or out of range.
      UsageError: The searcher needs a package that is not installed.
    """
    strategy = call_with_options("searcher", SEARCHERS, searcher, options, space)
    return best_first(strategy.search(Goal(evaluator, costs, reward), seed, after_step), count)


def config_strategy(config: ConfigDict, space: Space) -> Strategy | None:
    """Returns the searcher that a search's configuration asks for.

    Where `config.searcher` has no name, a surrogate is searched by the policy gradient as
    `config.controller` describes it, and so is a supernet whose controllers draw no points.
    Otherwise the networks that the controllers end with are refined; this needs no searcher, and
    the result is None. Steps, batch and policy that are None are those of `config.controller`.

    Raises:
      ValueError: The searcher or an option is unknown or out of range; the message names it.
      UsageError: The searcher needs a package that is not installed.
    """
    # Folders and commands from before the group `searcher` existed have only `controller`.
    options = dict(config.get("searcher") or {})
    name = options.pop("name", None)
    if name is None and config.evaluator == "supernet" and config.controller.points:
        for key, value in options.items():
            if value is not None:
                raise ValueError(
                    f"searcher.{key}: got {value!r}, but searcher.name is None, with which a "
                    f"supernet's controllers choose; name one of {', '.join(SEARCHERS)}"
                )
        return None
    name = choose("searcher.name", name or "policy_gradient", SEARCHERS)
    known = option_names(SEARCHERS[name])
    for key, value in (config.get("controller") or {}).items():
        if key in known and options.get(key) is None:
            options[key] = value
    if options.get("policy") == "autoregressive":  # the LSTM's name until it was called lstm
        options["policy"] = "lstm"
    return call_with_options("searcher", SEARCHERS, name, options, space)


def refine(
    space: Space,
    goal: Goal,
    best: Point,
    *,
    rounds: int,
    batch: int,
    seed: int,
    changes: int = 2,
    after_step: AfterStep = lambda *_: None,
) -> Point:
    """Improves a point by a local search of `rounds` steps of `batch` points.

    A controller or an evolution usually ends near a good network, not at it.

    Args:
      space, goal: Where to search, and what to maximise.
      best: The point to begin with.
      rounds, batch: `rounds` times `batch` points are evaluated.
      seed: Seed of the changes.
      changes: The most decisions that are changed at a time.
      after_step: Called after each step.
    """
    searcher = LocalSearch(space, (seed, 3), changes=changes)
    searcher.tell([best], goal([best]))
    return run(searcher, goal, steps=rounds, batch=batch, after_step=after_step)[0]


def propose_trainings(
    strategy: Strategy,
    space: Space,
    predictor: Predictor,
    costs: Costs,
    reward: Reward,
    *,
    seed: int,
    count: int,
    known: Set[Point] = frozenset(),
) -> list[Point]:
    """Returns up to `count` different points whose training promises most.

    From the best points that a searcher visits, each is chosen as the best in another draw from the
    predictor (Thompson sampling). The points with the best expected rewards would be similar, and
    would teach less than points about which little is known.

    Args:
      strategy: The searcher.
      space, costs, reward: Where to search, and what to maximise.
      predictor: What is known so far.
      seed: Seed of the search and of the draws.
      count: The number of points.
      known: Points that are not proposed.
    """
    goal = Goal(predictor, costs, reward)
    visited = dict(strategy.search(goal, seed, lambda *_: None))

    def note(step: int, points: Sequence[Point], rewards: np.ndarray) -> None:
        visited.update(zip(points, rewards.tolist(), strict=True))

    (best,) = best_first(visited, 1)
    refine(space, goal, best, rounds=_REFINED, batch=_AT_ONCE, seed=seed, after_step=note)
    points = [p for p in best_first(visited, _HOPEFUL + len(known)) if p not in known]
    points = points[:_HOPEFUL]
    if not points:  # of a small space all may be known
        return []
    paid = costs(points)
    # Several draws can have the same best.
    draws = predictor.draw(points, 4 * count, np.random.default_rng((seed, 4)))
    best_by_draw = [points[int(np.argmax(reward(draw, paid)))] for draw in draws]
    return list(dict.fromkeys([*best_by_draw, *points]))[:count]


def best_first(visited: Mapping[Point, float], count: int) -> list[Point]:
    """Returns up to `count` points, the one with the highest reward first."""
    return sorted(visited, key=lambda point: visited[point], reverse=True)[:count]


def _check_effort(steps: int, batch: int) -> int:
    check_whole("searcher.batch", batch, 1)
    return check_whole("searcher.steps", steps, 1)


def _by_reward(create: Callable[[int], Searcher], steps: int, batch: int) -> Strategy:
    """The strategy of a searcher that learns from rewards."""

    def search(goal: Goal, seed: int, after_step: AfterStep) -> Mapping[Point, float]:
        visited: dict[Point, float] = {}

        def note(step: int, points: Sequence[Point], rewards: np.ndarray) -> None:
            after_step(step, points, rewards)
            visited.update(zip(points, rewards.tolist(), strict=True))

        run(create(seed), goal, steps=steps, batch=batch, after_step=note)
        return visited

    return Strategy(search)
