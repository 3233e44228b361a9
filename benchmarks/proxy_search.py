"""Which searcher finds the best networks with a proxy, at equal cost and effort?

python -m benchmarks.proxy_search --table=accel_nasbench.json --latency=latency.json --out=FILE.json
  `mbv3 search table accel_nasbench` makes the table; `latency.json` is in the folder of a search by
  configs/search/proxy.py, or from `mbv3 latency measure --space=accel_nasbench`.

Every searcher evaluates the same number of networks, with a proxy of one half of the table. A proxy
of the other half, which the search does not use, judges the network that it would train: by
accuracy and, at equal cost, by the reward at the targets of configs/search/proxy.py.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.search_page import interval
from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import spec_to_json
from mbv3_jax.core.files import write_atomically
from mbv3_jax.latency import cost_model
from mbv3_jax.latency.table import read_table
from mbv3_jax.search.network_table import open_network_table
from mbv3_jax.search.objective import COUNTS, Costs, Reward, reference_network
from mbv3_jax.search.proxy import Proxy
from mbv3_jax.search.strategies import Goal, propose, refine

TARGETS = {"small": "mobilenet_v3_small", "large": "mobilenet_v3_large"}
EXPONENT = -0.3
# The searcher, and which part of the effort is kept for refining what it finds.
SEARCHERS: dict[str, tuple[dict, float]] = {
    "policy gradient, refined": ({"searcher": "policy_gradient"}, 1 / 3),
    "policy gradient": ({"searcher": "policy_gradient"}, 0),
    "policy gradient, LSTM": ({"searcher": "policy_gradient", "policy": "lstm"}, 0),
    "evolution": ({"searcher": "evolution"}, 0),
    "random, refined": ({"searcher": "random"}, 1 / 3),
    "random": ({"searcher": "random"}, 0),
}


def searched(table, latency, *, seeds: int, steps: int, batch: int) -> list[dict]:
    """Returns a row for each searcher, target and seed."""
    space, rows = table.space, []
    costs = Costs(space, {"ms": cost_model.fit(latency), "madds": COUNTS["madds"]})
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(table.networks))
        half = len(order) // 2
        chooser, judge = (
            Proxy(table, rows=part, seed=seed) for part in (order[:half], order[half:])
        )
        for target, name in TARGETS.items():
            spec = reference_network(name, space)
            targets = {"ms": costs.functions["ms"](spec), "madds": float(cost.madds(spec))}
            reward = Reward(targets=targets, form="absolute", exponent=EXPONENT)
            for method, (options, part) in SEARCHERS.items():
                rounds = int(part * steps)
                (point,) = propose(
                    space, chooser, costs, reward,
                    seed=seed, steps=steps - rounds, batch=batch, **options,
                )  # fmt: skip
                goal = Goal(chooser, costs, reward)
                point = refine(space, goal, point, rounds=rounds, batch=batch, seed=seed)
                believed, judged = (proxy.evaluate([point])[0].item() for proxy in (chooser, judge))
                paid = {key: values.item() for key, values in costs([point]).items()}
                rows.append(
                    {
                        "method": method,
                        "target": target,
                        "seed": seed,
                        "point": list(point),
                        "believed": believed,
                        "judged": judged,
                        "reward": reward(np.array([judged]), costs([point])).item(),
                        "targets": targets,
                        **paid,
                        "spec": json.loads(spec_to_json(space.to_spec(point))),
                    }
                )
                print(json.dumps({k: rows[-1][k] for k in ("method", "target", "seed", "reward")}))
    return rows


def report(rows: list[dict]) -> str:
    """Returns a table of means with 95% intervals, in points, and of paired differences."""
    lines = [
        "| target | searcher | believed top-1 | judged top-1 | judged reward | behind the first |",
        "|-|-|-|-|-|-|",
    ]
    for target in TARGETS:
        first = None
        for method in SEARCHERS:
            some = [r for r in rows if r["method"] == method and r["target"] == target]
            keys = ("believed", "judged", "reward")
            values = {key: 100 * np.array([r[key] for r in some]) for key in keys}
            first = values["reward"] if first is None else first
            behind = "" if method == next(iter(SEARCHERS)) else interval(first - values["reward"])
            cells = [interval(values[key]) for key in keys]
            lines.append(" | ".join(["| " + target, method, *cells, behind + " |"]))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--latency", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    flags = parser.parse_args()
    rows = searched(
        open_network_table(flags.table),
        read_table(flags.latency),
        seeds=flags.seeds,
        steps=flags.steps,
        batch=flags.batch,
    )
    write_atomically(flags.out, json.dumps(rows, indent=1))
    print(report(rows))


if __name__ == "__main__":
    main()
