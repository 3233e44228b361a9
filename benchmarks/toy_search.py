"""Compares searchers on a small space of which every network has been trained.

python -m benchmarks.toy_search --out=benchmarks/toy_search.jsonl
  after `python -m benchmarks.toy_truth` and `python -m benchmarks.toy_supernet`; some minutes. Run
  the same command again to resume. `python -m benchmarks.search_page` writes the page.

Every network has been trained with several seeds. When a search trains a network, it gets the
validation accuracy of one of these trainings, which its seed draws. What it finds is judged by the
mean test accuracy of the other trainings, which it never sees.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import toy_supernet, toy_truth
from benchmarks.ending import exit_code
from benchmarks.toy_table import TOY_TRUTH, ToyTable
from mbv3_jax.cli import use_huge_pages
from mbv3_jax.core.json_lines import append_line, parse_object, read_lines
from mbv3_jax.search.evaluators import Corrected, Evaluator, Table, agreement
from mbv3_jax.search.objective import COUNTS, Costs, Problem
from mbv3_jax.search.rounds import Rounds
from mbv3_jax.search.searchers import Evolution, Random, Searcher, run
from mbv3_jax.search.selection import spread
from mbv3_jax.search.space import Point
from mbv3_jax.search.strategies import SEARCHERS, Goal, best_first, propose_trainings

ROWS = Path(__file__).parent / "toy_search.jsonl"
BUDGETS = (8, 16, 32)  # trainings
NEAR = 0.1  # how far from the target a network "near the target cost" may be
PROPOSALS = {"steps": 16, "batch": 16}  # of a searcher on a predictor
CHECKS, FINALISTS = 5, 3  # networks that are trained to correct a supernet, and to choose by
RANDOM, AT_COST = "random", "random near the target cost"
NEAREST, MADDS = "nearest in cost", "most MAdds near the target cost"


@dataclasses.dataclass
class Task:
    """What a search seed is told, and what judges it.

    Attributes:
      table: All trainings.
      problem: The space, its costs and a reward for each target.
      seed: Of the search, and of what it is told.
    """

    table: ToyTable
    problem: Problem
    seed: int

    def __post_init__(self):
        points, rng = self.table.points, np.random.default_rng((self.seed, 5))
        self.seeds = rng.integers(self.table.test.shape[1], size=len(points))
        others = np.arange(self.table.test.shape[1]) != self.seeds[:, None]
        self.truth = np.average(self.table.test, axis=1, weights=others)
        self.costs = self.problem.costs(points)

    def train(self, points: Sequence[Point]) -> np.ndarray:
        """What a search is told of points: validation accuracies [N] of one training each."""
        rows = self.table.rows(points)
        return self.table.validation[rows, self.seeds[rows]]

    def believed(self, target: str, accuracies: np.ndarray) -> np.ndarray:
        """The rewards of all networks, by given accuracies."""
        return self.problem.rewards[target](accuracies, self.costs)

    def regret(self, target: str, point: Point) -> float:
        """How much more of the judged reward the best network of the space has."""
        judged = self.believed(target, self.truth)
        return float(judged.max() - judged[self.table.rows([point])[0]])

    def near(self, target: str) -> list[int]:
        """The rows of the networks whose cost is near a target."""
        relative = self.problem.rewards[target].relative(self.costs)
        return np.flatnonzero(abs(relative - 1) < NEAR).tolist()


def make_problem() -> Problem:
    costs = Costs(toy_truth.SPACE, COUNTS)
    return Problem(
        space=toy_truth.SPACE, costs=costs, cost_name="madds", rewards=toy_supernet.rewards()
    )


def by_searcher(create: Callable[..., Searcher], task: Task, target: str, budget: int) -> Point:
    """Every network that the searcher asks for is trained; the best so far is its choice."""
    goal = Goal(_Trainings(task), task.problem.costs, task.problem.rewards[target])
    searcher = create(task.problem.space, task.seed, budget)
    return run(searcher, goal, steps=budget // 4, batch=4)[0]


class _Trainings:
    def __init__(self, task: Task):
        self.task = task

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        return self.task.train(points), np.zeros(len(points))


def with_proxy(searcher: str, task: Task, target: str, budget: int) -> Point:
    """Rounds (`mbv3_jax.search.rounds`): a quarter at random, the rest as the searcher proposes."""
    problem, reward = task.problem, task.problem.rewards[target]
    strategy = SEARCHERS[searcher](problem.space, **PROPOSALS)
    rounds = Rounds(
        problem.space,
        lambda points, _: task.train(points),
        lambda predictor, seed, count, known: propose_trainings(
            strategy, problem.space, predictor, problem.costs, reward,
            seed=seed, count=count, known=known,
        ),
        task.seed,
    )  # fmt: skip
    first, per_round = max(4, budget // 4), budget // 8
    predictor = rounds.run(first, per_round, (budget - first) // per_round)
    trained = [point for point, _ in rounds.trained]
    return trained[int(np.argmax(Goal(predictor, problem.costs, reward)(trained)))]


def at_cost(task: Task, target: str, budget: int) -> Point:
    """Networks near the target cost, drawn at random, are trained; there may be fewer than that."""
    rows = np.random.default_rng((task.seed, 6)).permutation(task.near(target))[:budget]
    points = [task.table.points[i] for i in rows]
    rewards = Goal(_Trainings(task), task.problem.costs, task.problem.rewards[target])(points)
    return points[int(np.argmax(rewards))]


def untrained(method: str, task: Task, target: str) -> Point:
    """A choice without training: by cost alone."""
    relative = task.problem.rewards[target].relative(task.costs)
    rows = task.near(target)
    score = abs(relative - 1) if method == NEAREST else -task.costs["madds"]
    return task.table.points[min(rows, key=lambda i: score[i])]


def weights_of(task: Task, way: str) -> Evaluator:
    """What a supernet believes of every network in the end."""
    noted = toy_supernet.read()[way, task.seed]["believed"]
    return Table({p: [b] for p, b in zip(task.table.points, noted, strict=True)})


def by_controller(task: Task, target: str) -> Point:
    """What a supernet's own controller ends at (TuNAS)."""
    return tuple(toy_supernet.read()["controllers", task.seed]["points"][target])


def by_weights(way: str, task: Task, target: str) -> Point:
    """The best network of all by a supernet's finished weights."""
    accuracies = weights_of(task, way).evaluate(task.table.points)[0]
    return task.table.points[int(np.argmax(task.believed(target, accuracies)))]


def corrected(task: Task, target: str) -> Point:
    """As `search/small` does with a supernet: some trainings correct it, finalists are trained."""
    weights = weights_of(task, "even")

    def cost_of(points: Sequence[Point]) -> np.ndarray:
        return task.problem.costs(points)["madds"]

    checks = spread(task.problem, weights, CHECKS, task.seed)
    evaluator = Corrected(weights, cost_of, checks, task.train(checks))
    rewards = task.believed(target, evaluator.evaluate(task.table.points)[0])
    finalists = best_first(dict(zip(task.table.points, rewards.tolist(), strict=True)), FINALISTS)
    goal = Goal(_Trainings(task), task.problem.costs, task.problem.rewards[target])
    return finalists[int(np.argmax(goal(finalists)))]


Method = Callable[[Task, str, int], Point]
METHODS: dict[str, Method] = {
    "policy gradient, with proxy": functools.partial(with_proxy, "policy_gradient"),
    "random, with proxy": functools.partial(with_proxy, "random"),
    "evolution": functools.partial(
        by_searcher,
        lambda space, seed, budget: Evolution(
            space, seed, population=max(4, budget // 4), tournament=2
        ),
    ),
    RANDOM: functools.partial(by_searcher, lambda space, seed, _: Random(space, seed)),
    AT_COST: at_cost,
}
UNTRAINED = (NEAREST, MADDS)
_SHARED = toy_supernet.TRAININGS
# With what they cost in trainings; for the seeds of which there are supernets.
SUPERNETS: dict[str, tuple[Callable[[Task, str], Point], int]] = {
    "supernet, its controller": (by_controller, _SHARED),
    "supernet with controllers, its weights": (
        functools.partial(by_weights, "controllers"),
        _SHARED,
    ),
    "supernet drawn evenly, its weights": (functools.partial(by_weights, "even"), _SHARED),
    "supernet drawn evenly, corrected, with finalists": (
        corrected,
        _SHARED + CHECKS + FINALISTS,
    ),
}


def run_seed(task: Task, *, supernets: bool) -> list[dict]:
    """Returns a row for each target, method and budget."""
    ways: dict[tuple[str, int], Callable[[str], Point]] = {
        (name, budget): functools.partial(_call, method, task, budget)
        for name, method in METHODS.items()
        for budget in BUDGETS
    }
    ways |= {(name, 0): functools.partial(untrained, name, task) for name in UNTRAINED}
    if supernets:
        ways |= {(n, cost): functools.partial(find, task) for n, (find, cost) in SUPERNETS.items()}
    rows = []
    for target in toy_truth.TARGETS:
        for (method, budget), way in ways.items():
            point = way(target)
            row = {"seed": task.seed, "target": target, "method": method, "budget": budget}
            rows.append(row | {"point": list(point), "regret": task.regret(target, point)})
    return rows


def _call(method: Method, task: Task, budget: int, target: str) -> Point:
    return method(task, target, budget)


def correlations(tasks: Sequence[Task]) -> dict[str, list[float]]:
    """Spearman's correlation of several estimates with the truth, a value for each task."""
    noted, found = toy_supernet.read(), {}
    everything = {
        "one training": lambda t: t.train(t.table.points),
        "multiply-adds": lambda t: t.costs["madds"],
    }
    for name, estimate in everything.items():
        found[name] = [agreement(estimate(t), t.truth).spearman for t in tasks]
    for way in toy_supernet.WAYS:
        some = [t for t in tasks if (way, t.seed) in noted]
        found[f"supernet, {way}"] = [
            agreement(noted[way, t.seed]["believed"], t.truth).spearman for t in some
        ]
    return found


def read(path: Path = ROWS) -> list[dict]:
    """Returns the rows of all seeds in a file."""
    return [row for line in read_lines(path, parse_object) for row in line["rows"]]


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--truth", type=Path, default=TOY_TRUTH)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROWS)
    flags = parser.parse_args()
    table, problem, noted = ToyTable(flags.truth), make_problem(), toy_supernet.read()
    done = {row["seed"] for row in read(flags.out)}
    for seed in sorted(set(range(flags.first_seed, flags.seeds)) - done):
        rows = run_seed(Task(table, problem, seed), supernets=("even", seed) in noted)
        append_line(flags.out, {"seed": seed, "rows": rows})
        print(seed, flush=True)


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(exit_code(main))
