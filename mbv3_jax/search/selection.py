"""The points that a policy gradient finds best by an evaluator that answers at once."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mbv3_jax.core.files import write_atomically
from mbv3_jax.search.evaluators import Evaluator
from mbv3_jax.search.objective import Costs, Reward
from mbv3_jax.search.policy_gradient import PolicyGradient
from mbv3_jax.search.searchers import run
from mbv3_jax.search.space import Point, Space

STEPS, BATCH = 300, 16


def propose(
    space: Space,
    evaluator: Evaluator,
    costs: Costs,
    reward: Reward,
    *,
    seed: int,
    count: int = 1,
    steps: int = STEPS,
    batch: int = BATCH,
    policy: str = "factorised",
    after_step: Callable = lambda *_: None,
) -> list[Point]:
    """Searches and returns up to `count` of the points visited, best first.

    Args:
      space, evaluator, costs, reward: where, and what is maximised.
      seed: of the search.
      count: how many points.
      steps, batch: `steps` updates of the policy, each from `batch` points.
      policy: of `PolicyGradient`.
      after_step: as for `searchers.base.run`.
    """
    rate = {"factorised": 1.6, "autoregressive": 0.6}[policy] / steps
    searcher = PolicyGradient(space, seed, total_steps=steps, policy=policy, learning_rate=rate)
    visited: dict[Point, float] = {}

    def reward_of(points):
        return reward(evaluator.evaluate(points)[0], costs(points))

    def note(step, points, rewards):
        after_step(step, points, rewards)
        visited.update(zip(points, rewards.tolist(), strict=True))

    run(searcher, reward_of, steps=steps, batch=batch, after_step=note)
    return sorted(visited, key=visited.get, reverse=True)[:count]


# The stage of a search that chooses: by shared weights, or by a surrogate.

if TYPE_CHECKING:
    from mbv3_jax.search.program import Search

# Networks that are drawn from a trained controller, or changed from the best so far in a decision
# each, so many times; evaluated on more images than it saw, by the weights as they ended.
_DRAWN, _ROUNDS = 16, 12


def by_supernet(search: "Search") -> dict:
    """Trains shared weights and a controller for each target (TuNAS), and betters what the
    controllers end at, which settle before the weights are good (benchmarks/SEARCH.md). `check`
    random networks are trained, to say how far the weights may be trusted."""
    from mbv3_jax.search.evaluators import agreement
    from mbv3_jax.search.supernet.run import train

    config, space = search.config, search.space
    controllers, evaluator = train(
        config.shared,
        space,
        search.costs,
        search.rewards,
        search.folder / "supernet",
        search.console,
        seed=config.seed,
        points=config.controller.points,
        learning_rate=config.controller.learning_rate,
    )
    chosen, traces = {}, controllers.trace
    for name, mode in controllers.found().items():
        rng, best = np.random.default_rng((config.seed, 2)), mode
        drawn = controllers.searchers[name].ask(_DRAWN)
        for _ in range(_ROUNDS):
            drawn = list(dict.fromkeys([best, *drawn]))
            rewards = search.rewards[name](evaluator.evaluate(drawn)[0], search.costs(drawn))
            best = drawn[int(np.argmax(rewards))]
            drawn = [space.mutate(best, rng) for _ in range(_DRAWN)]
        chosen[name] = best
    known = space.sample(np.random.default_rng((config.seed, 1)), config.check)
    known = list(dict.fromkeys(known))
    found = _trainings(search)(known, config.seed) if known else np.zeros(0)
    believed = evaluator.evaluate(known)[0] if known else np.zeros(0)
    trained = list(zip(known, found.tolist(), strict=True))
    return _result(search, chosen, evaluator, traces, agreement(believed, found), trained)


def by_surrogate(search: "Search") -> dict:
    """Trains candidates briefly in rounds, and searches on what was fitted to them."""
    from mbv3_jax.search.surrogate import Rounds

    config = search.config
    options = {k: config.controller[k] for k in ("policy", "steps", "batch")}

    def best(surrogate, reward, seed, count, **more):
        own = {"seed": seed, "count": count, **options, **more}
        return propose(search.space, surrogate, search.costs, reward, **own)

    def interleaved(surrogate, seed: int, count: int) -> list:
        """The best for each target in turn."""
        lists = [best(surrogate, r, seed, count) for r in search.rewards.values()]
        return [point for points in zip(*lists, strict=False) for point in points]

    rounds = Rounds(search.space, _trainings(search), interleaved, config.seed)
    file = search.folder / "rounds.json"
    if file.exists():
        rounds.load(json.loads(file.read_text()))

    def save(rounds):
        write_atomically(file, json.dumps(rounds.state()))
        search.console.print(f"candidates trained: {len(rounds.trained)}")

    surrogate = rounds.run(**config.rounds, after_round=save)
    chosen, traces = {}, {}
    for name, reward in search.rewards.items():
        trace = traces[name] = []
        (chosen[name],) = best(
            surrogate,
            reward,
            config.seed,
            1,
            after_step=lambda _, points, rewards, trace=trace: trace.append(float(rewards.mean())),
        )
    return _result(search, chosen, surrogate, traces, rounds.agreement, rounds.trained)


EVALUATORS = {"supernet": by_supernet, "surrogate": by_surrogate}


def _trainings(search: "Search"):
    from mbv3_jax.search.candidates import Trainings

    config = search.config
    return Trainings(search.space, config.brief, search.folder / "candidates", search.console)


def _result(search: "Search", chosen, evaluator, traces, agreement, trained) -> dict:
    """What is in found.json."""
    found = {}
    for name, point in chosen.items():
        accuracy, uncertainty = evaluator.evaluate([point])
        found[name] = {
            "point": list(point),
            "predicted": accuracy.item(),
            "uncertainty": uncertainty.item(),
            "rewards": traces[name],
        }
    costs = search.costs([p for p, _ in trained])[search.config.cost].tolist()
    finite = agreement.spearman if np.isfinite(agreement.spearman) else None
    return {
        "found": found,
        "agreement": {
            "spearman": finite,
            "count": agreement.count,
            "text": agreement.describe() if agreement.count else "",
        },
        "candidates": [
            {"point": list(p), "top1": top1, "cost": cost}
            for (p, top1), cost in zip(trained, costs, strict=True)
        ],
    }
