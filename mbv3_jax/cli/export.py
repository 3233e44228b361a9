"""mbv3 export: files for phones and servers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.cli.arguments import add_model, positive
from mbv3_jax.core.errors import UsageError

_FORMATS = ("tflite", "onnx", "stablehlo")
_PRECISIONS = ("float32", "float16", "int8")
_OBSERVERS = ("mse", "min_max", "percentile")
_RUNTIMES = {"tflite": "LiteRT", "onnx": "ONNX Runtime", "stablehlo": "XLA"}


def add_parsers(commands) -> None:
    """Adds `export` to the subparsers; `run_command(flags, overrides)` runs it."""
    export = commands.add_parser(
        "export",
        help="a file for phones and servers: TFLite, ONNX, StableHLO",
        allow_abbrev=False,
    )
    add_model(export)
    export.add_argument("--format", required=True, choices=_FORMATS)
    export.add_argument("--precision", choices=_PRECISIONS, default="float32")
    export.add_argument("--out", required=True, type=Path, help="FILE.tflite, .onnx, .stablehlo")
    export.add_argument(
        "--batch", type=_batch, default=1, help="images at a time, or any; default 1"
    )
    export.add_argument(
        "--input",
        choices=("float32", "uint8"),
        default="float32",
        help="normalised images, or uint8 ones that the file normalises",
    )
    export.add_argument(
        "--images", nargs="+", help="files, folders or @LISTs to check on, and to calibrate int8"
    )
    export.add_argument(
        "--check", type=_count, default=128, help="images to check on, or all; default 128"
    )
    group = export.add_argument_group("int8 after training")
    group.add_argument("--calibration", type=positive, help="training images; default 512")
    group.add_argument("--observer", choices=_OBSERVERS, help="of ranges; default mse")
    group.add_argument("--percentile", type=float, help="of that observer; default 99.99")
    group.add_argument("--equalize", action="store_true", help="cross-layer equalisation")
    group.add_argument("--correct-bias", action="store_true", help="bias correction")
    export.set_defaults(run_command=_export)


def _batch(text: str) -> int | None:
    return None if text == "any" else positive(text)


def _count(text: str) -> int | None:
    return None if text == "all" else positive(text)


def _export(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; see export --help")
    from mbv3_jax.export import pipeline
    from mbv3_jax.export.formats import Target
    from mbv3_jax.quant.post_training import Options

    given = [
        name
        for name in ("calibration", "observer", "percentile", "equalize", "correct_bias")
        if getattr(flags, name) not in (None, False)
    ]
    if given and flags.precision != "int8":
        option = given[0].replace("_", "-")
        raise UsageError(f"--{option}: of --precision=int8")
    post = None
    if given:
        options = {k: getattr(flags, k) for k in given if k != "calibration"}
        post = Options(**options)
    if flags.percentile is not None and flags.observer != "percentile":
        raise UsageError("--percentile: of --observer=percentile")
    target = Target(
        file_format=flags.format,
        precision=flags.precision,
        batch=flags.batch,
        input_dtype=flags.input,
    )
    report = pipeline.export(
        flags.run or flags.imported,
        target,
        flags.out,
        step=flags.step,
        weights=flags.weights,
        images=flags.images,
        check_images=flags.check,
        calibration_images=flags.calibration,
        post=post,
    )
    _print(report, target, flags.out)


def _print(report, target, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("operation")
    table.add_column("count", justify="right")
    for name, count in report.counts.items():
        table.add_row(name, str(count))
    table.add_section()
    table.add_row("all", str(sum(report.counts.values())))
    # Without a terminal rich would wrap the lines at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)
    console.print(table)
    print(f"checked in {_RUNTIMES[target.file_format]} on {report.what}")
    if report.quantization:
        print(f"ranges: {report.quantization}")
    for name, found in report.comparisons.items():
        print(
            f"against the {name}: {found.agreement:.2%} of the top-1 classes agree, largest "
            f"difference of a logit {found.largest:.3g} (logits reach {found.scale:.3g})"
        )
    if report.top1:
        print("top-1: " + ", ".join(f"{name} {v:.2%}" for name, v in report.top1.items()))
    print(f"{out}: {report.size / 1e6:.2f} MB")
