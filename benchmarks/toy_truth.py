"""Trains every network of a small space long enough to judge the choices of searches.

python -m benchmarks.toy_truth
  Trains 128 networks for 2,400 steps on `clutter` at 32 pixels, and writes
  benchmarks/toy_truth.csv with a line for each training. A seed takes about an hour on one core.
  Run the same command again to resume; `--first-seed=1 --seeds=2` trains the second seed alone.
python -m benchmarks.toy_truth --describe
  Summarises the existing file.

A network is trained as a part of the largest of its widths, whose other weights are zero and stay
so: a smaller kernel is the middle of a larger one, fewer channels are its first, a block without a
residual branch is its shortcut, a gate of one no squeeze-and-excite. What is computed is exactly
the smaller network (tests/benchmarks/test_toy_truth.py), and XLA compiles 4 programs instead of
128. Adam at a constant rate after a short warm-up, no augmentation; averaged weights are evaluated
twice, so that the first steps of a training are its brief version.
"""

import argparse
import csv
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.ending import exit_code
from benchmarks.toy_table import TOY_TRUTH, ToyTable
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.cli import use_huge_pages
from mbv3_jax.core.json_lines import mend
from mbv3_jax.data.sources.clutter import Clutter
from mbv3_jax.nn import functional
from mbv3_jax.search.presets import preset
from mbv3_jax.search.space import Point, Space, Stage
from mbv3_jax.train import losses

# A network's cost decides little: 24 or more cost within a tenth of each of TARGETS multiply-adds.
# `largest` needs choices in ascending order, and an expansion layer in every block.
SPACE = Space(
    name="toys",
    base=preset("toy").base,
    stages=(
        Stage(out=(16,), stride=2, depth=(1, 2), kernel=(3, 5), expansion=(2, 4), act=("h_swish",)),
        Stage(
            out=(32,),
            stride=2,
            depth=(1, 2),
            kernel=(3, 5),
            expansion=(3, 6),
            se=(False, True),
            act=("h_swish",),
        ),
    ),
)
TARGETS = {"small": 3.56e5, "medium": 4.3e5, "large": 6.1e5}
BATCH, RATE, WARM_UP, EMA = 32, 0.004, 20, 0.98
BRIEF, LONG = 300, 2400  # steps
FIELDS = ("point", "seed", "steps", "validation", "test")
OPEN_GATE = 3.0  # a hard sigmoid's bias from which it is one


def largest(space: Space, point: Point) -> Point:
    """The point with the largest of everything but widths."""
    return tuple(
        index if decision.what == "out" else len(decision.choices) - 1
        for index, decision in zip(point, space.decisions, strict=True)
    )


def fresh(spec: NetSpec, seed: Sequence[int]) -> dict:
    """Variables by the rule of `functional.init`, but drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        *layer, kind = (p.key for p in path)
        if kind != "kernel":
            return np.full(leaf.shape, float(kind in ("scale", "var")), np.float32)
        out = 1 if "depthwise" in layer else leaf.shape[3]
        deviation = np.sqrt(2 / (leaf.shape[0] * leaf.shape[1] * out))
        deviation = 0.01 if layer[-1] in ("head", "logits") else deviation
        return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, functional.shapes(spec))


def place(space: Space, point: Point, variables: dict, *, gate: float = OPEN_GATE) -> dict:
    """Variables of a point's network where they are in the largest network of its widths.

    Args:
      space, point: whose network.
      variables: its variables; of ones, and with a `gate` of 0, they give its mask.
      gate: bias of squeeze-and-excite where the network has none.
    """
    names = {f"block{s + 1}": f"block{i + 1}" for i, s in enumerate(space.slots(point))}

    def put(path, leaf):
        part, stage, *rest = (p.key for p in path)
        node = variables[part].get(names.get(stage, stage if "block" not in stage else ""), {})
        for name in rest:
            node = node.get(name, {})
        whole = np.zeros(leaf.shape, np.float32)
        if isinstance(node, dict):
            if rest == ["se", "expand", "bias"]:
                whole[...] = gate
            return whole
        where = [slice(0, n) for n in node.shape]
        if len(where) == 4:
            margins = [(n - k) // 2 for n, k in zip(leaf.shape[:2], node.shape[:2], strict=True)]
            where[:2] = [slice(m, m + k) for m, k in zip(margins, node.shape[:2], strict=True)]
        whole[tuple(where)] = node
        return whole

    spec = space.to_spec(largest(space, point))
    return jax.tree_util.tree_map_with_path(put, functional.shapes(spec))


_TX = optax.adam(optax.join_schedules(
    [optax.linear_schedule(0, RATE, WARM_UP), optax.constant_schedule(RATE)], [WARM_UP]
))  # fmt: skip


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(spec: NetSpec, state, mask, images, labels):
    variables, opt_state, average = state

    def loss_of(params):
        logits, batch_stats = functional.apply(
            spec, variables | {"params": params}, images, train=True
        )
        return jnp.mean(losses.cross_entropy(logits, labels)), batch_stats

    grads, batch_stats = jax.grad(loss_of, has_aux=True)(variables["params"])
    grads = jax.tree.map(jnp.multiply, grads, mask)
    updates, opt_state = _TX.update(grads, opt_state)
    params = optax.apply_updates(variables["params"], updates)
    variables = {"params": params, "batch_stats": batch_stats}
    average = jax.tree.map(lambda a, v: EMA * a + (1 - EMA) * v, average, variables)
    return variables, opt_state, average


@functools.partial(jax.jit, static_argnums=0)
def _correct(spec: NetSpec, variables, images, labels):
    return losses.correct(functional.apply(spec, variables, images)[0], labels, 1).mean()


@functools.cache
def raw(split: str, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """All uint8 images and labels of a split."""
    source = Clutter(split, resolution)
    batch = source.batch(np.arange(len(source)))
    return batch["image"], batch["label"]


@functools.cache
def _data(split: str, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = raw(split, resolution)
    return images.astype(np.float32) / 127.5 - 1, labels


def train(space: Space, point: Point, seed: int):
    """Trains a network; yields (steps, validation top-1, test top-1) after BRIEF and LONG steps."""
    own, spec = space.to_spec(point), space.to_spec(largest(space, point)).replace(name="largest")
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), functional.shapes(own))
    mask = place(space, point, ones, gate=0.0)["params"]
    variables = jax.tree.map(jnp.asarray, place(space, point, fresh(own, (seed, *point))))
    average = jax.tree.map(jnp.copy, variables)
    state = variables, _TX.init(variables["params"]), average
    images, labels = _data("train", spec.resolution)
    rng = np.random.default_rng((seed, *point, 1))
    order = np.concatenate(
        [rng.permutation(len(labels)) for _ in range(-(-LONG * BATCH // len(labels)))]
    )
    for step in range(1, LONG + 1):
        rows = order[(step - 1) * BATCH : step * BATCH]
        state = _step(spec, state, mask, images[rows], labels[rows])
        if step in (BRIEF, LONG):
            yield step, *(_top1(spec, state[2], split) for split in ("validation", "test"))


def _top1(spec: NetSpec, variables, split: str) -> float:
    images, labels = _data(split, spec.resolution)
    parts = range(0, len(labels), 500)
    found = [
        _correct(spec, variables, images[i : i + 500], labels[i : i + 500]).item() for i in parts
    ]
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=TOY_TRUTH)
    parser.add_argument("--describe", action="store_true")
    flags = parser.parse_args()
    if flags.describe:
        print(ToyTable(flags.out).describe())
    else:
        fill(flags.out, range(flags.first_seed, flags.seeds))


def fill(out: Path, seeds: Sequence[int]) -> None:
    """Adds to a file every network that it lacks, trained with every seed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        out.write_text(",".join(FIELDS) + "\n")
    mend(out)
    with out.open(newline="") as f:
        done = {(r["point"], r["seed"]) for r in csv.DictReader(f) if int(r["steps"]) == LONG}
    with out.open("a", newline="") as f:
        for seed in seeds:
            for point in SPACE.points():
                name = "-".join(map(str, point))
                if (name, str(seed)) in done:
                    continue
                lines = [
                    f"{name},{seed},{after},{validation:.4f},{test:.4f}\n"
                    for after, validation, test in train(SPACE, point, seed)
                ]
                f.write("".join(lines))  # both or neither
                f.flush()
                print(lines[-1], end="", flush=True)


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(exit_code(main))
