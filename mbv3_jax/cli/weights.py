"""mbv3 import, export-weights: weights from and for other libraries."""

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.cli.arguments import (
    add_model,
    decimals,
    no_more,
    positive_number,
    resolution,
)
from mbv3_jax.core.checks import in_pixels
from mbv3_jax.core.errors import UsageError, counted, printable
from mbv3_jax.core.files import check_storable
from mbv3_jax.core.packages import program

_LIBRARIES = ("timm", "torchvision", "keras")
_MOST_NAMES = 12
_HUB = "hf:"
_VIEW = ("resolution", "mean", "std", "crop_fraction", "interpolation")


def add_parsers(commands) -> None:
    """Adds both commands to the subparsers; `run_command(flags, overrides)` runs one."""
    take = commands.add_parser(
        "import",
        help="convert weights of timm, torchvision or Keras to a folder that other commands take",
        allow_abbrev=False,
    )
    take.add_argument(
        "--from",
        choices=_LIBRARIES,
        dest="library",
        help="the other library; for hf:... the default is what the repository says, or timm",
    )
    take.add_argument(
        "--weights",
        required=True,
        help="FILE, the NAME of published weights, or hf:OWNER/NAME[@REVISION] on the Hugging Face "
        "Hub",
    )
    where = take.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="a new folder")
    where.add_argument(
        "--dry-run", action="store_true", help="say what would be read and left out; write nothing"
    )
    take.add_argument(
        "--network",
        help="the library's name of the network, NETWORK or NETWORK.TAG, if the file does not say",
    )
    take.add_argument(
        "--width",
        type=positive_number,
        help="the width (width_mult, alpha) of a network that has no name",
    )
    take.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names: one per line, or a JSON list"
    )
    take.add_argument(
        "--labels",
        choices=("single", "multi"),
        help="multi for a network of several labels per image, with a sigmoid per class, which "
        "a file does not say; default single",
    )
    take.add_argument(
        "--hidden",
        choices=tuple(ACTIVATIONS),
        help="the activation between the two dense layers of a new head, which files do not say",
    )
    view = take.add_argument_group(
        "images, if the file does not say, or says something else",
    )
    view.add_argument(
        "--resolution",
        type=resolution,
        metavar="N",
        help="side of the images in pixels, or height and width as in 224x320",
    )
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        view.add_argument(
            f"--{name}",
            type=decimals,
            metavar="R,G,B",
            help=f"{what} of each channel, or one for all, of values from 0 to 1",
        )
    view.add_argument(
        "--crop-fraction",
        type=positive_number,
        metavar="X",
        help="the fraction of the shorter side that an evaluation sees",
    )
    view.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="of the resizing")
    take.add_argument("--revision", help="the commit on the Hugging Face Hub; default the newest")
    take.add_argument("--sha256", help="refuse a file whose hash does not begin with this")
    take.set_defaults(run_command=_import)

    give = commands.add_parser(
        "export-weights",
        help="write a file that timm, torchvision or Keras loads, or a folder for the Hub",
        allow_abbrev=False,
    )
    add_model(give)
    give.add_argument(
        "--to",
        required=True,
        dest="library",
        metavar="TO",
        help=f"{', '.join(_LIBRARIES)}; hf for a folder that the Hugging Face Hub takes, or "
        "hf:OWNER/NAME to upload it too",
    )
    give.add_argument(
        "--out",
        type=Path,
        metavar="FILE|DIR",
        help="FILE.pth, FILE.safetensors or FILE.weights.h5; for hf a new folder; hf:OWNER/NAME "
        "needs none",
    )
    give.add_argument(
        "--width",
        type=positive_number,
        help="the width (width_mult, alpha) of a network that has no name",
    )
    give.set_defaults(run_command=_export)


def _import(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "import")
    out = flags.out
    if out is not None:  # before anything is downloaded
        check_storable(out, "give another --out")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"--out={out}: exists already; give a folder that is new or empty")
    from mbv3_jax.arch import cost
    from mbv3_jax.interop import hub_folder
    from mbv3_jax.interop.convert import import_weights
    from mbv3_jax.run.model import save_model

    from_hub = flags.weights.startswith(_HUB)
    if flags.library is None and not from_hub:
        raise UsageError(f"--from is missing: {', '.join(_LIBRARIES)} (only hf:... needs none)")
    imported = (hub_folder.import_repository if from_hub else import_weights)(
        flags.library,
        flags.weights,
        network=flags.network,
        width=flags.width,
        classes=flags.classes,
        labels=flags.labels,
        hidden=flags.hidden,
        view={name: getattr(flags, name) for name in _VIEW},
        revision=flags.revision,
        sha256=flags.sha256,
    )
    if out is not None:
        save_model(out, imported.model, origin=imported.origin)
    spec, view, origin = imported.model.spec, imported.model.preprocessing, imported.origin
    parameters = cost.params(spec)
    if origin["new"]:  # less the logits of the one class that stands for none
        parameters -= (spec.head or spec.last).out + 1
    published = f", {origin['weights']}" if origin["weights"] else ""
    print(
        f"{'would import' if out is None else 'imported'} "
        f"{imported.network.library}'s {imported.network.label}{published}: "
        f"{parameters:,} parameters, "
        f"{'no head' if origin['new'] else counted(spec.num_classes, 'class')}"
    )
    place = ", ".join(origin[key] for key in ("part", "prefix") if origin[key])
    if place:
        print(f"found under: {place}")
    if origin["left_out"]:
        print(f"left out: {_listed(origin['left_out'])}")
    if origin["new"]:
        print(f"new: {', '.join(origin['new'])}, to be trained: the file has none that is read")
    if origin["note"]:
        print(f"note: {origin['note']}")
    if "revision" in origin:
        revision = origin["revision"]
        again = f"weights=hf:{origin['hub']}@{revision}" if from_hub else f"revision={revision}"
        print(f"revision: {revision} (to import the same again: --{again})")
    print(f"sha256: {origin['sha256']}")
    print(
        f"images: {in_pixels(spec.resolution)} pixels, crop {view.crop_fraction:.3g} "
        f"({view.central}), {view.interpolation}, mean {view.mean}, std {view.std}; "
        f"{origin['preprocessing']}"
    )
    print(f"class names: {origin['class_names']}")
    if imported.model.multi_label:
        print(f"logits: {imported.model.probabilities}")
    if out is not None:
        folder = shlex.quote(str(out))
        if spec.in_channels not in (1, 3):
            print(
                f"next: mbv3_jax.load({str(out)!r}) in Python: the network takes images of "
                f"{spec.in_channels} channels, which pictures do not have"
            )
        elif origin["new"] or spec.num_classes == 1:
            print(f"next: {program()} train --config=finetune:folder=DIR --config.init={folder}")
        else:
            print(f"next: {program()} predict --import={folder} IMAGES...")


def _listed(names: Sequence[str]) -> str:
    """The names, of which a network has hundreds, on one line."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _export(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "export-weights")
    if flags.library == "hf" or flags.library.startswith(_HUB):
        return _export_to_hub(flags)
    if flags.library not in _LIBRARIES:
        listed = ", ".join((*_LIBRARIES, "hf", "hf:OWNER/NAME"))
        raise UsageError(f"--to={flags.library}: expected one of {listed}")
    if flags.out is None:
        raise UsageError("--out is missing: FILE.pth, FILE.safetensors or FILE.weights.h5")
    from mbv3_jax.interop import convert, weight_files
    from mbv3_jax.run.model import load_model

    weight_files.check_writable(flags.library, flags.out)
    folder = flags.run or flags.imported
    model = load_model(folder, step=flags.step, weights=flags.weights)
    model.require_head(folder)
    network = convert.export_weights(model, flags.library, flags.out, width=flags.width)
    print(
        f"wrote {flags.out}: {flags.library}'s {network.label}, {model.spec.num_classes} classes; "
        "load it with\n"
    )
    if model.sigmoid_note:
        print(printable(f"# {model.sigmoid_note}; the file has two logits, the first is zero"))
    print(convert.instructions(model, network, flags.out))


def _export_to_hub(flags: argparse.Namespace) -> None:
    from mbv3_jax.interop import hub, hub_folder
    from mbv3_jax.run.model import load_model

    address = None if flags.library == "hf" else hub.parse(flags.library, "--to")
    if address is not None and address.revision:
        raise UsageError(f"--to={address}: an upload makes a revision; give hf:OWNER/NAME")
    if address is None and flags.out is None:
        raise UsageError("--out is missing: a new folder (or --to=hf:OWNER/NAME uploads it)")
    if flags.width is not None:
        raise UsageError("--width: has an effect only with --to=torchvision or keras")
    if flags.out is not None and flags.out.exists():
        raise UsageError(f"--out={flags.out}: already exists")
    folder = flags.run or flags.imported
    model = load_model(folder, step=flags.step, weights=flags.weights)
    model.require_head(folder)
    with tempfile.TemporaryDirectory() as temporary:
        out = flags.out or Path(temporary) / "hub"
        network = hub_folder.write(out, model, address.repository if address else None)
        loads = f"timm's {network.label}" if network else "for mbv3_jax: timm has no such network"
        print(
            f"wrote {flags.out or 'a folder'}: {', '.join(sorted(p.name for p in out.iterdir()))}"
        )
        print(f"network: {loads}, {counted(model.spec.num_classes, 'class')}")
        if model.sigmoid_note:
            print(printable(f"note: {model.sigmoid_note}; it has two logits, the first is zero"))
        if address is not None:
            print(f"uploaded: {hub.upload(out, address)}; a new repository is private at first")
    if network is not None:
        source = f"hf-hub:{address.repository}" if address else f"local-dir:{flags.out}"
        print(f"next: timm.create_model({source!r}, pretrained=True) in Python")
    if address is not None:
        print(f"next: {program()} import --weights={address} --out=DIR")
