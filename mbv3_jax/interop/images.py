"""What a weight file says about its images: size, range, normalisation; and what is used.

Keras saves the whole network, of which the layers before the first convolution are read:
InputLayer, Rescaling, Normalization and the arithmetic of `preprocess_input`. They take pixels from
0 to 255. timm's `pretrained_cfg` (models/_pretrained.py of timm 1.0.31) may be in a checkpoint, or
in the config.json that `save_for_hf` writes beside the weights. Files of torchvision say nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.errors import UsageError, counted, printable
from mbv3_jax.core.json_values import Number, as_type, read_json
from mbv3_jax.run.model import Preprocessing

# Field of `Preprocessing`, or "resolution" -> (value, which part of the file says it); or None, and
# why what it says is not used.
Told = dict[str, tuple[Any, str]]

_FIELDS = ("resolution", "crop_fraction", "central", "interpolation", "mean", "std")
_FLAGS = {field: f"--{field.replace('_', '-')}" for field in _FIELDS if field != "central"}
_CENTRAL = {"center": "square", "squash": "stretch"}  # timm's crop_mode
# Layers of Keras that do not change the range of pixels; those that augment do nothing afterwards.
_HARMLESS = {"InputLayer", "ZeroPadding2D", "Resizing", "CenterCrop", "RandAugment", "AugMix"} | {
    *("MixUp", "CutMix", "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout"),
}
# Operations of Keras 3, and functions of a TFOpLambda of tf.keras, on the image and one number.
_ARITHMETIC = {
    "TrueDivide": "/",
    "Divide": "/",
    "math.truediv": "/",
    "Multiply": "*",
    "math.multiply": "*",
    "Subtract": "-",
    "math.subtract": "-",
    "Add": "+",
    "math.add": "+",
}


class _TimmImages(TypedDict):
    """Fields of a `pretrained_cfg`; those that are absent count as None."""

    input_size: list[int] | None
    mean: list[Number] | None
    std: list[Number] | None
    crop_pct: Number | None
    crop_mode: str | None
    interpolation: str | None


class _Layer(TypedDict):
    class_name: str
    config: dict[str, Any] | list
    inbound_nodes: NotRequired[list | None]


def of_timm(config: Mapping[Any, Any], where: str) -> Told:
    """What a `pretrained_cfg` says.

    Args:
      config: its fields; in a checkpoint, they may be tuples.
      where: which part of the file it is, for messages.

    Raises:
      UsageError: a field has another type.
    """
    fields = {name: config.get(name) for name in _TimmImages.__annotations__}
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    try:
        found = as_type(fields, _TimmImages)
    except ValueError as e:
        raise UsageError(f"{where}.{e}") from e
    crop_mode, mean, std = found["crop_mode"], found["mean"], found["std"]
    told: dict[str, Any] = {
        "crop_fraction": found["crop_pct"],
        "central": _CENTRAL.get(crop_mode, crop_mode) if crop_mode else None,
        "interpolation": found["interpolation"],
        "mean": tuple(mean) if mean else None,
        "std": tuple(std) if std else None,
    }
    told = {field: (value, where) for field, value in told.items() if value is not None}
    return _size((found["input_size"] or [])[1:], where) | told


def beside(weights: Path) -> Told:
    """What timm's config.json in the folder of a file of weights says.

    Raises:
      UsageError: it cannot be read, is not JSON, or a field has another type.
    """
    path = weights.parent / "config.json"
    if not path.is_file():
        return {}
    config = read_json(path, dict, error=UsageError)
    inner = config.get("pretrained_cfg", config if "architecture" in config else None)
    try:
        return of_timm(inner, path.name) if isinstance(inner, dict) else {}
    except UsageError as e:
        raise UsageError(f"{path.parent}: {e}") from e


def of_keras(config: Mapping[str, Any], adapted: Sequence[Sequence[np.ndarray]]) -> Told:
    """What the layers of a Keras network before its first convolution say.

    Args:
      config: of the network, as Keras saves it.
      adapted: mean and variance of each Normalization layer in the file.

    Raises:
      ValueError: it is not the configuration of a Keras network.
    """
    told: Told = {}
    scale, offset = np.ones(1), np.zeros(1)  # network's input = scale * pixel + offset
    scaling: list[str] = []
    for layer in _before_convolution(as_type(dict(config), _Layer)):
        name, options = layer["class_name"], layer["config"]
        told |= _size(_sides(options), name)  # the last one is nearest to the network
        try:
            step = _arithmetic(layer, adapted)
        except (TypeError, ValueError):  # numbers in a form that is not known
            step = None
        if step is not None:
            scale, offset = scale * step[0], offset * step[0] + step[1]
            scaling.append(printable(_function(layer) or name))
        elif not name.startswith("Random") and name not in _HARMLESS:
            unknown = None, f"a layer before the network, {printable(name)}, is not read"
            return told | {"mean": unknown, "std": unknown}
    if scaling:
        where = ", ".join(scaling)
        scale, offset = np.broadcast_arrays(scale, offset)
        with np.errstate(divide="ignore", invalid="ignore"):  # refused as what they become
            told["mean"] = _decimal(-offset / (255 * scale)), where
            told["std"] = _decimal(1 / (255 * scale)), where
    return told


def settle(
    spec: NetSpec,
    told: Told,
    given: Mapping[str, Any],
    usual: tuple[Resolution, Preprocessing],
    usual_source: str,
) -> tuple[NetSpec, Preprocessing, str]:
    """Decides how images become the input: from the flags, else the file, else the usual values.

    Args:
      spec: the network, whose resolution is not settled yet.
      told: what the file says.
      given: what the flags say: field -> value, None for a flag that was not given.
      usual: resolution and preprocessing, of images in colour.
      usual_source: their source, for the line that is printed.

    Returns:
      The network with its resolution, the preprocessing, and where each part of them is from.

    Raises:
      UsageError: a value is out of range; the message says where it is from.
    """
    channels = spec.in_channels
    preprocessing = usual[1].for_channels(channels)
    values: dict[str, Any] = {
        f: usual[0] if f == "resolution" else getattr(preprocessing, f) for f in _FIELDS
    }
    sources = dict.fromkeys(_FIELDS, usual_source)
    if len(preprocessing.mean) != len(usual[1].mean):
        sources |= dict.fromkeys(("mean", "std"), f"{usual_source}, as of their luminance")
    for field, (value, where) in told.items():
        if value is None:
            sources[field] += f" ({where})"
        else:
            values[field], sources[field] = value, f"the file's {where}"
    for field, value in given.items():
        if value is not None:
            values[field], sources[field] = value, _FLAGS[field]
    for field in ("mean", "std"):
        values[field] *= channels if len(values[field]) == 1 else 1
        if len(values[field]) != channels:
            expected = f"expected {channels}, one for each channel, or one for all"
            error = f"{field}: got {counted(len(values[field]), 'number')}, {expected}"
            raise _refusal(error, sources)
    try:
        spec = spec.replace(resolution=values.pop("resolution"))
        preprocessing = Preprocessing(**values)
    except ValueError as e:
        raise _refusal(str(e), sources) from e
    by_source: dict[str, list[str]] = {}
    for field in _FIELDS:
        if field != "central" or sources[field] != sources["crop_fraction"]:
            name = {"crop_fraction": "crop", "central": "crop's place"}.get(field, field)
            by_source.setdefault(sources[field], []).append(name)
    if len(by_source) == 1:
        return spec, preprocessing, next(iter(by_source))
    said = (f"{', '.join(fields)}: {source}" for source, fields in by_source.items())
    return spec, preprocessing, "; ".join(said)


def _refusal(error: str, sources: Mapping[str, str]) -> UsageError:
    """The message for a value; `error` begins with the name of its field."""
    field, _, reason = error.partition(": ")
    source, flag = sources.get(field, ""), _FLAGS.get(field)
    if source == flag:
        return UsageError(f"{flag}: {reason}")
    return UsageError(f"{error} ({source}){f'; {flag}=... tells another' if flag else ''}")


def _before_convolution(network: _Layer) -> Iterator[_Layer]:
    """Yields the layers of a network up to its first convolution, in the order of the pass."""
    for layer in _inner(network):
        if "Conv" in layer["class_name"]:
            return
        if _inner(layer):
            yield from _before_convolution(layer)
            if any("Conv" in inner["class_name"] for inner in _all(layer)):
                return
        else:
            yield layer


def _all(network: _Layer) -> Iterator[_Layer]:
    for layer in _inner(network):
        yield layer
        yield from _all(layer)


def _inner(layer: _Layer) -> list[_Layer]:
    """The layers of a layer that is a network, else none."""
    config = layer["config"]  # a list in the oldest files
    layers = config.get("layers", ()) if isinstance(config, dict) else config
    return [as_type(inner, _Layer, "layers") for inner in layers if isinstance(inner, dict)]


def _sides(options: dict[str, Any] | list) -> list:
    """Height and width that images have from this layer on, if it says them."""
    if not isinstance(options, dict):
        return []
    if "height" in options and "width" in options:  # Resizing, CenterCrop
        return [options["height"], options["width"]]
    shape = options.get("batch_shape") or options.get("batch_input_shape")
    return shape[1:3] if isinstance(shape, list) else []


def _size(sides: list, where: str) -> Told:
    """What height and width tell."""
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        return {}
    height, width = sides
    return {"resolution": (height if height == width else (height, width), where)}


def _arithmetic(
    layer: _Layer, adapted: Sequence[Sequence[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and offset that a layer applies to pixels; None if it is not known to do only that."""
    options = layer["config"]
    if not isinstance(options, dict):
        return None
    if layer["class_name"] == "Rescaling":
        return _numbers(options.get("scale")), _numbers(options.get("offset", 0))
    if layer["class_name"] == "Normalization":
        mean, variance = options.get("mean"), options.get("variance")
        if mean is None or variance is None:
            if len(adapted) != 1:
                return None
            mean, variance = adapted[0]
        # At least Keras' epsilon; that of a negative variance is NaN, which is refused later.
        with np.errstate(invalid="ignore"):
            deviation = np.maximum(np.sqrt(_numbers(variance)), 1e-7)
        if options.get("invert"):
            return deviation, _numbers(mean)
        return 1 / deviation, -_numbers(mean) / deviation
    operation = _ARITHMETIC.get(_function(layer) or layer["class_name"])
    number = _constant(layer.get("inbound_nodes"))
    if operation is None or number is None or (operation == "/" and number == 0):
        return None
    factor = {"*": number, "/": 1 / number if number else 0}.get(operation, 1.0)
    return _numbers(factor), _numbers({"+": number, "-": -number}.get(operation, 0.0))


def _function(layer: _Layer) -> str | None:
    """The name of the function that a layer of tf.keras calls, if it does that."""
    options = layer["config"]
    function = options.get("function") if isinstance(options, dict) else None
    return function if layer["class_name"] == "TFOpLambda" and isinstance(function, str) else None


def _constant(nodes: list | None) -> float | None:
    """The one number with which an operation calculates: image / number, not number / image."""
    node: Any = nodes[0] if nodes and len(nodes) == 1 else None
    args = node.get("args") if isinstance(node, dict) else None
    values: list[Any]
    if isinstance(args, list) and len(args) == 2:
        values = [args[1]] if isinstance(args[0], dict) else []
    elif isinstance(node, list) and len(node) == 1 and isinstance(node[0], list):
        # tf.keras: ["layer it comes from", 0, 0, {"y": number, "name": null}]
        arguments = node[0][-1] if len(node[0]) == 4 else {}
        values = [arguments.get("y")] if isinstance(arguments, dict) else []
    else:
        values = []
    values = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return float(values[0]) if values else None


def _numbers(values: Any) -> np.ndarray:
    """A number, or one for each channel in lists of any depth, as float64 [1] or [channels]."""
    if isinstance(values, dict) and values.get("class_name") in ("__numpy__", "__tensor__"):
        values = values["config"]["value"] if isinstance(values.get("config"), dict) else None
    return np.asarray(values, np.float64).reshape(-1)


def _decimal(values: np.ndarray) -> tuple[float, ...]:
    """Numbers as they were intended: 127.5 / 255 and 1 / (255 * 0.00784313725490196) are 0.5."""
    return tuple(float(f"{value:.9g}") + 0.0 for value in values)
