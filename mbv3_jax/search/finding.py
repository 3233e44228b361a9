"""The stage of a search that chooses: by shared weights, or by a surrogate."""

import json
from typing import TYPE_CHECKING

import numpy as np

from mbv3_jax.train import run_folder

if TYPE_CHECKING:
    from mbv3_jax.search.program import Search

# Networks that are drawn from a trained controller, or changed from the best so far in a decision
# each, so many times; evaluated on more images than it saw, by the weights as they ended.
_DRAWN, _ROUNDS = 16, 12


def by_supernet(search: "Search") -> dict:
    """Trains shared weights and a controller for each target (TuNAS), and betters what the
    controllers end at, which settle before the weights are good (benchmarks/SEARCH.md). `check`
    random networks are trained, to say how far the weights may be trusted."""
    from mbv3_jax.search.evaluators.agreement import agreement
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
    from mbv3_jax.search.evaluators.surrogate import Rounds
    from mbv3_jax.search.propose import propose

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
        run_folder.write_atomically(file, json.dumps(rounds.state()))
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
    from mbv3_jax.search.trainings import Trainings

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
