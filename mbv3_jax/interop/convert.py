"""From a file of another library to a model of ours, and back."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import Resolution, choose, in_pixels
from mbv3_jax.core.errors import UsageError, printable
from mbv3_jax.interop import (
    download,
    images,
    layout,
    mapping,
    networks,
    timm_config,
    weight_files,
)
from mbv3_jax.interop.class_names import find_class_names
from mbv3_jax.interop.identify import BESIDE, identify
from mbv3_jax.interop.networks import Network
from mbv3_jax.interop.pretrained import (
    PRETRAINED,
    Pretrained,
    find_pretrained,
    pretrained_of_file,
    usual_preprocessing,
)
from mbv3_jax.run.model import IMPORTED_LABELS, Model, Preprocessing

_MOST_DIFFERENCES = 8
# torchvision's models/mobilenetv3.py `_mobilenet_v3_conf`.
_DILATED = (
    "a network built with dilated=True, as in torchvision's segmentation, has the same tensors and "
    "computes something else; the file does not tell, and this is the network without it"
)
_HIDDEN = (
    "the head is two dense layers, and the file does not tell the activation between them; with "
    f"--hidden={'|'.join(ACTIVATIONS)} they are read"
)
# Fields in which our network may differ from a library's, because no layer depends on them, or
# every library's network comes with any of them.
_FREE_FIELDS = (
    *("name", "resolution", "in_channels", "num_classes"),
    *("bn_decay", "dropout", "drop_path"),
)
_INCEPTION = Preprocessing()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """A model, the library's network that it came from, and its origin for an import folder."""

    model: Model
    network: Network
    origin: dict


def import_weights(
    library: str,
    weights: str,
    *,
    network: str | None = None,
    width: float | None = None,
    classes: Path | None = None,
    labels: str | None = None,
    hidden: str | None = None,
    view: Mapping[str, Any] | None = None,
    revision: str | None = None,
    sha256: str | None = None,
) -> Imported:
    """Imports weights of another library.

    Every tensor of stem, blocks and last 1x1 is used once, and every variable is filled once. A
    head that is not the library's is imported if it is one dense layer, or two, see `identify`.

    Args:
      library: "timm", "torchvision" or "keras".
      weights: a file, or the name of published weights: NETWORK or NETWORK.TAG.
      network: NETWORK or NETWORK.TAG, if the tensors fit several networks.
      width: the scaling argument of torchvision or Keras; None tries `networks.WIDTHS`.
      classes: a file of class names; not for a network without a head. With two names, a network of
        one output becomes one of two classes.
      labels: "multi" for a network of several labels per image, with a sigmoid per class; None for
        "single". A file does not say.
      hidden: the activation between the two dense layers of a head that is not the library's.
      view: "resolution", "crop_fraction", "interpolation", "mean" and "std" of the images; those
        that are absent or None come from the file, or else from the defaults of the library.
      revision: a commit of the Hub repository.
      sha256: the hash that the file must have, or its first digits.

    Returns:
      The model; without a head that can be imported, it has no class names, and its logits are
      zero.

    Raises:
      UsageError: the file does not fit the network, or an option does not fit the file.
      RunError: the file cannot be downloaded.
    """
    path = Path(weights)
    entry = None
    download_origin: dict[str, str] = {}
    if not path.exists():
        if path.parent != Path() or weight_files.suffix(path) in _all_suffixes():
            raise UsageError(f"--weights={weights}: no such file")
        entry = find_pretrained(library, weights)
        path, download_origin = download.fetch(entry, revision=revision)
    elif revision is not None:
        raise UsageError("--revision: for names of weights, not for files")
    file = weight_files.read(library, path)
    if sha256 is not None and not file.sha256.startswith(sha256.lower()):
        raise UsageError(f"{path}: its SHA-256 is {file.sha256}, expected {sha256}")
    entry = entry or pretrained_of_file(library, file.sha256, file.md5)
    tensors = file.tensors | {BESIDE + n: t for n, t in file.beside.items()}
    shapes = {n: t.shape for n, t in tensors.items()}
    config = timm_config.beside(path) if library == "timm" else timm_config.TimmConfig()
    if config.architecture and network is None:
        timm_config.check_architecture(path, shapes, entry.network if entry else None)
    if network is None and entry is None and config.architecture in networks.NAMES["timm"]:
        network = config.architecture
    entry, name, width = _settle(library, path, entry, network, width)
    fit = identify(library, shapes, name, width, str(path), hidden)
    identified, table = fit.network, fit.table
    if entry:
        usual: tuple[Resolution, Preprocessing]
        usual, usual_source = (entry.resolution, entry.preprocessing), f"of {entry.name}"
    else:
        usual = identified.spec.resolution, usual_preprocessing(library, identified.name)
        usual_source = f"the default of {library} for {identified.name}"
    spec, preprocessing, preprocessing_source = images.settle(
        identified.spec, file.told, view or {}, usual, usual_source
    )
    if config.architecture == identified.name:
        spec = spec.replace(**config.fields)
    used = [pair.theirs for pair in table if pair.theirs is not None]
    variables = mapping.to_ours(table, {n: tensors[n] for n in used})
    if "logits" not in fit.new:
        if classes is None and len(config.labels) == spec.num_classes:
            class_names, names_source = config.labels, f"the file's {timm_config.NAME}"
        else:
            class_names, names_source = find_class_names(spec.num_classes, classes)
        if len(class_names) > spec.num_classes:
            spec, variables = _two_logits(spec, variables)
    elif classes is None:
        class_names, names_source = (), "none, for the network has no head"
    else:
        raise UsageError(f"--classes={classes}: {path} has no head that is read, so no classes")
    multi_label = choose("--labels", labels or "single", IMPORTED_LABELS) == "multi"
    if multi_label and ("logits" in fit.new or identified.spec.num_classes == 1):
        number = "no head" if "logits" in fit.new else "one output, which tells two classes apart"
        raise UsageError(f"--labels=multi: {path} has {number}")
    model = Model(
        spec=spec,
        variables=variables,
        preprocessing=preprocessing,
        class_names=class_names,
        multi_label=multi_label,
    )
    is_v3 = identified.name.startswith("mobilenet_v3")
    notes = [_HIDDEN] if fit.hidden else []
    notes += [_DILATED] if entry is None and is_v3 and library == "torchvision" else []
    origin = {
        "library": library,
        "network": identified.name,
        "width": identified.width,
        "weights": entry.name if entry else None,
        "file": path.name,
        "part": file.part and printable(file.part),
        "prefix": printable(file.prefix),
        "left_out": [*layout.summary(fit.left_out), *file.left_out],
        "new": list(fit.new),
        "note": "; ".join(notes) or None,
        "sha256": file.sha256,
        **download_origin,
        "preprocessing": preprocessing_source,
        "class_names": names_source,
    }
    return Imported(model=model, network=identified, origin=origin)


def _two_logits(spec: NetSpec, variables: dict[str, Any]) -> tuple[NetSpec, dict[str, Any]]:
    """A network of one output as one of two classes: the softmax of 0 and z is the sigmoid of z."""
    logits = {
        name: np.concatenate([np.zeros_like(value), value], axis=-1)
        for name, value in variables["params"]["logits"].items()
    }
    params = variables["params"] | {"logits": logits}
    return spec.replace(num_classes=2), variables | {"params": params}


def _all_suffixes() -> set[str]:
    return {s for suffixes in weight_files.SUFFIXES.values() for s in suffixes}


def _settle(
    library: str, path: Path, entry: Pretrained | None, network: str | None, width: float | None
) -> tuple[Pretrained | None, str | None, float | None]:
    """Finds what is known before looking at the tensors.

    Args:
      library: as for `import_weights`.
      path: the file.
      entry: the published weights that the file is known to hold, by its name or its hash.
      network, width: as for `import_weights`.

    Returns:
      The published weights, the name of the network and the width; None for what is not known.
    """
    if network is None and entry is None and library == "timm":
        # The Hub calls every file model.safetensors; people name their copies after the weights.
        stem = path.name.removesuffix(path.suffix)
        if stem.partition(".")[0] in networks.NAMES[library]:
            network = stem
    if network is not None:
        base, _, tag = network.partition(".")
        networks.get(library, base)
        if entry is not None and entry.network != base:
            raise UsageError(f"--network={network}: {path} holds {entry.name}, by its hash")
        if tag:
            entries = {e.name: e for e in PRETRAINED[library] if e.network == base}
            if network not in entries:
                published = ", ".join(entries) or "no weights of this network"
                raise UsageError(f"--network={network}: {library} has {published}")
            entry = entries[network]
    if entry is None:
        return None, network, width
    if width is None and library != "timm" and not entry.network.startswith("mnasnet"):
        width = entry.width
    return entry, entry.network, width


def export_weights(model: Model, library: str, out: Path, *, width: float | None = None) -> Network:
    """Writes the weights of a model to a file that another library loads strictly.

    Args:
      model: the model.
      library: "timm", "torchvision" or "keras".
      out: a new file; its ending decides the format.
      width: the scaling argument of torchvision or Keras, if it is not one of `networks.WIDTHS`.

    Returns:
      The network of the library that loads the file.

    Raises:
      UsageError: the library has no such network, or its file cannot have this format.
      RunError: the file cannot be written.
    """
    format_ = weight_files.check_writable(library, out)
    network = counterpart(model.spec, library, width=width)
    metadata = {}
    if library == "torchvision" and network.name.startswith("mnasnet"):
        if format_ != ".pth":
            raise UsageError(
                f"--out={out}: torchvision's MNASNet reads a version, which only .pth can hold"
            )
        metadata = {"": {"version": 2}}
    tensors = mapping.to_theirs(mapping.pairs_of(network, model.spec), model.variables)
    weight_files.write(library, out, tensors, metadata=metadata)
    return network


def counterpart(spec: NetSpec, library: str, *, width: float | None = None) -> Network:
    """Finds the library's network that computes the same as `spec`.

    Raises:
      UsageError: there is none; the message says how the nearest one differs.
    """
    ranked = []
    for network in networks.candidates(library, width=width):
        candidate = network.spec
        free = {f: getattr(spec, f) for f in (*_FREE_FIELDS, *_constructor_fields(network))}
        differences = _differences(spec, candidate.replace(**free))
        # Among networks that fit, prefer the one that needs no arguments for its padding and its
        # constants. Among others, prefer one with as many blocks, whose differences are telling.
        with_defaults = _differences(spec, candidate.replace(name=spec.name))
        blocks_differ = len(spec.blocks) != len(candidate.blocks)
        ranked.append(((blocks_differ, len(differences), len(with_defaults)), differences, network))
    _, differences, nearest = min(ranked, key=lambda entry: entry[0])
    if differences:
        more = len(differences) - _MOST_DIFFERENCES
        listed = differences[:_MOST_DIFFERENCES] + ([f"... and {more} more"] if more > 0 else [])
        raise UsageError(
            f"{library} has no network like this one; the nearest, {nearest.label}, differs in\n  "
            + "\n  ".join(listed)
        )
    return nearest


def _constructor_fields(network: Network) -> tuple[str, ...]:
    """The fields of a spec that the library's constructor takes as arguments."""
    if network.library == "timm":
        return "padding", "bn_eps"
    if network.library == "torchvision" and not network.name.startswith("mnasnet"):
        return ("bn_eps",)
    return ()


def _differences(ours: NetSpec, theirs: NetSpec) -> list[str]:
    """The fields in which two specs differ, one line each."""

    def walk(path: str, a: Any, b: Any) -> Iterator[str]:
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            for key in a:
                yield from walk(f"{path}.{key}" if path else key, a[key], b[key])
        elif isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                yield from walk(f"{path}[{i}]", x, y)
        elif isinstance(a, tuple | list) and isinstance(b, tuple | list):
            yield f"{path}: {len(a)} here, {len(b)} there"
        elif a != b:
            yield f"{path}: {a!r} here, {b!r} there"

    return list(walk("", dataclasses.asdict(ours), dataclasses.asdict(theirs)))


def instructions(model: Model, network: Network, out: Path) -> str:
    """The Python lines that load an exported file, and what the network expects of its images.

    Args:
      model: the exported model.
      network: what `export_weights` returned.
      out: the exported file.
    """
    preprocessing, file = model.preprocessing, str(out)
    is_inception = {*preprocessing.mean, *preprocessing.std} == {*_INCEPTION.mean, *_INCEPTION.std}
    build = networks.construction(network, model.spec, preprocessing_inside=is_inception)
    if network.library == "keras":
        lines = ["import keras", f"model = {build}", f"model.load_weights({file!r})"]
    else:
        read = f"torch.load({file!r}, weights_only=True)"
        imports = f"import functools, torch, {network.library}"
        if file.endswith(".safetensors"):
            imports += ", safetensors.torch"
            read = f"safetensors.torch.load_file({file!r})"
        stem = networks.other_stem(network, model.spec)
        lines = [imports, f"model = {build}", *stem, f"model.load_state_dict({read}, strict=True)"]
    scale = f"mean {preprocessing.mean}, std {preprocessing.std} of values from 0 to 1"
    if network.library == "keras" and "include_preprocessing=True" in build:
        scale = "values from 0 to 255, as the network scales them itself"
    images = (
        f"# images: {in_pixels(model.spec.resolution)} pixels, "
        f"crop {preprocessing.crop_fraction:g} ({preprocessing.central}), "
        f"{preprocessing.interpolation}; {scale}"
    )
    return "\n".join([*lines, images, f"# logits: {model.probabilities}"])
