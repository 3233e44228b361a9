"""What the training loop costs in addition to its step: python -m benchmarks.loop [--config ...]

Runs in turns, with one configuration: the bare step on a batch that is already on the device, and
`train` as `main.py` calls it, with its loader, logging and checkpoints. The rate of `train` is the
median of its log records without the first, which includes the compilation.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from mbv3_jax.run.config import parse_config
from mbv3_jax.run.metrics import read_metrics
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.loop import train
from mbv3_jax.train.sharding import put_batch


def bare_rate(config, steps: int) -> float:
    """Images/s of the jitted step alone."""
    experiment = make_experiment(config)
    batches = experiment.train_batches(0)
    batch = put_batch(next(batches), experiment.mesh)
    batches.close()
    state = experiment.create_state()
    state, _ = experiment.train_step(state, batch)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for _ in range(steps):
        state, _ = experiment.train_step(state, batch)
    jax.block_until_ready(state)
    return steps * config.batch_size / (time.perf_counter() - began)


def loop_rate(config) -> float:
    """Images/s of `train`, evaluations left out."""
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", Console(quiet=True))
        records = [r for r in read_metrics(Path(folder) / "run") if "images_per_second" in r]
    return statistics.median(record["images_per_second"] for record in records[1:])


def main() -> None:
    """Prints both rates, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/small.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    flags, overrides = parser.parse_known_args()
    duration = ["--config.total_epochs=None", f"--config.total_steps={flags.steps}"]
    config = parse_config(flags.config, duration + overrides)
    table = Table(title=f"{flags.config}, batch {config.batch_size}, {flags.steps} steps a turn")
    for name in ("turn", "bare step images/s", "loop images/s", "loop/bare"):
        table.add_column(name, justify="right")
    ratios = []
    for turn in range(flags.rounds):
        bare, loop = bare_rate(config, flags.steps), loop_rate(config)
        ratios.append(loop / bare)
        table.add_row(str(turn), f"{bare:.0f}", f"{loop:.0f}", f"{ratios[-1]:.1%}")
    table.add_row("median", "", "", f"{statistics.median(ratios):.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
