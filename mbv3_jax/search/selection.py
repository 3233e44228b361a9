"""The stage of a search that chooses a network for each target.

`by_supernet` and `by_surrogate` each obtain an evaluator, by training shared weights or candidates,
and then the best network for each target.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.core.files import read_file, write_atomically
from mbv3_jax.core.json_values import Number, parse_json
from mbv3_jax.run.config import need_one_label
from mbv3_jax.search.candidates import Trainings
from mbv3_jax.search.evaluators import Agreement, Corrected, Evaluator, agreement
from mbv3_jax.search.objective import Problem
from mbv3_jax.search.predictor import Predictor
from mbv3_jax.search.rounds import Rounds, State
from mbv3_jax.search.searchers import front
from mbv3_jax.search.space import Point, Space
from mbv3_jax.search.strategies import (
    AfterStep,
    Goal,
    Strategy,
    best_first,
    propose_trainings,
    refine,
)
from mbv3_jax.search.supernet.run import train_supernet

# How `_refine` improves what a controller ends at: how many points a round evaluates, and rounds.
_DRAWN, _ROUNDS = 16, 12
# How many random points each of those that are trained to check a supernet is chosen from.
_PER_CHECK = 20
# The same for each of those near a target that a surrogate learns from first.
_PER_NEAR = 100
# The most networks of a table that a proxy does not learn from, to find out what it is worth.
HELD_OUT = 500


@dataclasses.dataclass(frozen=True)
class Choice:
    """The network that was chosen for a target.

    Attributes:
      point: The network.
      rewards: The mean reward of each step of the controller or searcher.
      front: The front of accuracy and cost, the cheapest network first; None if the searcher looks
        for a single network, and estimating all that it visited would take long.
    """

    point: Point
    rewards: Sequence[float]
    front: Sequence[Point] | None = None


class _Chosen(TypedDict):
    point: list[int]
    predicted: Number
    uncertainty: Number
    rewards: list[Number]


class _AgreementText(TypedDict):
    text: str


class Selection(TypedDict):
    """What found.json holds, as far as the stages after it use it."""

    found: dict[str, _Chosen]
    agreement: _AgreementText
    candidates: list[dict]


def check_trainings(config: ConfigDict) -> None:
    """Checks that a search can use the trainings that its configuration describes.

    Raises:
      UsageError, ValueError: It cannot; the message names the field.
    """
    need_one_label(config.final, "a search")
    for name in ("shared", "brief", "final"):
        if (seeds := config.get(name, {}).get("seeds")) is not None:
            raise ValueError(f"{name}.seeds: got {seeds}, but a search trains with one seed: seed")
    stop = config.get("shared", {}).get("early_stop") or {}  # absent in older folders
    if (patience := stop.get("patience")) is not None:
        raise ValueError(
            f"shared.early_stop.patience: got {patience}, but shared weights are trained to the end"
        )


def by_supernet(
    config: ConfigDict,
    problem: Problem,
    strategy: Strategy | None,
    folder: Path,
    console: Console,
) -> dict:
    """Trains shared weights together with a controller for each target (TuNAS), then chooses.

    The controllers settle before the weights are good, or draw uniformly
    (`config.controller.points` is 0). So the choice is made with the finished weights: by a search
    with `strategy`, or else by refining the networks that the controllers end with. `config.check`
    networks, spread over cost and estimated accuracy, are trained to find out how far the weights
    can be trusted, and to correct their estimates. Of the best networks for a target,
    `config.finalists` are trained, and the best of these is taken.

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
    controllers, weights = train_supernet(
        config.shared,
        problem,
        folder / "supernet",
        console,
        seed=seed,
        points=config.controller.points,
        learning_rate=config.controller.learning_rate,
    )
    trainings = Trainings(space, config.brief, folder / "candidates", console)
    corrects = "finalists" in config  # older folders continue without it
    points = spread(problem, weights, config.check, seed, by_estimate=corrects)
    accuracies = trainings(points, seed) if points else np.zeros(0)
    trust = agreement(weights.evaluate(points)[0] if points else np.zeros(0), accuracies)
    trained = dict(zip(points, accuracies.tolist(), strict=True))
    evaluator: Evaluator = weights
    if corrects and len(points) >= Corrected.LEAST:

        def cost_of(points: Sequence[Point]) -> np.ndarray:
            return problem.costs(points)[problem.cost_name]

        evaluator = Corrected(weights, cost_of, points, accuracies)
    choices = {}
    for name, reward in problem.rewards.items():
        goal = Goal(evaluator, problem.costs, reward)
        visited: Mapping[Point, float]
        if strategy is None:
            drawn = controllers.searchers[name].ask(_DRAWN)
            visited = _refine(space, goal, controllers.modes()[name], drawn, seed)
            choice = Choice(best_first(visited, 1)[0], controllers.trace[name])
        else:
            choice, visited = _choose(strategy, problem, evaluator, name, seed)
        if corrects and (finalists := best_first(visited, config.finalists)):
            top1 = trainings(finalists, seed)
            trained |= zip(finalists, top1.tolist(), strict=True)
            best = int(np.argmax(reward(top1, problem.costs(finalists))))
            choice = dataclasses.replace(choice, point=finalists[best])
        choices[name] = choice
    return _result(problem, choices, evaluator, trust, list(trained.items()))


def spread(
    problem: Problem, evaluator: Evaluator, count: int, seed: int, *, by_estimate: bool = True
) -> list[Point]:
    """Returns up to `count` random points, spread over cost and over estimated accuracy.

    They are chosen from many more, cut into `count` groups of about equal cost: every second group
    gives the one with the highest estimate, the others the one with the lowest. Without
    `by_estimate` they are just random.
    """
    drawn = _PER_CHECK * count if by_estimate else count
    points = problem.space.sample(np.random.default_rng((seed, 1)), drawn)
    points = list(dict.fromkeys(points))
    if not by_estimate:
        return points
    costs = problem.costs(points)[problem.cost_name]
    by_cost = [points[i] for i in np.argsort(costs, kind="stable")]
    chosen = []
    for number, part in enumerate(np.array_split(np.arange(len(by_cost)), count) if count else []):
        if len(part):
            estimates = evaluator.evaluate([by_cost[i] for i in part])[0]
            which = np.argmax(estimates) if number % 2 else np.argmin(estimates)
            chosen.append(by_cost[part[int(which)]])
    return chosen


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

    def propose_in_turn(
        predictor: Predictor, seed: int, count: int, known: set[Point]
    ) -> list[Point]:
        """Returns what is proposed for each target in turn."""
        lists = [
            propose_trainings(
                strategy, problem.space, predictor, problem.costs, reward,
                seed=seed, count=count, known=known,
            )
            for reward in problem.rewards.values()
        ]  # fmt: skip
        return [p for points in itertools.zip_longest(*lists) for p in points if p is not None]

    trainings = Trainings(problem.space, config.brief, folder / "candidates", console)
    sizes = dict(config.rounds)
    within = sizes.pop("within", None)  # absent in older folders
    rounds = Rounds(problem.space, trainings, propose_in_turn, config.seed)
    if within is not None:
        rounds.draw = functools.partial(_draw_near_targets, problem, within)
        rounds.groups = functools.partial(_nearest_target, problem)
    file = folder / "rounds.json"
    if file.exists():
        advice = "remove it and run the same command again; no training is repeated"
        read_file(file, lambda text: rounds.load(parse_json(text, State)), advice=advice)

    def save(rounds: Rounds) -> None:
        write_atomically(file, json.dumps(rounds.state()))
        console.print(f"candidates trained: {len(rounds.trained)}")

    surrogate = rounds.run(**sizes, after_round=save)
    among = [p for p, _ in rounds.trained]
    choices = {
        name: _choose(strategy, problem, surrogate, name, config.seed, among=among)[0]
        for name in problem.rewards
    }
    return _result(problem, choices, surrogate, rounds.agreement, rounds.trained)


def _draw_near_targets(
    problem: Problem, within: float, rng: np.random.Generator, count: int
) -> list[Point]:
    """Returns `count` or more random points whose cost is near a target, for each target in turn.

    They cost up to the fraction `within` more or less than it. If too few that are drawn do, those
    nearest to it follow.
    """
    points = problem.space.sample(rng, _PER_NEAR * count)
    paid = problem.costs(points)
    by_target = []
    for reward in problem.rewards.values():
        beyond = np.maximum(np.abs(reward.relative(paid) - 1) - within, 0)
        by_target.append([points[i] for i in np.argsort(beyond, kind="stable")])
    return [point for in_turn in zip(*by_target, strict=True) for point in in_turn]


def _nearest_target(problem: Problem, points: Sequence[Point]) -> np.ndarray:
    """The number of the target to which each point is nearest by the ratio of costs [N]."""
    paid = problem.costs(points)
    ratios = [np.abs(np.log(reward.relative(paid))) for reward in problem.rewards.values()]
    return np.argmin(ratios, axis=0)


def by_proxy(
    config: ConfigDict,
    problem: Problem,
    strategy: Strategy | None,
    folder: Path,
    console: Console,
) -> dict:
    """Searches on the accuracies that a proxy predicts from a table; nothing is trained.

    The arguments and the result are those of `by_supernet`. How far the proxy can be trusted is
    measured on networks of the table that it does not learn from.
    """
    proxy = problem.proxy
    assert strategy is not None and proxy is not None, "a proxy is always searched by a strategy"
    column = proxy.table.columns[proxy.accuracy]
    console.print(f"learning from {len(proxy.rows)} networks of {proxy.table.name}")
    console.print(f"accuracy is {proxy.accuracy}{': ' if column.about else ''}{column.about}")
    measured = column.means()
    held_out = np.setdiff1d(np.flatnonzero(np.isfinite(measured)), proxy.rows)
    estimates = proxy.evaluate([proxy.table.networks[i] for i in held_out])[0]
    choices = {
        name: _choose(
            strategy,
            problem,
            proxy,
            name,
            config.seed,
            keep_front=True,
            rounds=config.refine_rounds,
        )[0]
        for name in problem.rewards
    }
    for name, choice in choices.items():
        (reason,) = proxy.predictor(proxy.accuracy).outside([choice.point])
        if reason:
            console.print(f"warning: {name} lies outside what the table knows: {reason}")
    return _result(problem, choices, proxy, agreement(estimates, measured[held_out]), [])


EVALUATORS = {"supernet": by_supernet, "surrogate": by_surrogate, "proxy": by_proxy}


def _choose(
    strategy: Strategy,
    problem: Problem,
    evaluator: Evaluator,
    name: str,
    seed: int,
    *,
    keep_front: bool = False,
    rounds: int = 0,
    among: Sequence[Point] | None = None,
) -> tuple[Choice, Mapping[Point, float]]:
    """Returns the best network for a target, with the front of all visited if it is kept.

    The best network that was visited is refined in some rounds. Otherwise the choice is the best
    `among` networks that were trained: with a predictor that has learned from few, a search ends
    with networks that it overestimates (benchmarks/SEARCH.md).

    Returns:
      The choice, and the rewards of all points that were visited.
    """
    batches: list[np.ndarray] = []
    goal = Goal(evaluator, problem.costs, problem.rewards[name])
    visited = strategy.search(goal, seed, _collect_rewards(batches))
    (best,) = best_first(visited, 1)
    if among is not None:
        best = among[int(np.argmax(goal(among)))]
    elif rounds:
        best = refine(problem.space, goal, best, rounds=rounds, batch=_DRAWN, seed=seed)
    rewards = [float(batch.mean()) for batch in batches]
    optimal = list(visited) if strategy.finds_front else None
    if keep_front and optimal is None:
        points = [*visited, best]
        costs = problem.costs(points)[problem.cost_name]
        optimal = [points[i] for i in front(evaluator.evaluate(points)[0], costs)]
    return Choice(best, rewards, optimal), visited


def _collect_rewards(batches: list[np.ndarray]) -> AfterStep:
    return lambda _, points, rewards: batches.append(rewards)


def _refine(
    space: Space,
    goal: Goal,
    mode: Point,
    drawn: list[Point],
    seed: int,
) -> dict[Point, float]:
    """Improves a controller's most probable point, beginning with points that it has drawn.

    Each round takes the best so far and evaluates points that differ from it by one decision: on
    more images than the controller saw, and by the weights as they ended.

    Returns:
      All points with their rewards.
    """
    rng, best = np.random.default_rng((seed, 2)), mode
    visited: dict[Point, float] = {}
    for _ in range(_ROUNDS):
        drawn = list(dict.fromkeys([best, *drawn]))
        visited.update(zip(drawn, goal(drawn).tolist(), strict=True))
        (best,) = best_first(visited, 1)
        drawn = [space.mutate(best, rng) for _ in range(_DRAWN)]
    return visited


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
            "interval": list(trust.interval) if trust.interval else None,
            "text": trust.describe() if trust.count else "",
        },
        "candidates": [
            {"point": list(p), "top1": top1, "cost": cost} for (p, top1), cost in candidates
        ],
    }
