"""mbv3 export: writes files for phones and servers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.cli.arguments import add_model, no_more, positive, table_console
from mbv3_jax.core.errors import UsageError, printable

_FORMATS = ("tflite", "onnx", "coreml", "stablehlo")
_PRECISIONS = ("float32", "float16", "int8")
_BOUNDARY = ("float32", "uint8", "int8")
_OBSERVERS = ("mse", "min_max", "percentile")
_RUNTIMES = {"tflite": "LiteRT", "onnx": "ONNX Runtime", "stablehlo": "XLA"}


def add_parsers(commands) -> None:
    """Adds `export` to the subparsers; `run_command(flags, overrides)` runs it."""
    export = commands.add_parser(
        "export",
        help="write a TFLite, ONNX, Core ML or StableHLO file",
        allow_abbrev=False,
    )
    add_model(export)
    export.add_argument("--format", required=True, choices=_FORMATS, help="the kind of file")
    export.add_argument(
        "--precision",
        choices=_PRECISIONS,
        default="float32",
        help="the precision of the file; default float32",
    )
    export.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="FILE.tflite, FILE.onnx, FILE.mlpackage (a folder) or FILE.stablehlo",
    )
    export.add_argument(
        "--batch",
        type=_batch,
        default=1,
        metavar="N",
        help="how many images the file takes at a time, or any; default 1",
    )
    export.add_argument(
        "--input",
        choices=_BOUNDARY,
        help="float32 for normalised images, uint8 for pixels that the file normalises, int8 for "
        "normalised images quantized for an int8 file; default float32, or int8 for an int8 "
        "file",
    )
    export.add_argument(
        "--output",
        choices=_BOUNDARY,
        help="the logits of an int8 file: integers with a scale, or float32; default int8",
    )
    export.add_argument(
        "--resolution",
        choices=("any",),
        help="any: the ONNX file takes images of any height and width; default the network's size",
    )
    export.add_argument(
        "--opset",
        type=int,
        metavar="N",
        help="the version of ONNX's operators, 11 to 24; default 18",
    )
    export.add_argument(
        "--images",
        nargs="+",
        help="images to check the file with, and to calibrate int8: files, folders or @LIST; "
        "default the run's own data",
    )
    export.add_argument(
        "--check",
        type=_count,
        default=128,
        metavar="N",
        help="how many images to check the file with, or all; default 128",
    )
    group = export.add_argument_group("quantization after training, for --precision=int8")
    group.add_argument(
        "--calibration", type=positive, metavar="N", help="training images to use; default 512"
    )
    group.add_argument("--observer", choices=_OBSERVERS, help="how ranges are chosen; default mse")
    group.add_argument(
        "--percentile", type=float, metavar="P", help="for --observer=percentile; default 99.99"
    )
    group.add_argument("--equalize", action="store_true", help="equalise ranges across layers")
    group.add_argument("--correct-bias", action="store_true", help="correct the biases")
    export.set_defaults(run_command=_export)


def _batch(text: str) -> int | None:
    return None if text == "any" else positive(text)


def _count(text: str) -> int | None:
    return None if text == "all" else positive(text)


def _export(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "export")
    from mbv3_jax.export import pipeline
    from mbv3_jax.export.formats import Target
    from mbv3_jax.quant.post_training import Options

    names = ("calibration", "observer", "percentile", "equalize", "correct_bias")
    options = {k: getattr(flags, k) for k in names if getattr(flags, k) not in (None, False)}
    if options and flags.precision != "int8":
        option = next(iter(options)).replace("_", "-")
        raise UsageError(f"--{option}: has an effect only with --precision=int8")
    if flags.percentile is not None and flags.observer != "percentile":
        raise UsageError("--percentile: has an effect only with --observer=percentile")
    post = Options(**{k: v for k, v in options.items() if k != "calibration"}) if options else None
    target = Target(
        file_format=flags.format,
        precision=flags.precision,
        batch=flags.batch,
        input_dtype=flags.input,
        output_dtype=flags.output,
        any_size=flags.resolution == "any",
        opset=flags.opset,
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
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("operation")
    table.add_column("count", justify="right")
    for name, count in report.counts.items():
        table.add_row(name, str(count))
    table.add_section()
    table.add_row("all", str(sum(report.counts.values())))
    table_console().print(table)
    if report.what:
        print(f"checked in {_RUNTIMES[target.file_format]} on {report.what}")
    else:
        print("checked by its operations, not run: Core ML exists only on Apple's systems")
    if report.quantization:
        print(f"ranges: {report.quantization}")
    for name, comparison in report.comparisons.items():
        print(
            f"against the {name}: {comparison.agreement:.2%} of the top-1 classes agree, largest "
            f"difference of a logit {comparison.largest:.3g} (logits reach {comparison.scale:.3g})"
        )
    if report.top1:
        print("top-1: " + ", ".join(f"{name} {v:.2%}" for name, v in report.top1.items()))
    if report.note:
        print(printable(f"note: {report.note}"))
    if report.readable_until:
        print(f"JAX promises to read it until {report.readable_until}")
    print(f"{out}: {report.size / 1e6:.2f} MB")
