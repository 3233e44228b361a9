"""mbv3 import, export-weights: weights from and to other libraries."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.cli.arguments import add_model, no_more
from mbv3_jax.core.errors import UsageError

_LIBRARIES = ("timm", "torchvision", "keras")


def add_parsers(commands) -> None:
    """Adds both commands to the subparsers; `run_command(flags, overrides)` runs one."""
    take = commands.add_parser(
        "import",
        help="weights of timm, torchvision or Keras as a folder of ours",
        allow_abbrev=False,
    )
    take.add_argument("--from", required=True, choices=_LIBRARIES, dest="library")
    take.add_argument("--weights", required=True, help="FILE, or the NAME of published weights")
    take.add_argument("--out", required=True, type=Path, help="a new folder")
    take.add_argument("--network", help="NETWORK or NETWORK.TAG, where the file does not say")
    take.add_argument("--width", type=float, help="width_mult or alpha, where it is unusual")
    take.add_argument("--classes", type=Path, help="class names: a line each, or a JSON list")
    take.add_argument("--revision", help="commit of the Hugging Face Hub; default the newest")
    take.add_argument("--sha256", help="what the file's hash must be, or begin with")
    take.set_defaults(run_command=_import)

    give = commands.add_parser(
        "export-weights",
        help="a file that timm, torchvision or Keras loads strictly",
        allow_abbrev=False,
    )
    add_model(give)
    give.add_argument("--to", required=True, choices=_LIBRARIES, dest="library")
    give.add_argument("--out", required=True, type=Path, help="FILE.pth, .safetensors, .weights.h5")
    give.add_argument("--width", type=float, help="width_mult or alpha, where it is unusual")
    give.set_defaults(run_command=_export)


def _import(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "import")
    if flags.out.exists() and (not flags.out.is_dir() or any(flags.out.iterdir())):
        raise UsageError(f"--out={flags.out}: is there already; give a folder that is new or empty")
    from mbv3_jax.arch import cost
    from mbv3_jax.interop.convert import import_weights
    from mbv3_jax.run.model import save_model

    got = import_weights(
        flags.library,
        flags.weights,
        network=flags.network,
        width=flags.width,
        classes=flags.classes,
        revision=flags.revision,
        sha256=flags.sha256,
    )
    save_model(flags.out, got.model, origin=got.origin)
    how, spec, origin = got.model.preprocessing, got.model.spec, got.origin
    published = f", {origin['weights']}" if origin["weights"] else ""
    print(
        f"imported {flags.library}'s {got.network.label}{published}: "
        f"{cost.params(spec):,} parameters, {spec.num_classes} classes"
    )
    if "revision" in origin:
        print(f"revision: {origin['revision']} (again the same: --revision={origin['revision']})")
    print(f"sha256: {origin['sha256']}")
    print(
        f"images: {spec.resolution} pixels, crop {how.crop_fraction:.3g} ({how.central}), "
        f"{how.interpolation}, mean {how.mean}, std {how.std}; {origin['preprocessing']}"
    )
    print(f"class names: {origin['class_names']}")
    print(f"next: python -m mbv3_jax predict --import={shlex.quote(str(flags.out))} IMAGES...")


def _export(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "export-weights")
    from mbv3_jax.interop import convert, weight_files
    from mbv3_jax.run.model import load_model

    weight_files.check_writable(flags.library, flags.out)
    folder = flags.run or flags.imported
    model = load_model(folder, step=flags.step, weights=flags.weights)
    network = convert.export_weights(model, flags.library, flags.out, width=flags.width)
    print(
        f"wrote {flags.out}: {flags.library}'s {network.label}, {model.spec.num_classes} classes; "
        "load it by\n"
    )
    print(convert.instructions(model, network, flags.out))
