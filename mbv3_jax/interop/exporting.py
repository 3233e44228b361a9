"""From a model of ours to a file that another library loads strictly."""

import dataclasses
from pathlib import Path

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.interop import mapping, networks, writing
from mbv3_jax.interop.networks import Network
from mbv3_jax.train.errors import UsageError
from mbv3_jax.train.model import Model, Preprocessing

# What a network of another library may have otherwise: nothing of it is in its layers.
_FREE = ("name", "resolution", "num_classes", "bn_decay", "dropout", "drop_path")
_INCEPTION = Preprocessing()
_LISTED = 8


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
    format_ = writing.check(library, out)
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
    writing.write(library, out, tensors, metadata=metadata)
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
        more = len(differences) - _LISTED
        listed = differences[:_LISTED] + ([f"... and {more} more"] if more > 0 else [])
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
