"""From a file of another library to a model of ours."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import UsageError
from mbv3_jax.interop import download, mapping, networks, weight_files
from mbv3_jax.interop.networks import Network
from mbv3_jax.interop.pretrained import (
    PRETRAINED,
    Pretrained,
    find_class_names,
    find_pretrained,
    pretrained_of_file,
    usual_preprocessing,
)
from mbv3_jax.run.model import Model, Preprocessing

_LISTED = 12  # problems of a network that was only guessed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """A model, the network it was there, and where it comes from, as an import folder keeps it."""

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
    revision: str | None = None,
    sha256: str | None = None,
) -> Imported:
    """Reads weights of another library, strictly: every tensor once, every variable once.

    Args:
      library: "timm", "torchvision" or "keras".
      weights: a file, or the name of published weights, NETWORK or NETWORK.TAG.
      network: NETWORK or NETWORK.TAG, where the file does not say.
      width: of torchvision and Keras; None tries `networks.WIDTHS`.
      classes: a file of class names.
      revision: commit of the Hub.
      sha256: what the file's hash has to be, or to begin with.

    Raises:
      UsageError: the file does not fit, or an option does not.
      RunError: it cannot be downloaded.
    """
    path, entry, source_of = Path(weights), None, {}
    if not path.is_file():
        if path.exists() or path.parent != Path() or weight_files.suffix(path) in _all_suffixes():
            raise UsageError(f"--weights={weights}: no such file")
        entry = find_pretrained(library, weights)
        path, source_of = download.fetch(entry, revision=revision)
    elif revision is not None:
        raise UsageError("--revision: for names of weights, not for files")
    source = weight_files.read(library, path)
    if sha256 is not None and not source.sha256.startswith(sha256.lower()):
        raise UsageError(f"{path}: its SHA-256 is {source.sha256}, expected {sha256}")
    entry = entry or pretrained_of_file(library, source.sha256, source.md5)
    entry, name, width = _settle(library, path, entry, network, width)
    shapes = {n: t.shape for n, t in source.tensors.items()}
    found = identify(library, shapes, name, width, str(path))
    resolution = entry.resolution if entry else found.spec.resolution
    spec = found.spec.replace(resolution=resolution)
    variables = mapping.to_ours(mapping.pairs(library, spec), source.tensors)
    names, names_are = find_class_names(spec.num_classes, classes)
    model = Model(
        spec=spec,
        variables=variables,
        preprocessing=entry.preprocessing if entry else usual_preprocessing(library, found.name),
        class_names=names,
    )
    origin = {
        "library": library,
        "network": found.name,
        "width": found.width,
        "weights": entry.name if entry else None,
        "file": path.name,
        "part": source.inside,
        "sha256": source.sha256,
        **source_of,
        "preprocessing": f"of {entry.name}"
        if entry
        else f"taken for those usual with {found.name}",
        "class_names": names_are,
    }
    return Imported(model=model, network=found, origin=origin)


def _all_suffixes() -> set[str]:
    return {s for suffixes in weight_files.SUFFIXES.values() for s in suffixes}


def _settle(
    library: str, path: Path, entry: Pretrained | None, network: str | None, width: float | None
) -> tuple[Pretrained | None, str | None, float | None]:
    """The published weights, the network and the width that are known before looking inside."""
    if network is None and entry is None and library == "timm":
        # Hub files are called model.safetensors; people call copies of them by their names.
        stem = path.name.removesuffix(path.suffix)
        if stem.partition(".")[0] in networks.NAMES[library]:
            network = stem
    if network is not None:
        base, _, tag = network.partition(".")
        networks.get(library, base)
        if entry is not None and entry.network != base:
            raise UsageError(f"--network={network}: {path} holds {entry.name}, by its hash")
        if tag:
            named = [e for e in PRETRAINED[library] if e.name == network]
            if not named:
                tags = [e.name for e in PRETRAINED[library] if e.network == base]
                raise UsageError(
                    f"--network={network}: {library} has {', '.join(tags) or 'no weights of it'}"
                )
            entry = named[0]
    if entry is None:
        return None, network, width
    if width is None and library != "timm" and not entry.network.startswith("mnasnet"):
        width = entry.width
    return entry, entry.network, width


def identify(
    library: str,
    shapes: Mapping[str, tuple[int, ...]],
    name: str | None = None,
    width: float | None = None,
    what: str = "the file",
) -> Network:
    """The network that tensors of these shapes belong to, with as many classes as they have.

    Args:
      library: whose names the tensors have.
      shapes: by name.
      name: of the network, if known.
      width: of the network, if known.
      what: the tensors are from, for messages.

    Raises:
      UsageError: none fits, with every tensor that does not; or several networks fit alike.
    """
    fits: dict[NetSpec, Network] = {}
    nearest: tuple[list[str], Network] | None = None
    for network in networks.candidates(library, name, width):
        network = _with_classes(network, shapes)
        wrong = mapping.problems(mapping.pairs(library, network.spec), shapes)
        if not wrong:
            fits.setdefault(network.spec, network)
        elif nearest is None or len(wrong) < len(nearest[0]):
            nearest = wrong, network
    if len(fits) == 1:
        return next(iter(fits.values()))
    if fits:
        listed = ", ".join(n.name for n in fits.values())
        raise UsageError(
            f"{what} fits {listed} alike: they have the same tensors and differ in padding or "
            "BatchNorm; say which with --network=NAME or NAME.TAG"
        )
    wrong, network = nearest
    for other in networks.LIBRARIES if name is None else ():
        if other != library and (theirs := _fits(other, shapes)):
            raise UsageError(
                f"{what} is none of {library}'s networks; its tensors are those of {other}'s "
                f"{theirs.label}: --from={other}"
            )
    if name is None:
        head = f"{what} is none of {library}'s networks; the nearest is {network.label}"
        more = len(wrong) - _LISTED
        if more > 0:
            rest = f"... and {more} more; --network={network.name} lists them all"
            wrong = [*wrong[:_LISTED], rest]
    else:
        head = f"{what} is not {library}'s {network.label}"
    raise UsageError(f"{head}:\n  " + "\n  ".join(wrong))


def _fits(library: str, shapes: Mapping[str, tuple[int, ...]]) -> Network | None:
    """Some network of the library that tensors of these shapes belong to."""
    for network in networks.candidates(library):
        network = _with_classes(network, shapes)
        if not mapping.problems(mapping.pairs(library, network.spec), shapes):
            return network
    return None


def _with_classes(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    table = mapping.pairs(network.library, network.spec)
    shape = shapes.get(table[-1].theirs, ())  # the bias of the logits
    if len(shape) != 1 or shape[0] < 1:
        return network
    return dataclasses.replace(network, spec=network.spec.replace(num_classes=int(shape[0])))


# From a model of ours to a file that another library loads strictly.

# What a network of another library may have otherwise: nothing of it is in its layers.
_FREE = ("name", "resolution", "num_classes", "bn_decay", "dropout", "drop_path")
_INCEPTION = Preprocessing()
_LISTED_DIFFERENCES = 8


def export_weights(model: Model, library: str, out: Path, *, width: float | None = None) -> Network:
    """Writes the weights and returns the network of the library that loads them.

    Args:
      model: what to write.
      library: "timm", "torchvision" or "keras".
      out: a new file; its suffix decides the format.
      width: of torchvision and Keras, when it is none of `networks.WIDTHS`.

    Raises:
      UsageError: the library has no such network, or the file cannot be of that format.
      RunError: the file cannot be written.
    """
    format_ = weight_files.check_writable(library, out)
    network = counterpart(model.spec, library, width=width)
    metadata = {}
    if library == "torchvision" and network.name.startswith("mnasnet"):
        if format_ != ".pth":
            raise UsageError(
                f"--out={out}: torchvision's MNASNet asks for a version, which only .pth holds"
            )
        metadata = {"": {"version": 2}}
    table = mapping.pairs(library, network.spec.replace(num_classes=model.spec.num_classes))
    tensors = mapping.to_theirs(table, model.variables)
    weight_files.write(library, out, tensors, metadata=metadata)
    return network


def counterpart(spec: NetSpec, library: str, *, width: float | None = None) -> Network:
    """The library's network that computes what `spec` does.

    Raises:
      UsageError: it has none; the message says how the nearest differs.
    """
    nearest: tuple[list[str], Network, tuple] | None = None
    for network in networks.candidates(library, width=width):
        theirs = network.spec
        free = {f: getattr(spec, f) for f in (*_FREE, *_settable(network))}
        differences = _differences(spec, theirs.replace(**free))
        # Among equals the one whose padding and constants need no argument; among others one
        # of as many blocks, whose differences say something.
        asked = _differences(spec, theirs.replace(name=spec.name))
        rank = (len(spec.blocks) != len(theirs.blocks), len(differences), len(asked))
        if nearest is None or rank < nearest[2]:
            nearest = differences, network, rank
    differences, network, _ = nearest
    if differences:
        more = len(differences) - _LISTED_DIFFERENCES
        listed = differences[:_LISTED_DIFFERENCES] + ([f"... and {more} more"] if more > 0 else [])
        raise UsageError(
            f"{library} has no network like this one; the nearest, {network.label}, differs in\n  "
            + "\n  ".join(listed)
        )
    return network


def _settable(network: Network) -> tuple[str, ...]:
    """What can be asked of the library's constructor."""
    if network.library == "timm":
        return "padding", "bn_eps"
    if network.library == "torchvision" and not network.name.startswith("mnasnet"):
        return ("bn_eps",)
    return ()


def _differences(ours: NetSpec, theirs: NetSpec) -> list[str]:
    def walk(path, a, b):
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            for key in a:
                yield from walk(f"{path}.{key}" if path else key, a[key], b[key])
        elif isinstance(a, tuple | list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                yield from walk(f"{path}[{i}]", x, y)
        elif isinstance(a, tuple | list):
            yield f"{path}: {len(a)} here, {len(b)} there"
        elif a != b:
            yield f"{path}: {a!r} here, {b!r} there"

    return list(walk("", dataclasses.asdict(ours), dataclasses.asdict(theirs)))


def instructions(model: Model, network: Network, out: Path) -> str:
    """The Python lines that load the file, and what the network expects of its images."""
    how = model.preprocessing
    inside = (how.mean, how.std) == (_INCEPTION.mean, _INCEPTION.std)
    build = networks.construction(network, model.spec, preprocessing_inside=inside)
    file = str(out)
    if network.library == "keras":
        lines = ["import keras", f"model = {build}", f"model.load_weights({file!r})"]
    else:
        read = f"torch.load({file!r}, weights_only=True)"
        imports = f"import functools, torch, {network.library}"
        if file.endswith(".safetensors"):
            imports += ", safetensors.torch"
            read = f"safetensors.torch.load_file({file!r})"
        lines = [imports, f"model = {build}", f"model.load_state_dict({read}, strict=True)"]
    size = model.spec.resolution
    scale = f"mean {how.mean}, std {how.std} of values from 0 to 1"
    if network.library == "keras" and "include_preprocessing=True" in build:
        scale = "values from 0 to 255, as the network scales them itself"
    images = (
        f"# images: {size} pixels, crop {how.crop_fraction:g} ({how.central}), "
        f"{how.interpolation}; {scale}"
    )
    return "\n".join([*lines, images])
