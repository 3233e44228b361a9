"""The metadata of an exported file: network, classes, preprocessing, input and origin.

ONNX files keep it as metadata_props, Core ML packages as metadata that a user defines, with JSON
values. A zip archive is appended to other files, like TFLite's associated files: runtimes ignore
it, and any unzip program reads it (`unzip -p FILE labels.txt`, `unzip -p FILE metadata.json`).
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import read_bytes
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.export import coreml, onnx
from mbv3_jax.export.formats import Target
from mbv3_jax.run.archive import METADATA, read_archive
from mbv3_jax.run.exported import promise
from mbv3_jax.run.model import Model

_LABELS = "labels.txt"
_COLOURS = {1: "grey", 3: "RGB"}
_NORMALISED = "(value / 255 - mean) / std of each channel"
_VALUES = {
    "uint8": "{colours} 0 to 255",
    "float32": f"{{colours}}, {_NORMALISED}",
    "int8": (
        f"{{colours}}, {_NORMALISED}, then round(value / scale) + zero_point of the file's input"
    ),
}
_STORED = "(value - zero_point) * scale of the file's output is a logit; "
_LOGITS = {"float32": "", "uint8": _STORED, "int8": _STORED}
_WITH_METADATA = {"onnx": onnx.with_metadata, "coreml": coreml.with_metadata}
_DATE = (1980, 1, 1, 0, 0, 0)  # fixed, so that the same network gives the same file


def describe(model: Model, target: Target, origin: Mapping) -> dict:
    """The metadata of a file, as JSON values.

    Args:
      model: the exported model.
      target: what was written.
      origin: where the weights come from.
    """
    spec, preprocessing = model.spec, model.preprocessing
    n = "N" if target.batch is None else target.batch
    height, width, channels = ("H", "W", spec.in_channels) if target.any_size else spec.input_shape
    input_dtype, output_dtype = target.images_dtype, target.logits_dtype
    channels_first = target.file_format in ("onnx", "coreml") and input_dtype == "float32"
    note = model.sigmoid_note
    shape = [n, channels, height, width] if channels_first else [n, height, width, channels]
    colours = _COLOURS.get(channels, f"{channels} channels")
    entries = {
        "network": spec.name,
        "precision": target.precision,
        "input": {
            "name": "images",
            "shape": shape,
            "layout": "NCHW" if channels_first else "NHWC",
            "dtype": input_dtype,
            "values": _VALUES[input_dtype].format(colours=colours),
        },
        "output": {
            "name": "logits",
            "shape": [n, spec.num_classes],
            "dtype": output_dtype,
            "values": f"{_LOGITS[output_dtype]}{model.probabilities}{note and '; '}{note}",
        },
        "preprocessing": dataclasses.asdict(preprocessing) | {"resolution": spec.resolution},
        "labels": "multi" if model.multi_label else "single",
        "classes": list(model.class_names),
        "spec": dataclasses.asdict(spec),
        "origin": dict(origin),
        "made_by": f"mbv3_jax, jax {jax.__version__}",
    }
    if target.file_format == "stablehlo":
        entries["jax_export"] = promise()
    return entries


def attach(file: bytes, file_format: str, entries: Mapping) -> bytes:
    """Returns the file with the metadata that `describe` made."""
    if file_format in _WITH_METADATA:
        texts = {key: _to_json(value) for key, value in entries.items()}
        return _WITH_METADATA[file_format](file, texts)
    stream = io.BytesIO(file)
    with zipfile.ZipFile(stream, "a") as archive:
        texts = {
            _LABELS: "".join(f"{name}\n" for name in entries["classes"]),
            METADATA: _to_json(entries, indent=1),
        }
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), text)
    return stream.getvalue()


def read(path: Path) -> dict:
    """Reads the metadata of a file that `pipeline.export` wrote.

    Raises:
      UsageError: the file cannot be read.
      RunError: the file has no such metadata.
    """
    try:
        if path.suffix == ".onnx":
            properties = onnx.metadata(read_bytes(path))
            return {key: parse_json(value, object) for key, value in properties.items()}
        if path.suffix == ".mlpackage":
            properties = coreml.metadata(path)
            ours = {k: v for k, v in properties.items() if not k.startswith("com.github.apple.")}
            return {key: parse_json(value, object) for key, value in ours.items()}
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    except ValueError as e:
        raise RunError(f"{path} has no metadata of this package: {e}") from e
    entries = read_archive(path)
    if entries is None:
        raise RunError(f"{path} has no metadata of this package: no {METADATA}")
    return entries


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
