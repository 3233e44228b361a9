"""Do the searches search? On the space `toy`, of which every network has been trained.

python -m benchmarks.toy_search
  after `python -m benchmarks.toy_truth` and `python -m benchmarks.toy_supernet`. Every method may
  take the same number of training steps: so many candidates, of which it sees the validation
  accuracy of one training each, or a supernet. What it finds is held against the mean test accuracy
  of the trainings with other seeds than those that it has seen.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks import toy_supernet
from benchmarks.toy_table import TOY_TRUTH, ToyTable
from mbv3_jax.search.evaluators import Table, agreement, split_half_reliability
from mbv3_jax.search.objective import COUNTS, Costs
from mbv3_jax.search.policy_gradient import PolicyGradient
from mbv3_jax.search.presets import preset
from mbv3_jax.search.rounds import Rounds
from mbv3_jax.search.searchers import Evolution, Random, front, hypervolume, run
from mbv3_jax.search.strategies import SEARCHERS, Goal, propose, propose_trainings

BUDGETS = toy_supernet.BUDGETS  # trainings


class Task:
    """The table with its costs, and a target in the middle of them.

    A search of seed s sees the trainings of the table's seed s modulo their number; its truth,
    `accuracy(s)` [networks], is the mean test accuracy of the others.
    """

    def __init__(self, table: ToyTable):
        self.space, self.table = preset("toy"), table
        self.costs = Costs(self.space, COUNTS)
        self.madds = self.costs(table.points)["madds"]
        self.reward = toy_supernet.reward_of(self.space, table.points)
        self.target = self.reward.targets["madds"]
        self.logs = np.log2(self.madds)
        self.seeds = table.test.shape[1]

    def accuracy(self, seed: int) -> np.ndarray:
        return np.delete(self.table.test, seed % self.seeds, axis=1).mean(1)

    def train(self, points, seed: int) -> np.ndarray:
        """What a search sees of points: validation accuracies [N] of one training each."""
        return self.table.validation[self.table.rows(points), seed % self.seeds]

    def rewards(self, accuracies) -> np.ndarray:
        return self.reward(accuracies, {"madds": self.madds})

    def regret(self, point, seed: int) -> float:
        """How much test reward the best network of the space has more."""
        rewards = self.rewards(self.accuracy(seed))
        return float(rewards.max() - rewards[self.table.rows([point])[0]])

    def hypervolume(self, points, believed, seed: int) -> float:
        """What the points that a method believes best surpass, by test accuracy, as a part of
        what the best of the space do."""
        test, rows = self.accuracy(seed), self.table.rows(points)
        # Above the worst network and below twice the cost of the dearest.
        bounds = {"worst": test.min(), "most": self.logs.max() + 1}
        found = rows[front(np.asarray(believed), self.logs[rows])]
        return hypervolume(test[found], self.logs[found], **bounds) / hypervolume(
            test, self.logs, **bounds
        )


def by_searcher(task: Task, searcher, budget: int, seed: int) -> dict:
    """Random search or evolution; it believes what it has seen."""
    seen = []

    def reward_of(points):
        accuracy = task.train(points, seed)
        seen.extend(zip(points, accuracy.tolist(), strict=True))
        return task.reward(accuracy, task.costs(points))

    best, _ = run(searcher, reward_of, steps=budget // 4, batch=4)
    points, accuracies = zip(*seen, strict=True)
    return {"point": best, "hypervolume": task.hypervolume(points, accuracies, seed)}


def by_surrogate(task: Task, budget: int, seed: int) -> dict:
    """Rounds, a half of the budget at random; the best trained network is chosen."""
    strategy = SEARCHERS["policy_gradient"](task.space)

    def search(predictor, seed, count, known):
        return propose_trainings(
            strategy, task.space, predictor, task.costs, task.reward,
            seed=seed, count=count, known=known,
        )  # fmt: skip

    rounds = Rounds(task.space, lambda p, _: task.train(p, seed), search, seed)
    surrogate = rounds.run(first=budget // 2, per_round=budget // 4, rounds=2)
    trained = [p for p, _ in rounds.trained]
    best = trained[int(np.argmax(Goal(surrogate, task.costs, task.reward)(trained)))]
    return by_belief(task, best, surrogate.expect(task.table.points), seed)


def by_supernet(task: Task, budget: int, seed: int) -> dict:
    """A supernet with its controller, of which `benchmarks.toy_supernet` has noted the end."""
    noted = toy_supernet.read(toy_supernet.RUNS)[budget, seed]
    return by_belief(task, tuple(noted["point"]), np.array(noted["believed"]), seed)


def by_supernet_then(task: Task, budget: int, seed: int) -> dict:
    """The same supernet, but a policy gradient afterwards, on the weights as they ended."""
    believed = np.array(toy_supernet.read(toy_supernet.RUNS)[budget, seed]["believed"])
    table = Table({p: [b] for p, b in zip(task.table.points, believed.tolist(), strict=True)})
    (best,) = propose(task.space, table, task.costs, task.reward, seed=seed)
    return by_belief(task, best, believed, seed)


def by_belief(task: Task, point, believed, seed: int) -> dict:
    """A point, and the front that an evaluator's accuracies of all networks give."""
    own = task.rewards(believed)
    return {
        "point": point,
        "hypervolume": task.hypervolume(task.table.points, believed, seed),
        "of_optimum": float(own[task.table.rows([point])[0]] / own.max()),
        "spearman": agreement(believed, task.accuracy(seed)).spearman,
    }


METHODS = {
    "surrogate + policy gradient": by_surrogate,
    "supernet + policy gradient": by_supernet,
    "supernet, then policy gradient": by_supernet_then,
    "regularised evolution": lambda task, budget, seed: by_searcher(
        task,
        Evolution(task.space, seed, population=max(4, budget // 4), tournament=2),
        budget,
        seed,
    ),
    "random search": lambda task, budget, seed: by_searcher(
        task, Random(task.space, seed), budget, seed
    ),
}


def interval(values) -> str:
    """Mean and the half width of its 95% interval (Student's t)."""
    from scipy import stats

    values = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.2f} +- {half:.2f}"


def gradients(task: Task, batches: int = 400, batch: int = 64) -> tuple[float, float]:
    """The mean of sampled gradients against the enumerated one: cosine, and relative length."""
    searcher = PolicyGradient(task.space, 0, total_steps=1)
    # Away from the even policy, where the gradient is like any other.
    rng = np.random.default_rng(0)
    shape = searcher.params["logits"].shape
    searcher.params = {"logits": rng.normal(size=shape).astype(np.float32)}
    rewards = task.rewards(task.table.test.mean(1))
    searcher.baseline = float(rewards.mean())
    points = task.table.points
    active = np.ones((len(points), len(task.space.decisions)), np.float32)
    log_p = searcher.policy.log_probs(searcher.params, np.array(points, np.int32), active)
    weight = len(points) * np.exp(np.asarray(log_p))
    advantage = rewards - searcher.baseline
    exact = searcher.gradient(points, weight * advantage + searcher.baseline)["logits"]
    sampled = []
    for _ in range(batches):
        drawn = searcher.ask(batch)
        sampled.append(searcher.gradient(drawn, rewards[task.table.rows(drawn)])["logits"])
    exact, mean = np.ravel(exact), np.ravel(np.mean(sampled, axis=0))
    lengths = np.linalg.norm(exact), np.linalg.norm(mean)
    return float(exact @ mean / np.prod(lengths)), float(lengths[1] / lengths[0])


def document(task: Task, seeds: int) -> str:
    """The page, measured now."""
    found = {
        (name, budget): [method(task, budget, seed) for seed in range(seeds)]
        for budget in BUDGETS
        for name, method in METHODS.items()
    }
    table, steps = task.table, task.table.steps
    rows = ["| | " + " | ".join(f"{b} trainings" for b in BUDGETS) + " |", "|-|-|-|-|"]

    def add(kind, value, methods=METHODS):
        for name in methods:
            cells = [
                interval([value(r, seed) for seed, r in enumerate(found[name, b])]) for b in BUDGETS
            ]
            rows.append(f"| {kind}: {name} | " + " | ".join(cells) + " |")

    evaluators = [name for name in METHODS if "policy gradient" in name]
    add("regret", lambda r, seed: 100 * task.regret(r["point"], seed))
    add("hypervolume, %", lambda r, seed: 100 * r["hypervolume"])
    add("cost off target, %", lambda r, seed: 100 * abs(_madds(task, r) / task.target - 1))
    add("Spearman of the evaluator with the truth", lambda r, seed: r["spearman"], evaluators)
    add("part of its evaluator's optimum, %", lambda r, seed: 100 * r["of_optimum"], evaluators)
    worst = min(r["of_optimum"] for b in BUDGETS for r in found[evaluators[0], b])
    chance = np.mean([task.regret(p, s) for p in table.points for s in range(task.seeds)])
    one = [agreement(table.validation[:, i], task.accuracy(i)).spearman for i in range(task.seeds)]
    cosine, length = gradients(task)
    return "\n".join(
        [
            "# Do the searches search?",
            "",
            "    python -m benchmarks.toy_truth && python -m benchmarks.toy_supernet",
            "    python -m benchmarks.toy_search",
            "",
            f"The space `toy` on clutter. {table.describe()}",
            "",
            f"Every method takes the steps of so many trainings of {steps} steps, sees the "
            f"validation split alone, and chooses by accuracy {toy_supernet.EXPONENT} |MAdds / "
            f"{task.target:.3g} - 1|. What it chose is measured by the mean test accuracy of "
            f"{task.seeds - 1} other trainings of that network. Means of {seeds} search seeds with "
            "their 95% intervals (Student's t); regret in points of reward against the best of the "
            "space, which is the best by a noisy mean: no method can be expected to reach 0. A "
            f"network drawn blindly has {100 * chance:.1f}.",
            "",
            *rows,
            "",
            f"- One training of each network against the truth, Spearman: {np.mean(one):.2f}; "
            f"reliability of the truth: {split_half_reliability(table.test):.2f}.",
            f"- The policy gradient on the surrogate reached at worst {worst:.2%} of the "
            "enumerated optimum.",
            "- Why the supernet's own controller is hardly better than random search at "
            f"{BUDGETS[-1]} trainings: the weights rank the networks well (Spearman above), but "
            "the controller is rewarded by batches of 32 images, by weights that still change, "
            "and has settled before they are good. The policy gradient on the weights as they "
            "ended finds what they know, at no further training step.",
            f"- The mean of 400 sampled gradients against the enumerated one: cosine {cosine:.4f}, "
            f"length {length:.3f} of it.",
            "",
        ]
    )


def _madds(task: Task, result: dict) -> float:
    return task.costs([result["point"]])["madds"].item()


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--truth", type=Path, default=TOY_TRUTH)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    text = document(Task(ToyTable(flags.truth)), flags.seeds)
    if flags.out:
        flags.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
