"""What a train step communicates, and how long that should take on many chips: a prediction.

python -m benchmarks.scaling [--config FILE ...] [--devices N] [--step-ms MS] [--config.FIELD=VALUE]

Compiles the step of `main.py` for virtual devices of the CPU, reads all collectives out of the
compiled program, compares their bytes with those that follow from the network, and predicts their
time on 8, 32 and 256 chips from published figures, see `interconnects.py`. Each chip keeps its part
of the batch, so that the work of a chip does not change with their number. Results: SCALING.md.
"""

import argparse
import os
import sys
from collections import Counter

from rich.console import Console
from rich.table import Table

from benchmarks import collectives as coll
from benchmarks.interconnects import CHIPS, INTERCONNECTS

# The resolution changes no collective as long as every tap of a kernel meets an image of 3x3, the
# least of this one; the program is compiled sooner.
SMALL = ("--config.net.resolution=96", "--config.data.num_classes=1000")


def main() -> int:
    """Prints the tables of each configuration; 1 if a step reduces other than expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        nargs="+",
        default=["configs/small.py:synthetic", "configs/large.py:synthetic"],
        dest="files",
    )
    parser.add_argument("--devices", type=int, default=2, help="virtual ones, to compile for")
    parser.add_argument("--step-ms", type=float, help="assumed: a step on one chip, not measured")
    flags, overrides = parser.parse_known_args()
    if flags.devices < 2:
        parser.error(f"--devices: got {flags.devices}, expected 2 or more")
    if flags.step_ms is not None and not flags.step_ms > 0:
        parser.error(f"--step-ms: got {flags.step_ms}, expected more than 0")

    options = [os.environ.get("XLA_FLAGS", "")]
    options.append(f"--xla_force_host_platform_device_count={flags.devices}")
    os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS=" ".join(options))  # before jax is imported
    from mbv3_jax.core.errors import UsageError
    from mbv3_jax.run.config import parse_config
    from mbv3_jax.train.experiment import make_experiment

    batch = (f"--config.batch_size={4 * flags.devices}",)
    console, status = Console(), 0
    for file in flags.files:
        try:
            config = parse_config(file, [*SMALL, *batch, *overrides])
            if config.accum_steps != 1:
                raise UsageError("config: accum_steps: expected 1: a loop hides how often it runs")
            experiment = make_experiment(config)
        except UsageError as error:
            print(error, file=sys.stderr)
            return 2
        found = coll.of_step(experiment)
        title = " ".join([file, f"on {flags.devices} virtual devices of the CPU", *overrides])
        whole = coll.expected(experiment)
        waits = config.compute.batch_norm == "cross_device"
        console.print(communicated(title, found, whole, waits))
        console.print(predicted(found, waits, flags.step_ms))
        status |= coll.bytes_by_group(found) != whole
    return status


def communicated(title: str, found: list[coll.Collective], whole: Counter, waits: bool) -> Table:
    """Bytes of each group beside what follows from the network; see `predicted`."""
    caption = ", ".join(f"{kind}: {n}" for kind, n in Counter(c.kind for c in found).items())
    if waits:
        caption += f"; with BatchNorm's sums: {sum(c.batch_norm_bytes > 0 for c in found)}"
    table = Table(title=title, caption=caption, show_footer=True)
    groups = coll.bytes_by_group(found)
    table.add_column("bytes a step", "all")
    for name, sums in (("found", groups), ("from the network", whole)):
        table.add_column(name, f"{sums.total():,}", justify="right")
    for group in {**whole, **groups}:
        table.add_row(group, f"{groups[group]:,}", f"{whole[group]:,}")
    return table


def predicted(found: list[coll.Collective], waits: bool, step_ms: float | None) -> Table:
    """Times on chips.

    BatchNorm's sums are waited for by the next layer. All else can be hidden behind computation, at
    best all of it: the last column.

    Args:
      found: of one step.
      waits: whether layers wait for BatchNorm's sums.
      step_ms: assumed, of one chip; without it the last columns are left out.
    """
    title = "predicted communication, ms a step"
    if step_ms is not None:
        title += f"; step on one chip assumed to take {step_ms:g} ms"
    table = Table(title=title)
    columns = ["chip", "chips", "bytes", "latency", "all", "waited for"]
    if step_ms is not None:
        columns += ["step", "step, rest hidden"]
    for name in columns:
        table.add_column(name, justify="left" if name == "chip" else "right")
    for link in INTERCONNECTS:
        for chips in CHIPS:
            latencies = [link.latency_ms(c.kind, chips) for c in found]
            size = sum(link.bandwidth_ms(c.kind, c.bytes, chips) for c in found)
            latency = sum(latencies)
            exposed = sum(
                link.bandwidth_ms(c.kind, c.batch_norm_bytes, chips) + latency
                for c, latency in zip(found, latencies, strict=True)
                if waits and c.batch_norm_bytes
            )
            row = [size, latency, size + latency, exposed]
            if step_ms is not None:
                row += [step_ms + size + latency, step_ms + exposed]
            table.add_row(link.name, str(chips), *(f"{x:.3f}" for x in row))
    return table


if __name__ == "__main__":
    sys.exit(main())
