"""Depthwise layers side by side: python -m benchmarks.ops [--networks ...] [--batch 32]

Bytes a second count each array once: input and output, and for gradients the cotangent and the
input gradient too. The bandwidth of the memory limits all contenders; with --bandwidth-gb-s (from
the data sheet, or measured), the fraction that each of them reaches is shown.
"""

import argparse
import os
import statistics
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.race import race
from benchmarks.task import Task
from mbv3_jax.arch import build, cost

CONTENDERS = ["depthwise_shifted", "depthwise_grouped", "depthwise_torch"]


def distinct_layers(network: str, resolution: int) -> list[cost.Layer]:
    """The depthwise layers of a network, one of each shape."""
    seen = {}
    for layer in cost.layers(build(network, resolution=resolution)):
        if layer.name.endswith("/depthwise"):
            seen.setdefault((layer.kernel, layer.stride, layer.inputs), layer)
    return list(seen.values())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v3_small"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--bandwidth-gb-s", type=float, help="of the memory, to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds-per-round", type=float, default=0.2)
    flags = parser.parse_args()
    if flags.bandwidth_gb_s is not None and not flags.bandwidth_gb_s > 0:
        parser.error(f"--bandwidth-gb-s: got {flags.bandwidth_gb_s:g}, expected more than 0")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for network in flags.networks:
        for kind in ("forward", "gradients"):
            table = Table(
                title=f"depthwise {kind}, {network}, batch {flags.batch}, {flags.dtype}, "
                f"{flags.threads} threads"
            )
            table.add_column("layer", no_wrap=True)
            for name in flags.contenders:
                table.add_column(f"{name} ms", justify="right")
                table.add_column("GB/s", justify="right")
                if flags.bandwidth_gb_s:
                    table.add_column("of peak", justify="right")
            for layer in distinct_layers(network, flags.resolution):
                task = Task(
                    kind=kind,
                    network=network,
                    batch=flags.batch,
                    resolution=flags.resolution,
                    threads=flags.threads,
                    dtype=flags.dtype,
                    layer=layer.name,
                )
                results = race(
                    task,
                    flags.contenders,
                    rounds=flags.rounds,
                    seconds_per_round=flags.seconds_per_round,
                )
                cells = _cells(results, _traffic(layer, task), flags.bandwidth_gb_s)
                table.add_row(_name(layer), *cells)
            console.print(table)


def _name(layer: cost.Layer) -> str:
    height, width, channels = layer.inputs
    return f"{layer.part} {height}x{width}x{channels} k{layer.kernel} s{layer.stride}"


def _traffic(layer: cost.Layer, task: Task) -> int:
    bytes_each = 2 if task.dtype == "bfloat16" else 4
    values = task.batch * (int(np.prod(layer.inputs)) + layer.activations)
    return values * bytes_each * (2 if task.kind == "gradients" else 1)


def _cells(results, traffic: int, bandwidth_gb_s: float | None):
    for result in results:
        if result.absent:
            yield from (result.absent, "-")
        else:
            seconds = statistics.median(result.wall_s)
            gb_s = traffic / seconds / 1e9
            yield from (f"{seconds * 1e3:.3f}", f"{gb_s:.1f}")
        if bandwidth_gb_s:
            yield "-" if result.absent else f"{gb_s / bandwidth_gb_s:.0%}"


if __name__ == "__main__":
    main()
