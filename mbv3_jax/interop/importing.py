"""From a file of another library to a model of ours."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.interop import class_names, download, files, mapping, networks, pretrained
from mbv3_jax.interop.networks import Network
from mbv3_jax.interop.pretrained import Pretrained
from mbv3_jax.train.errors import UsageError
from mbv3_jax.train.model import Model

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
        if path.exists() or path.parent != Path() or files.suffix(path) in _all_suffixes():
            raise UsageError(f"--weights={weights}: no such file")
        entry = pretrained.find(library, weights)
        path, source_of = download.fetch(entry, revision=revision)
    elif revision is not None:
        raise UsageError("--revision: for names of weights, not for files")
    source = files.read(library, path)
    if sha256 is not None and not source.sha256.startswith(sha256.lower()):
        raise UsageError(f"{path}: its SHA-256 is {source.sha256}, expected {sha256}")
    entry = entry or pretrained.of_file(library, source.sha256, source.md5)
    entry, name, width = _settle(library, path, entry, network, width)
    shapes = {n: t.shape for n, t in source.tensors.items()}
    found = identify(library, shapes, name, width, str(path))
    resolution = entry.resolution if entry else found.spec.resolution
    spec = found.spec.replace(resolution=resolution)
    variables = mapping.to_ours(mapping.pairs(library, spec), source.tensors)
    names, names_are = class_names.find(spec.num_classes, classes)
    model = Model(
        spec=spec,
        variables=variables,
        preprocessing=entry.preprocessing if entry else pretrained.usual(library, found.name),
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
    return {s for suffixes in files.SUFFIXES.values() for s in suffixes}


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
            named = [e for e in pretrained.PRETRAINED[library] if e.name == network]
            if not named:
                tags = [e.name for e in pretrained.PRETRAINED[library] if e.network == base]
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
