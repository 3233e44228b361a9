"""The choice of networks: which searcher works on which evaluator.

`SEARCHERS` is the registry of what `config.searcher.name` can be; `propose` runs one of them on an
evaluator. `by_supernet` and `by_surrogate` are the stage of a search that chooses: each obtains an
evaluator, by training shared weights or candidates, and then the best network for each target.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.core.checks import call_with_options, check_whole, choose, option_names
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.core.packages import installed
from mbv3_jax.search.candidates import Trainings
from mbv3_jax.search.evaluators import Agreement, Evaluator, agreement
from mbv3_jax.search.objective import Costs, Problem, Reward
from mbv3_jax.search.policy_gradient import POLICIES, PolicyGradient
from mbv3_jax.search.searchers import Evolution, Random, Searcher, nsga2, run
from mbv3_jax.search.space import Point, Space
from mbv3_jax.search.supernet.run import train_supernet
from mbv3_jax.search.surrogate import Rounds, Surrogate

STEPS, BATCH = 300, 16

# The learning rate of each policy, times the number of steps.
_RATES = {"factorised": 1.6, "lstm": 0.6}

# How `_refine` improves what a controller ends at: how many points a round evaluates, and rounds.
_DRAWN, _ROUNDS = 16, 12

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
        return self.reward(self.evaluator.evaluate(points)[0], self.costs(points))


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A searcher with its options, ready to be run on any goal.

    Attributes:
      search: Searches with a seed; returns the points it has visited with their rewards.
      finds_front: Whether these are the front of accuracy and cost alone.
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


def _random(space: Space, *, steps: int = STEPS, batch: int = BATCH) -> Strategy:
    """Random points, the baseline."""
    _check_effort(steps, batch)
    return _by_reward(lambda seed: Random(space, seed), steps, batch)


def _nsga2(space: Space, *, steps: int = STEPS, batch: int = BATCH) -> Strategy:
    """NSGA-II with `steps` generations of `batch` points; returns the front alone."""
    _check_effort(steps, batch)
    if not installed("pymoo"):
        raise UsageError(
            "config.searcher.name: nsga2 needs pymoo: pip install -r requirements-search.txt"
        )

    def search(goal: Goal, seed: int, after_step: AfterStep) -> Mapping[Point, float]:
        rewards: dict[Point, float] = {}
        generations: list[int] = []

        def objectives(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
            accuracies, costs = goal.evaluator.evaluate(points)[0], goal.costs(points)
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
    "random": _random,
    "nsga2": _nsga2,
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The network that was chosen for a target.

    Attributes:
      point: The network.
      rewards: The mean reward of each step of the controller or searcher.
      front: The front of accuracy and cost, the cheapest network first; None if the searcher looks
        for one network.
    """

    point: Point
    rewards: Sequence[float]
    front: Sequence[Point] | None = None


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
    """Searches on an evaluator that answers at once.

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
    return _best_first(strategy.search(Goal(evaluator, costs, reward), seed, after_step), count)


def config_strategy(config: ConfigDict, space: Space) -> Strategy | None:
    """Returns the searcher that a search's configuration asks for.

    Where `config.searcher` has no name, a surrogate is searched by the policy gradient as
    `config.controller` describes it; what the controllers of a supernet end at is refined, for
    which there is no searcher and the result is None. Steps, batch and policy that are None are
    those of `config.controller`.

    Raises:
      ValueError: The searcher or an option is unknown or out of range; the message names it.
      UsageError: The searcher needs a package that is not installed.
    """
    # Folders and commands from before there was a group `searcher` have `controller` alone.
    options = dict(config.get("searcher") or {})
    name = options.pop("name", None)
    if name is None and config.evaluator == "supernet":
        if given := sorted(key for key, value in options.items() if value is not None):
            raise ValueError(
                f"searcher.{given[0]}: got {options[given[0]]!r}, but searcher.name is None, with "
                f"which a supernet's controllers choose; name one of {', '.join(SEARCHERS)}"
            )
        return None
    name = choose("searcher.name", name or "policy_gradient", SEARCHERS)
    known = option_names(SEARCHERS[name])
    for key, value in config.controller.items():
        if key in known and options.get(key) is None:
            options[key] = value
    if options.get("policy") == "autoregressive":  # the LSTM's name until it was called lstm
        options["policy"] = "lstm"
    return call_with_options("searcher", SEARCHERS, name, options, space)


def by_supernet(
    config: ConfigDict,
    problem: Problem,
    strategy: Strategy | None,
    folder: Path,
    console: Console,
) -> dict:
    """Trains shared weights together with a controller for each target (TuNAS), then chooses.

    The controllers settle before the weights are good (benchmarks/SEARCH.md). Hence the finished
    weights choose: by a search of their own with `strategy`, or else by refining what the
    controllers end at. `config.check` random networks are trained as well, to find out how far
    the weights may be trusted.

    Args:
      config: The search's configuration.
      problem: What to search for.
      strategy: The result of `config_strategy`.
      folder: The search's folder.
      console: Where progress is printed.

    Returns:
      The content of found.json.
    """
    space, seed = problem.space, config.seed
    controllers, evaluator = train_supernet(
        config.shared,
        problem,
        folder / "supernet",
        console,
        seed=seed,
        points=config.controller.points,
        learning_rate=config.controller.learning_rate,
    )
    if strategy is None:
        choices = {}
        for name, mode in controllers.modes().items():
            goal = Goal(evaluator, problem.costs, problem.rewards[name])
            drawn = controllers.searchers[name].ask(_DRAWN)
            point = _refine(space, goal, mode, drawn, seed)
            choices[name] = Choice(point, controllers.trace[name])
    else:
        choices = _choose(strategy, problem, evaluator, seed)
    points = space.sample(np.random.default_rng((seed, 1)), config.check)
    points = list(dict.fromkeys(points))
    trainings = Trainings(space, config.brief, folder / "candidates", console)
    accuracies = trainings(points, seed) if points else np.zeros(0)
    estimates = evaluator.evaluate(points)[0] if points else np.zeros(0)
    trained = list(zip(points, accuracies.tolist(), strict=True))
    return _result(problem, choices, evaluator, agreement(estimates, accuracies), trained)


def by_surrogate(
    config: ConfigDict,
    problem: Problem,
    strategy: Strategy | None,
    folder: Path,
    console: Console,
) -> dict:
    """Trains candidates briefly in rounds, and searches on the surrogate that is fitted to them.

    The arguments and the result are those of `by_supernet`.
    """
    assert strategy is not None, "a surrogate is always searched by a strategy"

    def propose_in_turn(surrogate: Surrogate, seed: int, count: int) -> list[Point]:
        """Returns the best for each target in turn."""
        goals = [Goal(surrogate, problem.costs, reward) for reward in problem.rewards.values()]
        lists = [_best_first(strategy.search(g, seed, lambda *_: None), count) for g in goals]
        return [point for points in zip(*lists, strict=False) for point in points]

    trainings = Trainings(problem.space, config.brief, folder / "candidates", console)
    rounds = Rounds(problem.space, trainings, propose_in_turn, config.seed)
    file = folder / "rounds.json"
    if file.exists():
        rounds.load(json.loads(file.read_text()))

    def save(rounds: Rounds) -> None:
        write_atomically(file, json.dumps(rounds.state()))
        console.print(f"candidates trained: {len(rounds.trained)}")

    surrogate = rounds.run(**config.rounds, after_round=save)
    choices = _choose(strategy, problem, surrogate, config.seed)
    return _result(problem, choices, surrogate, rounds.agreement, rounds.trained)


EVALUATORS = {"supernet": by_supernet, "surrogate": by_surrogate}


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


def _best_first(visited: Mapping[Point, float], count: int) -> list[Point]:
    return sorted(visited, key=lambda point: visited[point], reverse=True)[:count]


def _choose(
    strategy: Strategy, problem: Problem, evaluator: Evaluator, seed: int
) -> dict[str, Choice]:
    """Returns the best network for each target."""
    choices = {}
    for name, reward in problem.rewards.items():
        batches: list[np.ndarray] = []
        visited = strategy.search(
            Goal(evaluator, problem.costs, reward), seed, _collect_rewards(batches)
        )
        (best,) = _best_first(visited, 1)
        rewards = [float(batch.mean()) for batch in batches]
        choices[name] = Choice(best, rewards, list(visited) if strategy.finds_front else None)
    return choices


def _collect_rewards(batches: list[np.ndarray]) -> AfterStep:
    return lambda _, points, rewards: batches.append(rewards)


def _refine(space: Space, goal: Goal, mode: Point, drawn: list[Point], seed: int) -> Point:
    """Improves a controller's most probable point, beginning with points that it has drawn.

    Each round takes the best so far and evaluates points that differ from it by one decision: on
    more images than the controller saw, and by the weights as they ended.
    """
    rng, best = np.random.default_rng((seed, 2)), mode
    for _ in range(_ROUNDS):
        drawn = list(dict.fromkeys([best, *drawn]))
        best = drawn[int(np.argmax(goal(drawn)))]
        drawn = [space.mutate(best, rng) for _ in range(_DRAWN)]
    return best


def _result(
    problem: Problem,
    choices: Mapping[str, Choice],
    evaluator: Evaluator,
    trust: Agreement,
    trained: Sequence[tuple[Point, float]],
) -> dict:
    """Returns the content of found.json."""

    def costs(points: Sequence[Point]) -> list[float]:
        return problem.costs(points)[problem.cost_name].tolist()

    networks = {}
    for name, choice in choices.items():
        accuracy, uncertainty = evaluator.evaluate([choice.point])
        networks[name] = {
            "point": list(choice.point),
            "predicted": accuracy.item(),
            "uncertainty": uncertainty.item(),
            "rewards": choice.rewards,
        }
        if choice.front is not None:
            estimates = evaluator.evaluate(choice.front)[0].tolist()
            networks[name]["front"] = [
                {"point": list(p), "predicted": estimate, "cost": cost}
                for p, estimate, cost in zip(
                    choice.front, estimates, costs(choice.front), strict=True
                )
            ]
    candidates = zip(trained, costs([p for p, _ in trained]), strict=True)
    return {
        "found": networks,
        "agreement": {
            "spearman": trust.spearman if np.isfinite(trust.spearman) else None,
            "count": trust.count,
            "text": trust.describe() if trust.count else "",
        },
        "candidates": [
            {"point": list(p), "top1": top1, "cost": cost} for (p, top1), cost in candidates
        ],
    }
