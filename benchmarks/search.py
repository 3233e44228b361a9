"""Do the searches search? On the space `toy`, of which every network has been trained.

python -m benchmarks.search --out=benchmarks/SEARCH.md
  after `python -m benchmarks.toy_truth`. Every method may train the same number of networks
  briefly; it sees validation accuracies of one training each. What it finds is held against the
  mean test accuracy of the long trainings.
"""

import argparse
from pathlib import Path

import numpy as np

from mbv3_jax.search.costs import Costs
from mbv3_jax.search.evaluators.agreement import agreement, split_half_reliability
from mbv3_jax.search.evaluators.surrogate import Rounds
from mbv3_jax.search.evaluators.table import TOY_TRUTH, ToyTable
from mbv3_jax.search.presets import preset
from mbv3_jax.search.propose import propose
from mbv3_jax.search.rewards import COUNTS, Reward
from mbv3_jax.search.searchers.base import run
from mbv3_jax.search.searchers.evolution import Evolution
from mbv3_jax.search.searchers.front import front, hypervolume
from mbv3_jax.search.searchers.policy_gradient import PolicyGradient
from mbv3_jax.search.searchers.random import Random

BUDGETS = (16, 32, 64)  # brief trainings
EXPONENT = -0.5  # so that a tenth more multiply-adds cost five points


class Task:
    """The table with its costs, and a target in the middle of them."""

    def __init__(self, table: ToyTable):
        self.space, self.table = preset("toy"), table
        self.costs = Costs(self.space, COUNTS)
        self.madds = self.costs(table.points)["madds"]
        self.target = float(np.median(self.madds))
        self.reward = Reward(targets={"madds": self.target}, exponent=EXPONENT)
        self.test = table.test.mean(1)
        self.rewards = self.reward(self.test, {"madds": self.madds})
        self.logs = np.log2(self.madds)
        self.whole = self._area(np.arange(len(self.test)))

    def regret(self, point) -> float:
        """How much test reward the best network of the space has more."""
        return float(self.rewards.max() - self.rewards[self.table.rows([point])[0]])

    def hypervolume(self, points, believed) -> float:
        """What the points that a method believes best surpass, by test accuracy, as a part of
        what the best of the space do."""
        rows = self.table.rows(points)
        return self._area(rows[front(believed, self.logs[rows])]) / self.whole

    def _area(self, rows) -> float:
        # Above the worst network and below twice the cost of the dearest.
        bounds = {"worst": self.test.min(), "most": self.logs.max() + 1}
        return hypervolume(self.test[rows], self.logs[rows], **bounds)


def by_searcher(task: Task, searcher, budget: int, seed: int) -> dict:
    """Random search or evolution; it believes what it has seen."""
    seen = []

    def reward_of(points):
        accuracy = task.table.train_briefly(points, seed)
        seen.extend(zip(points, accuracy.tolist(), strict=True))
        return task.reward(accuracy, task.costs(points))

    best, _ = run(searcher, reward_of, steps=budget // 4, batch=4)
    points, accuracies = zip(*seen, strict=True)
    return {"point": best, "hypervolume": task.hypervolume(points, np.array(accuracies))}


def by_surrogate(task: Task, budget: int, seed: int) -> dict:
    """Rounds of the surrogate, half of the budget at first; then a policy gradient on it."""

    def search(surrogate, seed, count):
        return propose(task.space, surrogate, task.costs, task.reward, seed=seed, count=count)

    rounds = Rounds(task.space, lambda p, _: task.table.train_briefly(p, seed), search, seed)
    surrogate = rounds.run(first=budget // 2, per_round=budget // 4, rounds=2)
    (best,) = search(surrogate, seed, 1)
    believed = surrogate.evaluate(task.table.points)[0]
    own = task.reward(believed, {"madds": task.madds})
    return {
        "point": best,
        "hypervolume": task.hypervolume(task.table.points, believed),
        "of_optimum": float(own[task.table.rows([best])[0]] / own.max()),
        "spearman": agreement(believed, task.test).spearman,
    }


METHODS = {
    "surrogate + policy gradient": by_surrogate,
    "regularised evolution": lambda task, budget, seed: by_searcher(
        task, Evolution(task.space, seed, population=budget // 4), budget, seed
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
    searcher.baseline = float(task.rewards.mean())
    points = task.table.points
    active = np.ones((len(points), len(task.space.decisions)), np.float32)
    log_p = searcher.policy.log_probs(searcher.params, np.array(points, np.int32), active)
    weight = len(points) * np.exp(np.asarray(log_p))
    advantage = task.rewards - searcher.baseline
    exact = searcher.gradient(points, weight * advantage + searcher.baseline)["logits"]
    sampled = []
    for _ in range(batches):
        drawn = searcher.ask(batch)
        sampled.append(searcher.gradient(drawn, task.rewards[task.table.rows(drawn)])["logits"])
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
    table = task.table
    reliability = split_half_reliability(table.test)
    rows = ["| method | " + " | ".join(f"{b} trainings" for b in BUDGETS) + " |", "|-|-|-|-|"]

    def add(kind, value):
        for name in METHODS:
            cells = [interval([value(r) for r in found[name, b]]) for b in BUDGETS]
            rows.append(f"| {kind}: {name} | " + " | ".join(cells) + " |")

    add("regret", lambda r: 100 * task.regret(r["point"]))
    add("hypervolume, %", lambda r: 100 * r["hypervolume"])
    add("cost off target, %", lambda r: 100 * abs(_madds(task, r) / task.target - 1))
    ours = {b: found["surrogate + policy gradient", b] for b in BUDGETS}
    correlations = ", ".join(
        f"{interval([r['spearman'] for r in ours[b]])} after {b}" for b in BUDGETS
    )
    one = np.mean(
        [agreement(table.brief[:, i], task.test).spearman for i in range(table.brief.shape[1])]
    )
    optimum = [r["of_optimum"] for b in BUDGETS for r in ours[b]]
    cosine, length = gradients(task)
    return "\n".join(
        [
            "# Do the searches search?",
            "",
            "    python -m benchmarks.toy_truth && python -m benchmarks.search",
            "",
            f"The space `toy` on clutter. {table.describe()}",
            "",
            f"Every method trains as many networks briefly ({table.brief_steps} steps, validation "
            f"split) and chooses by accuracy {EXPONENT} |MAdds / {task.target:.3g} - 1|; what it "
            "chose is measured by the test accuracy of the long trainings. Means of "
            f"{seeds} search seeds with their 95% intervals; regret in points of reward.",
            "",
            *rows,
            "",
            f"- Surrogate against test accuracy, all networks, Spearman: {correlations}; one brief "
            f"training of each: {one:.2f}; reliability of the truth: {reliability:.2f}.",
            f"- The policy gradient reached {np.mean(optimum):.2%} of its evaluator's enumerated "
            f"optimum, at worst {min(optimum):.2%}, in {len(optimum)} searches.",
            f"- The mean of 400 sampled gradients against the enumerated one: cosine {cosine:.4f}, "
            f"length {length:.3f} of it.",
            "- A supernet as the evaluator is not measured here.",
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
