"""A supernet's step against an ordinary step of its largest network, in turns, on one device.

python -m benchmarks.supernet_step --space=letters
"""

import argparse
import statistics
import time

import jax
import numpy as np
import optax

from mbv3_jax.search.presets import PRESETS, preset
from mbv3_jax.search.supernet import network
from mbv3_jax.search.supernet.training import Programs
from mbv3_jax.train import sharding
from mbv3_jax.train.state import create_state
from mbv3_jax.train.step import make_train_step


def _input(images):
    return images.astype("float32") / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--space", choices=PRESETS, default="letters")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    flags = parser.parse_args()
    space = preset(flags.space).replace(resolution=flags.resolution, dropout=0.0)
    spec, tx = network.largest(space), optax.adam(1e-3)
    mesh = sharding.make_mesh(jax.devices()[:1])
    programs = Programs(
        space, tx, preprocess=(lambda b, _: (_input(b["image"]), b["label"]), _input), mesh=mesh
    )
    plain = make_train_step(
        spec,
        tx,
        optax.constant_schedule(1e-3),
        preprocess=lambda b, _: (_input(b["image"]), b["label"]),
        mesh=mesh,
        seed=0,
    )
    rng = np.random.default_rng(0)
    size = spec.resolution
    batch = {
        "image": rng.integers(0, 256, (flags.batch, size, size, 3), np.uint8),
        "label": rng.integers(0, spec.num_classes, flags.batch).astype(np.int32),
    }
    states = [jax.jit(lambda: create_state(spec, tx, seed=0, with_ema=False))() for _ in range(2)]
    points = space.sample(rng, flags.steps + 3)

    def shared(s, i):
        s, (loss, _) = programs.step(s, batch, points[i], 0)
        return s, loss

    def ordinary(s, _):
        s, metrics = plain(s, sharding.put_batch(batch, mesh))
        return s, metrics["loss"]

    times: list[list[float]] = [[], []]
    for i in range(flags.steps + 3):
        for k, step in enumerate((shared, ordinary)):
            began = time.perf_counter()
            states[k], loss = step(states[k], i)
            loss.block_until_ready()
            times[k].append(1e3 * (time.perf_counter() - began))
    supernet_ms, plain_ms = (statistics.median(t[3:]) for t in times)
    print(
        f"{flags.space}, {size} px, batch {flags.batch}: supernet {supernet_ms:.1f} ms, largest "
        f"network {plain_ms:.1f} ms, ratio {supernet_ms / plain_ms:.2f}; first steps "
        f"{times[0][0] / 1e3:.1f} s and {times[1][0] / 1e3:.1f} s"
    )


if __name__ == "__main__":
    main()
