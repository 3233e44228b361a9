"""Supernets on the space of `benchmarks.toy_truth`, for `benchmarks.toy_search`.

python -m benchmarks.toy_supernet --seeds=5
  Writes benchmarks/toy_supernet.jsonl with a line for each supernet. Run the same command again to
  resume. A supernet takes as many training steps as 8 networks of `benchmarks.toy_truth`, with
  their batch, optimizer and learning rate. Its networks are drawn uniformly, or by a controller for
  each target, which uses the validation split (TuNAS).
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from benchmarks import toy_truth
from benchmarks.ending import exit_code
from mbv3_jax.cli import use_huge_pages
from mbv3_jax.core.json_lines import append_line, parse_object, read_lines
from mbv3_jax.search.objective import COUNTS, Costs, Reward
from mbv3_jax.search.supernet import network
from mbv3_jax.search.supernet.training import Controllers, Programs, SharedWeights
from mbv3_jax.train import sharding
from mbv3_jax.train.state import create_state

RUNS = Path(__file__).parent / "toy_supernet.jsonl"
TRAININGS = 8  # of a network, whose steps a supernet is trained for
EXPONENT = -0.5  # so that a tenth more multiply-adds cost five points
WAYS = {"even": 0, "controllers": 2}  # points that a controller draws in a step
BELIEVED = 500  # validation images that the whole space is evaluated on in the end


def rewards() -> dict[str, Reward]:
    """Accuracy less half of the relative distance from each target."""
    return {
        name: Reward(targets={"madds": target}, exponent=EXPONENT)
        for name, target in toy_truth.TARGETS.items()
    }


class Supernets:
    """Compiled once; `run(way, seed)` trains a supernet."""

    def __init__(self):
        self.space = toy_truth.SPACE
        self.points = sorted(self.space.points())
        self.costs = Costs(self.space, COUNTS)
        self.tx = optax.adam(optax.warmup_constant_schedule(0, toy_truth.RATE, toy_truth.WARM_UP))
        self.programs = Programs(
            self.space,
            self.tx,
            preprocess=(lambda batch, _: (_input(batch["image"]), batch["label"]), _input),
            mesh=sharding.make_mesh(jax.devices()[:1]),
        )
        spec, tx = network.largest(self.space), self.tx
        self.create = jax.jit(lambda seed: create_state(spec, tx, seed=seed, with_ema=False))

    def run(self, way: str, seed: int) -> dict:
        """What the weights believe of every network, and the points that controllers end at."""
        steps, batch = TRAININGS * toy_truth.LONG, toy_truth.BATCH
        weights = self.create(np.uint32(seed))
        controllers = Controllers(
            self.space,
            self.costs,
            rewards(),
            total_steps=steps,
            seed=seed,
            points=WAYS[way],
        )
        train = _batches("train", self.space.base.resolution, (seed, 0))
        held = _batches("validation", self.space.base.resolution, (seed, 1))
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
            "way": way,
            "seed": seed,
            "points": {name: list(point) for name, point in controllers.modes().items()},
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


def read(path: Path = RUNS) -> dict[tuple[str, int], dict]:
    """What is in a file, by way and seed."""
    return {(r["way"], r["seed"]): r for r in read_lines(path, parse_object)}


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RUNS)
    flags = parser.parse_args()
    supernets = Supernets()
    for seed in range(flags.first_seed, flags.seeds):
        for way in WAYS:
            if (way, seed) not in read(flags.out):
                append_line(flags.out, supernets.run(way, seed))
                print(way, seed, flush=True)


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(exit_code(main))
