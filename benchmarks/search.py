"""Compares searchers on ImageNet accuracies and on times that others have measured.

OPENBLAS_NUM_THREADS=1 python -m benchmarks.search --table=accel_nasbench.json --out=search.jsonl
  `mbv3 search table accel_nasbench` makes the table. Two processes run a seed in about two
  minutes; run the same command again to resume.
`python -m benchmarks.search_page` writes the page and its plots from the rows.

A table has 5,138 results, and its space 10^11 networks; predictors extend the table to all of them.
Each seed draws one half of the table at random. A predictor that is fitted to this half
(`mbv3_jax.search.predictor`) stands in for training: a search gets its prediction, with the noise
of one training. Two judges are independent of what the search gets:

  other seeds   the same predictor without noise, which is the mean over all training seeds. The
                regret is relative to the best network by it, which a long search finds.
  other half    a predictor fitted to the other half of the table, which no search uses.

Costs are those of the table's devices, predicted from 400 of its networks for every seed.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mbv3_jax.core.json_lines import append_line, read_lines
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.search.network_table import NetworkTable, open_network_table
from mbv3_jax.search.objective import COUNTS, Costs, Reward
from mbv3_jax.search.predictor import Predictor
from mbv3_jax.search.proxy import Proxy
from mbv3_jax.search.rounds import Rounds
from mbv3_jax.search.searchers import front, hypervolume
from mbv3_jax.search.space import Point, Space
from mbv3_jax.search.strategies import (
    SEARCHERS,
    Goal,
    Strategy,
    best_first,
    propose,
    propose_trainings,
    refine,
)

# The standard deviation of trainings with different seeds: of 117 networks that the authors of
# Accel-NASBench trained three times (anb_dataset/anb_fewproxy-seed1.csv, ...).
NOISE = 0.0031
EXPONENT = -0.3  # a cost that is a tenth from the target weighs as much as three points
PART = 0.75  # targets, as a fraction of the median of the space
NEAR = 0.05  # how far from the target a network "at the target cost" may be
LEARNED = 400  # networks from which costs are predicted
# What is searched for: the costs that count. BUDGETS are numbers of trainings.
SETTINGS: dict[str, tuple[str, ...]] = {
    "no constraint": (),
    "A100": ("a100_throughput",),
    "TPUv3": ("tpuv3_throughput",),
    "ZCU102": ("zcu102_latency",),
    "MAdds and A100": ("madds", "a100_throughput"),
}
BUDGETS = {
    name: (16, 64) if costs else (8, 16, 32, 64, 128, 512) for name, costs in SETTINGS.items()
}
TWO_COSTS = "MAdds and A100"  # fronts are compared here
# The searchers, and their options; on a predictor, every one evaluates PROPOSALS networks.
METHODS: dict[str, dict] = {
    "policy gradient": {"searcher": "policy_gradient"},
    "policy gradient, LSTM": {"searcher": "policy_gradient", "policy": "lstm"},
    "evolution": {"searcher": "evolution"},
    "local search": {"searcher": "local_search"},
    "NSGA-II": {"searcher": "nsga2"},
    "random": {"searcher": "random"},
}
PROPOSALS = {"steps": 32, "batch": 32}
LONG = {"steps": 150, "batch": 32}  # of the search for the best network of all
AT_COST, NEAREST, MADDS = "random at the target cost", "nearest in cost", "most MAdds"
WITH_PROXY = ", with proxy"
ALL = [name + way for way in (WITH_PROXY, "") for name in METHODS]
# A hypervolume is above the accuracy of hardly any network and below twice the target.
WORST, MOST = 0.5, 2.0


class Free:
    """The reward without a constraint: accuracy. Its relative cost is of no consequence."""

    def relative(self, costs):
        return costs["madds"] / 1e9

    def __call__(self, accuracy, costs):
        return np.asarray(accuracy, float)


class Trainings:
    """An evaluator that trains, and records what the search is told.

    A network that is trained twice with one seed is told the same accuracy twice.
    """

    def __init__(self, truth: Predictor, seed: int):
        self.truth, self.seed = truth, seed
        self.told: dict[Point, float] = {}
        self.count = 0

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        noise = [np.random.default_rng((self.seed, *p)).normal() for p in points]
        told = self.truth.expect(points) + NOISE * np.array(noise)
        self.told.update(zip(points, told.tolist(), strict=True))
        self.count += len(points)
        return told, np.zeros(len(points))


@dataclasses.dataclass(frozen=True)
class World:
    """The space, judges and costs of one seed.

    Attributes:
      space: The space.
      seed: Of the halves, of the trainings and of the searches.
      seen: The predictor that plays the trainings.
      judge: The predictor of the other half.
      costs, rewards: Those of each setting.
    """

    space: Space
    seed: int
    seen: Predictor
    judge: Predictor
    costs: dict[str, Costs]
    rewards: dict[str, Reward | Free]

    def goal(self, setting: str, evaluator) -> Goal:
        return Goal(evaluator, self.costs[setting], self.rewards[setting])


def make_costs(table: NetworkTable) -> dict[str, Costs]:
    """Returns the costs of each setting, those of devices as predicted."""
    rows = np.random.default_rng(0).permutation(len(table.networks))[:LEARNED]
    proxy = Proxy(table, rows=rows)
    return {
        setting: Costs(
            table.space, {n: COUNTS[n] if n in COUNTS else proxy.cost(n) for n in {*names, "madds"}}
        )
        for setting, names in SETTINGS.items()
    }


def make_world(table: NetworkTable, costs: dict[str, Costs], seed: int) -> World:
    order = np.random.default_rng(seed).permutation(len(table.networks))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    seen, judge = (Proxy(table, rows=rows, seed=seed) for rows in halves)
    some = table.space.sample(np.random.default_rng(0), 500)
    rewards: dict[str, Reward | Free] = {}
    for setting, names in SETTINGS.items():
        paid = costs[setting](some)
        targets = {n: PART * float(np.median(paid[n])) for n in names}
        rewards[setting] = Reward(targets=targets, exponent=EXPONENT) if names else Free()
    predictors = (proxy.predictor(proxy.accuracy) for proxy in (seen, judge))
    return World(table.space, seed, *predictors, costs, rewards)


Found = tuple[Point, list[Point], np.ndarray]  # the choice; a front's candidates, as believed


def without_proxy(world: World, setting: str, budget: int, options: dict) -> tuple[Found, int]:
    """Every network that the searcher asks for is trained, and the best so far is its choice."""
    trainings = Trainings(world.seen, world.seed)
    goal = world.goal(setting, trainings)
    batch = max(4, 2 ** (budget.bit_length() // 2))
    some = dict(options, steps=budget // batch, batch=batch)
    if options["searcher"] == "evolution":
        some["population"] = max(4, min(50, budget // 4))
        some["tournament"] = min(5, some["population"])
    propose(world.space, goal.evaluator, goal.costs, goal.reward, seed=world.seed, **some)
    return _best_told(goal, trainings), trainings.count


def with_proxy(world: World, setting: str, budget: int, options: dict) -> tuple[Found, int]:
    """Rounds (`mbv3_jax.search.rounds`): a quarter at random, the rest as the searcher proposes."""
    trainings = Trainings(world.seen, world.seed)
    costs, reward = world.costs[setting], world.rewards[setting]
    strategy = strategy_of(world.space, options | PROPOSALS)
    propose = functools.partial(
        propose_trainings, strategy, world.space, costs=costs, reward=reward
    )
    rounds = Rounds(
        world.space,
        lambda points, _: trainings.evaluate(points)[0],
        lambda predictor, seed, count, known: propose(
            predictor, seed=seed, count=count, known=known
        ),
        world.seed,
    )
    # Where trainings are few, each round's choices are worth more than the time of a fit.
    first, per_round = max(4, budget // 4), max(2, budget // (16 if budget <= 64 else 8))
    predictor = rounds.run(first, per_round, (budget - first) // per_round)
    goal = world.goal(setting, predictor)
    points = list(trainings.told)
    best = points[int(np.argmax(goal(points)))]
    if setting == TWO_COSTS:  # a front needs no training: what is believed of all that is visited
        visited: dict[Point, None] = {}
        strategy.search(goal, world.seed, lambda _, some, __: visited.update(dict.fromkeys(some)))
        points = list(dict.fromkeys([*points, *visited]))
    return (best, points, goal.accuracies(points)), trainings.count


def strategy_of(space: Space, options: dict) -> Strategy:
    some = dict(options)
    return SEARCHERS[some.pop("searcher")](space, **some)


def at_cost(world: World, setting: str, budget: int) -> tuple[Found, int]:
    """Networks near the target cost, drawn at random, are trained."""
    trainings = Trainings(world.seen, world.seed)
    goal = world.goal(setting, trainings)
    near: list[Point] = []
    rng = np.random.default_rng((world.seed, 1))
    while len(near) < budget:
        points = world.space.sample(rng, 64)
        relative = goal.reward.relative(world.costs[setting](points))
        near += [p for p, r in zip(points, relative, strict=True) if abs(r - 1) < NEAR]
    goal(near[:budget])
    return _best_told(goal, trainings), trainings.count


def _best_told(goal: Goal, trainings: Trainings) -> Found:
    points = list(trainings.told)
    told = np.array(list(trainings.told.values()))
    rewards = goal.reward(told, goal.costs(points))
    return points[int(np.argmax(rewards))], points, told


def untrained(world: World, setting: str, method: str) -> tuple[Found, int]:
    """The choice of 512 random networks without training: by cost alone."""
    points = world.space.sample(np.random.default_rng((world.seed, 2)), 512)
    madds = world.costs[setting](points)["madds"]
    relative = world.rewards[setting].relative(world.costs[setting](points))
    if method == MADDS:  # of those near the target
        order = np.where(abs(relative - 1) < NEAR, -madds, 0) if SETTINGS[setting] else -madds
    else:
        order = abs(relative - 1)
    return (points[int(np.argmin(order))], points, madds), 0


def best_of_all(world: World, setting: str) -> Point:
    """The best network by the mean of all seeds there could be, as far as a long search finds."""
    goal = world.goal(setting, world.seen)
    found: dict[Point, float] = {}
    for seed, searcher in enumerate(("evolution", "local_search")):
        strategy = strategy_of(world.space, {"searcher": searcher} | LONG)
        (point,) = best_first(strategy.search(goal, world.seed, lambda *_: None), 1)
        point = refine(
            world.space, goal, point, rounds=LONG["steps"] // 2, batch=LONG["batch"], seed=seed,
            changes=3,
        )  # fmt: skip
        found[point] = goal([point]).item()
    return best_first(found, 1)[0]


def judged_front(world: World, points: Sequence[Point], believed: np.ndarray) -> np.ndarray:
    """What a search believes to be the front: relative costs, and accuracies by the other half."""
    relative = world.rewards[TWO_COSTS].relative(world.costs[TWO_COSTS](points))
    chosen = front(believed, relative)
    return np.stack([relative[chosen], world.judge.expect([points[i] for i in chosen])])


def run_setting(world: World, setting: str) -> list[dict]:
    """Returns a row for each method and budget."""
    names = SETTINGS[setting]
    ways: dict[tuple[str, int], Callable[[], tuple[Found, int]]] = {}
    for method in (NEAREST, MADDS) if names else (MADDS,):
        ways[method, 0] = functools.partial(untrained, world, setting, method)
    for budget in BUDGETS[setting]:
        for method, options in METHODS.items():
            arguments = world, setting, budget, options
            ways[method, budget] = functools.partial(without_proxy, *arguments)
            ways[method + WITH_PROXY, budget] = functools.partial(with_proxy, *arguments)
        if names:
            ways[AT_COST, budget] = functools.partial(at_cost, world, setting, budget)
    most = world.goal(setting, world.seen)([best_of_all(world, setting)]).item()
    rows = []
    for (method, budget), way in ways.items():
        (point, points, believed), trained = way()
        row = {"seed": world.seed, "setting": setting, "method": method, "budget": budget}
        row |= {"trained": trained, "point": list(point)}
        row["relative"] = world.rewards[setting].relative(world.costs[setting]([point])).item()
        for judge, predictor in (("seeds", world.seen), ("half", world.judge)):
            row[judge] = world.goal(setting, predictor)([point]).item()
        if setting == TWO_COSTS and trained:
            paid, judged = judged_front(world, points, believed)
            row["hypervolume"] = hypervolume(judged, paid, worst=WORST, most=MOST)
            row["front"] = [np.round(paid, 4).tolist(), np.round(judged, 5).tolist()]
        rows.append(row)
    # The long search is not perfect: now and then another finds a better network.
    most = max(most, *(row["seeds"] for row in rows))
    return [row | {"regret": most - row["seeds"]} for row in rows]


@functools.lru_cache(maxsize=2)
def _world(file: Path, seed: int) -> World:
    table = open_network_table(file)
    return make_world(table, make_costs(table), seed)


def _run(file: Path, seed: int, setting: str) -> list[dict]:
    return run_setting(_world(file, seed), setting)


def read(path: Path) -> list[dict]:
    """Returns the rows of all seeds and settings in a file."""
    return [row for line in read_lines(path, lambda text: parse_json(text, list)) for row in line]


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2)
    flags = parser.parse_args()
    done = {(row["seed"], row["setting"]) for row in read(flags.out)}
    wanted = [(seed, setting) for seed in range(flags.seeds) for setting in SETTINGS]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(flags.jobs, context) as pool:
        running = {
            pool.submit(_run, flags.table, *each): each for each in wanted if each not in done
        }
        for future in concurrent.futures.as_completed(running):
            append_line(flags.out, future.result())
            print(*running[future], flush=True)


if __name__ == "__main__":
    main()
