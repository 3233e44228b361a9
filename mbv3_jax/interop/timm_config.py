"""timm's config.json beside a file of weights: the network, its arguments, its classes.

timm 1.0.31 writes it by `save_for_hf` and reads it for `hf-hub:` and `local-dir:` (models/_hub.py).
What it says of images is read by `images.beside`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import UsageError, printable
from mbv3_jax.core.json_values import as_type, read_json
from mbv3_jax.interop.identify import Shapes, first_fitting
from mbv3_jax.interop.networks import NAMES, Network
from mbv3_jax.run.model import Model

NAME = "config.json"
_CENTRAL = {"square": "center", "stretch": "squash"}  # our name -> timm's crop_mode
_PADDINGS = {"": "symmetric", "same": "same"}  # timm's pad_type -> ours
# Arguments with which a network computes the same from the same weights, and those that the tensors
# tell anyway.
_HARMLESS = ("num_classes", "in_chans", "drop_rate", "drop_path_rate", "global_pool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimmConfig:
    """What a config.json says of a network.

    architecture: timm's name of it; None if there is no such file, or it is not timm's.
    fields: fields of its spec that differ from those of the architecture.
    labels: the names of its classes, in order; empty if it has none.
    """

    architecture: str | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()


class _File(TypedDict):
    architecture: str
    model_args: dict[str, Any] | None
    label_names: list[str] | dict[str, Any] | None


def beside(weights: Path) -> TimmConfig:
    """Reads the config.json in the folder of a file of weights.

    Raises:
      UsageError: it cannot be read, is not JSON, a field has another type, or it gives the network
        an unknown argument that changes what it computes.
    """
    found = _read(weights)
    if found is None:
        return TimmConfig()
    try:
        fields = _fields(found["model_args"] or {})
    except ValueError as e:
        raise UsageError(f"{weights.parent / NAME}: {e}") from e
    labels = found["label_names"]
    return TimmConfig(
        architecture=found["architecture"],
        fields=fields,
        labels=tuple(labels) if isinstance(labels, list) else (),
    )


def check_architecture(weights: Path, shapes: Shapes, published: str | None = None) -> None:
    """Checks that a file's tensors are those of the network that the config.json beside it names.

    Tensors of no network that is known pass: `identify` says more about them.

    Args:
      weights: the file.
      shapes: of its tensors, as for `identify`.
      published: timm's network whose published weights the file is known to hold, by its hash.

    Raises:
      UsageError: they are those of another network, or `beside` raises it.
    """
    found = _read(weights)
    named = found["architecture"] if found else None
    if named is None or named == published:
        return
    holds = published
    if holds is None:
        if named in NAMES["timm"] and first_fitting("timm", shapes, named):
            return
        other = first_fitting("timm", shapes)
        holds = other.name if other else None
    if holds is not None:
        raise UsageError(
            f"{weights.parent / NAME}: architecture: got {printable(named)!r}, but {weights.name} "
            f"holds the tensors of timm's {holds}; give --from=timm --network=NAME to say which "
            "network it is"
        )


def _read(weights: Path) -> _File | None:
    """The config.json beside a file of weights; None if there is none, or it is not timm's."""
    path = weights.parent / NAME
    if not path.is_file():
        return None
    tree = read_json(path, dict, error=UsageError)
    if "architecture" not in tree:
        return None
    try:
        return as_type({name: tree.get(name) for name in _File.__annotations__}, _File)
    except ValueError as e:
        raise UsageError(f"{path}: {e}") from e


def _fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in arguments.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "bn_eps" and is_number:
            fields["bn_eps"] = float(value)
        elif name == "bn_momentum" and is_number:
            fields["bn_decay"] = round(1 - value, 9)
        elif name == "pad_type" and value in _PADDINGS:
            fields["padding"] = _PADDINGS[value]
        elif name not in _HARMLESS or (name == "global_pool" and value != "avg"):
            raise ValueError(f"model_args.{name}: {value!r} is not read")
    return fields


def text(model: Model, network: Network) -> str:
    """The config.json of a model as timm reads it.

    Args:
      model: the model.
      network: timm's network that its weights are written for.
    """
    spec, default, view = model.spec, network.spec, model.preprocessing
    size = [spec.in_channels, *spec.input_shape[:2]]
    config: dict[str, Any] = {
        "architecture": network.name,
        "num_classes": spec.num_classes,
        "label_names": list(model.class_names),
        "model_args": _arguments(spec, default),
        "pretrained_cfg": {
            "num_classes": spec.num_classes,
            "input_size": size,
            "interpolation": view.interpolation,
            "crop_pct": view.crop_fraction,
            "crop_mode": _CENTRAL[view.central],
            "mean": list(view.mean),
            "std": list(view.std),
            "first_conv": "conv_stem",
            "classifier": "classifier",
            "custom_load": False,
        },
    }
    return json.dumps(config, indent=2, ensure_ascii=False)


def _arguments(spec: NetSpec, default: NetSpec) -> dict[str, Any]:
    """The arguments of timm's constructor besides the number of classes."""
    arguments: dict[str, Any] = {}
    if (spec.bn_eps, spec.bn_decay) != (default.bn_eps, default.bn_decay):
        arguments |= {"bn_eps": spec.bn_eps, "bn_momentum": round(1 - spec.bn_decay, 9)}
    if spec.in_channels != default.in_channels:
        arguments["in_chans"] = spec.in_channels
    if spec.padding != default.padding:
        arguments["pad_type"] = "same" if spec.padding == "same" else ""
    return arguments
