"""Supernets with controllers on the space `toy`, for `benchmarks.search`.

python -m benchmarks.toy_supernet --seeds=20
  Writes benchmarks/toy_supernet.jsonl with a line for each search. Run the same command again to
  resume. A search takes as many training steps as `budget` candidates of `benchmarks.toy_truth`,
  with its batch, optimizer and learning rate. The controller sees the validation split.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import optax

from benchmarks import toy_truth
from mbv3_jax.core.json_lines import append_line, parse_object, read_lines
from mbv3_jax.search.objective import COUNTS, Costs, Reward
from mbv3_jax.search.presets import preset
from mbv3_jax.search.supernet import network
from mbv3_jax.search.supernet.training import Controllers, Programs, SharedWeights
from mbv3_jax.train import sharding
from mbv3_jax.train.state import create_state

RUNS = Path(__file__).parent / "toy_supernet.jsonl"
BUDGETS = (8, 16, 32)  # in trainings of a candidate
EXPONENT = -0.5  # so that a tenth more multiply-adds cost five points
POINTS = 2  # a step
BELIEVED = 500  # validation images that the whole space is evaluated on in the end


def reward_of(space, points) -> Reward:
    """Accuracy less half of the relative distance from the median multiply-adds of points."""
    target = float(np.median(Costs(space, COUNTS)(points)["madds"]))
    return Reward(targets={"madds": target}, exponent=EXPONENT)


class Searches:
    """Compiled once; `run(budget, seed)` is a search."""

    def __init__(self):
        self.space = preset("toy")
        self.points = sorted(self.space.points())
        self.costs = Costs(self.space, COUNTS)
        self.reward = reward_of(self.space, self.points)
        self.tx = optax.adam(optax.warmup_constant_schedule(0, toy_truth.RATE, toy_truth.WARM_UP))
        self.programs = Programs(
            self.space,
            self.tx,
            preprocess=(lambda batch, _: (_input(batch["image"]), batch["label"]), _input),
            mesh=sharding.make_mesh(jax.devices()[:1]),
        )
        spec, tx = network.largest(self.space), self.tx
        self.create = jax.jit(lambda seed: create_state(spec, tx, seed=seed, with_ema=False))

    def run(self, budget: int, seed: int) -> dict:
        """The point that the controller ends at, and what the weights believe of every network."""
        steps, batch = budget * toy_truth.LONG, toy_truth.BATCH
        weights = self.create(np.uint32(seed))
        controllers = Controllers(
            self.space,
            self.costs,
            {"one": self.reward},
            total_steps=steps,
            seed=seed,
            points=POINTS,
        )
        train = _batches("train", self.space.base.resolution, (seed, budget, 0))
        held = _batches("validation", self.space.base.resolution, (seed, budget, 1))
        for step in range(steps):
            point = controllers.draw(step)
            weights, _ = self.programs.step(weights, next(train), point, seed)
            params, now = weights.variables["params"], next(held)
            controllers.learn(
                step,
                lambda p, params=params, now=now: self.programs.correct(params, now, p) / batch,
            )
        images, labels = toy_truth.raw("validation", self.space.base.resolution)
        whole = {"image": images[:BELIEVED], "label": labels[:BELIEVED]}
        evaluator = SharedWeights(self.programs, weights.variables["params"], [whole])
        believed = evaluator.evaluate(self.points)[0]
        return {
            "budget": budget,
            "seed": seed,
            "point": list(controllers.modes()["one"]),
            "believed": [round(float(x), 4) for x in believed],
        }


def _input(images):
    return images.astype("float32") / 127.5 - 1


def _batches(split: str, resolution: int, seed):
    images, labels = toy_truth.raw(split, resolution)
    rng, size = np.random.default_rng(seed), toy_truth.BATCH
    while True:
        order = rng.permutation(len(labels))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            yield {"image": images[rows], "label": labels[rows]}


def read(path: Path) -> dict[tuple[int, int], dict]:
    """What is in a file, by budget and seed."""
    return {(r["budget"], r["seed"]): r for r in read_lines(path, parse_object)}


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RUNS)
    flags = parser.parse_args()
    searches = Searches()
    for budget in BUDGETS:
        for seed in range(flags.first_seed, flags.seeds):
            if (budget, seed) in read(flags.out):
                continue
            line = searches.run(budget, seed)
            append_line(flags.out, line)
            print(budget, seed, line["point"], flush=True)


if __name__ == "__main__":
    main()
