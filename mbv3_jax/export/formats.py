"""StableHLO by jax.export, portable across devices and stable across versions of JAX."""

import collections
import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import need
from mbv3_jax.export import onnx, tflite
from mbv3_jax.nn.folded import Forms, apply_folded, fold
from mbv3_jax.quant.post_training import Int8Network
from mbv3_jax.run.model import Model

# The networks lower to the same text for all of them, so that one file holds it once: lowered for
# all at once, every convolution would be there four times, behind a branch.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
STABLEHLO_DEPTHWISE = "convolution (depthwise)"
_OPERATION = re.compile(r"= \"?stablehlo\.(?P<name>\w+)(?P<rest>.*)")
_GROUPS = re.compile(r"feature_group_count = (\d+)")


def to_stablehlo(
    function: Callable, shape: tuple, dtype: str = "float32", platform: str = "cpu"
) -> bytes:
    """Exports a function of images; arrays that it closes over become constants.

    Args:
      function: images -> logits.
      shape: of the images; a name in the place of the batch stands for any number.
      dtype: of the images.
      platform: what to lower for; it runs on all of them.

    Returns:
      What `jax.export.deserialize` reads; its `mlir_module()` is the StableHLO.
    """
    need("flatbuffers", "StableHLO", "export")  # of jax.export
    shape = jax.export.symbolic_shape(",".join(map(str, shape)))
    example = jax.ShapeDtypeStruct(shape, dtype)
    exported = jax.export.export(
        jax.jit(function),
        platforms=[platform],
        disabled_checks=[jax.export.DisabledSafetyCheck.platform()],
    )(example)
    return bytes(exported.serialize())


def stablehlo_counts(model: bytes) -> dict[str, int]:
    """How often each operation occurs, the most frequent first; depthwise convolutions apart.

    Constants and what only handles shapes are counted too: XLA has yet to fuse.
    """
    need("flatbuffers", "StableHLO", "export")
    found = collections.Counter()
    for match in _OPERATION.finditer(jax.export.deserialize(bytearray(model)).mlir_module()):
        name = match["name"]
        if name == "convolution" and int(_GROUPS.search(match["rest"])[1]) > 1:
            name = STABLEHLO_DEPTHWISE
        found[name] += 1
    return dict(found.most_common())


# From a trained network to the bytes of a file.

SUFFIXES = {"tflite": ".tflite", "onnx": ".onnx", "stablehlo": ".stablehlo"}
PRECISIONS = ("float32", "float16", "int8")
INPUTS = ("float32", "uint8")
# The name of depthwise convolutions in what the `counts` of each format returns.
DEPTHWISE = {
    "tflite": "DEPTHWISE_CONV_2D",
    "onnx": onnx.DEPTHWISE,
    "stablehlo": STABLEHLO_DEPTHWISE,
}
# hard_sigmoid as relu6(x + 3) with the 1/6 in the next kernel: the converter has no operation of
# its own for it, and would write one more multiplication.
_TFLITE_FORMS = Forms(hard_sigmoid="rescaled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What is to be written.

    file_format: of `SUFFIXES`.
    precision: of `PRECISIONS`. "float16" is that of the weights, in ONNX also of the computation.
    batch: images at a time; None for any number.
    input_dtype: "float32" of normalised images, or "uint8", which the file itself normalises.
      An int8 file takes normalised images as int8, by the scale and zero point of its input.

    Raises:
      UsageError: a combination that there is not.
    """

    file_format: str
    precision: str = "float32"
    batch: int | None = 1
    input_dtype: str = "float32"

    def __post_init__(self):
        if self.precision == "int8" and self.file_format != "tflite":
            reason = {
                "onnx": "ONNX Runtime's int8 is slower than its float on these networks",
                "stablehlo": "XLA has no int8 convolutions of this kind",
            }[self.file_format]
            raise UsageError(
                f"--format={self.file_format} takes no --precision=int8 ({reason}); "
                "--format=tflite does"
            )
        if self.precision == "int8" and self.input_dtype != "float32":
            raise UsageError(
                "--input=uint8: an int8 file takes int8 images, by its input's scale and zero point"
            )
        if self.batch is None and self.file_format == "tflite":
            raise UsageError(
                "--batch=any: a TFLite file has a fixed batch, with a symbolic one its operations "
                "cannot be fused; give a number, or --format=onnx or stablehlo"
            )


def write(model: Model, target: Target, network: Int8Network | None = None) -> bytes:
    """Writes a network, BatchNorm folded; metadata and checks are others'.

    Args:
      model: the network; `spec.quant` does not matter.
      target: how.
      network: the int8 form, for precision "int8".

    Raises:
      UsageError: a package is not installed.
      ValueError: a weight is too large for float16.
    """
    spec = model.spec.replace(quant=None)
    if target.precision == "int8":
        from mbv3_jax.export.tflite import to_int8_tflite

        return to_int8_tflite(network, batch=target.batch)
    folded = jax.tree.map(np.asarray, jax.jit(lambda v: fold(spec, v))(model.variables))
    normalize = model.preprocessing.normalize if target.input_dtype == "uint8" else None
    if target.file_format == "onnx":
        return onnx.to_onnx(
            spec, folded, batch=target.batch, dtype=target.precision, normalize=normalize
        )
    shape = (spec.resolution, spec.resolution, spec.in_channels)
    if target.file_format == "stablehlo":
        if target.precision == "float16":
            folded = jax.tree.map(tflite.to_half, folded)
        function = _function(spec, folded, Forms(), normalize)
        return to_stablehlo(function, (target.batch or "N", *shape), target.input_dtype)
    function = _function(spec, folded, _TFLITE_FORMS, normalize)
    file = tflite.to_tflite(
        function, jax.ShapeDtypeStruct((target.batch, *shape), target.input_dtype)
    )
    return tflite.with_half_weights(file) if target.precision == "float16" else file


def counts(file: bytes, file_format: str) -> dict[str, int]:
    """How often each operation occurs in a file, the most frequent first."""
    of = {"tflite": tflite.counts, "onnx": onnx.counts, "stablehlo": stablehlo_counts}
    return of[file_format](file)


def _function(spec, folded, forms, normalize):
    def function(images):
        if normalize:
            mean, std = (np.asarray(v, np.float64) for v in normalize)
            factor, offset = (1 / (255 * std)).astype("f4"), (-mean / std).astype("f4")
            images = images.astype(jnp.float32) * factor + offset
        weights = jax.tree.map(lambda w: jnp.asarray(w).astype(jnp.float32), folded)
        return apply_folded(spec, weights, images, forms=forms)

    return function
