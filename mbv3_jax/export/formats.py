"""From a trained network to the bytes of a file: TFLite, ONNX, Core ML or StableHLO.

The others have modules of their own. StableHLO is a call of `jax.export`; it is portable
across devices, and for some time across versions of JAX, see `run.exported`.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import choose
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import need
from mbv3_jax.export import coreml, onnx, tflite, tflite_edits
from mbv3_jax.nn.folded import Forms, apply_folded, fold
from mbv3_jax.quant.post_training import Int8Network
from mbv3_jax.run.model import Model

SUFFIXES = {
    "tflite": ".tflite",
    "onnx": ".onnx",
    "coreml": ".mlpackage",
    "stablehlo": ".stablehlo",
}
PRECISIONS = ("float32", "float16", "int8")
BOUNDARY = ("float32", "uint8", "int8")
STABLEHLO_DEPTHWISE = "convolution (depthwise)"
# Format -> what `counts` calls depthwise convolutions.
DEPTHWISE = {
    "tflite": "DEPTHWISE_CONV_2D",
    "onnx": onnx.DEPTHWISE,
    "coreml": coreml.DEPTHWISE,
    "stablehlo": STABLEHLO_DEPTHWISE,
}
# The networks lower to the same text for all of these, so one lowering serves all. Lowered for all
# platforms at once, the file would hold every convolution four times, behind a branch.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# hard_sigmoid as relu6(x + 3), with the factor of 1/6 in the next kernel: TFLite has no operation
# for hard_sigmoid, and the converter would add a multiplication.
_TFLITE_FORMS = Forms(hard_sigmoid="rescaled")
_STABLEHLO_OPERATION = re.compile(r"= \"?stablehlo\.(?P<name>\w+)(?P<rest>.*)")
_GROUPS = re.compile(r"feature_group_count = (\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What to write.

    file_format: a key of `SUFFIXES`.
    precision: one of `PRECISIONS`. "float16" is the type of the weights; in ONNX files and Core ML
      packages it is also the type of the computation.
    batch: images at a time; None for any number.
    input_dtype: one of `BOUNDARY`. "float32" is for normalised images, "uint8" for images that the
      file normalises (of Core ML, its own type of images), "int8" for normalised images by the
      scale and zero point of an int8 file's input; None for "int8" in an int8 file, else "float32".
    output_dtype: one of `BOUNDARY`; None as for the input. "uint8" and "int8" are logits by the
      scale and zero point of an int8 file's output.
    any_size: whether an ONNX file takes images of any height and width.
    opset: of an ONNX file, one of `onnx.OPSETS`; None for `onnx.OPSET`.

    Raises:
      ValueError: a field has another value.
      UsageError: the fields cannot be combined.
    """

    file_format: str
    precision: str = "float32"
    batch: int | None = 1
    input_dtype: str | None = None
    output_dtype: str | None = None
    any_size: bool = False
    opset: int | None = None

    def __post_init__(self):
        choose("file_format", self.file_format, SUFFIXES)
        choose("precision", self.precision, PRECISIONS)
        choose("input_dtype", self.input_dtype, (None, *BOUNDARY))
        choose("output_dtype", self.output_dtype, (None, *BOUNDARY))
        if self.precision == "int8" and self.file_format != "tflite":
            reason = {
                "onnx": "ONNX Runtime runs these networks more slowly in int8 than in float",
                "coreml": "ML programs compute in float; coremltools.optimize shrinks weights",
                "stablehlo": "XLA has no int8 convolutions of this kind",
            }[self.file_format]
            raise UsageError(
                f"--format={self.file_format} takes no --precision=int8 ({reason}); "
                "--format=tflite does"
            )
        if self.precision != "int8" and self.images_dtype == "int8":
            raise UsageError("--input=int8: has an effect only with --precision=int8")
        if self.precision != "int8" and self.logits_dtype != "float32":
            raise UsageError(
                f"--output={self.output_dtype}: has an effect only with --precision=int8; the "
                "logits of other files are float32"
            )
        if self.any_size and self.file_format != "onnx":
            raise UsageError("--resolution=any: for --format=onnx only; other files have one size")
        if self.opset is not None and self.file_format != "onnx":
            raise UsageError("--opset: has an effect only with --format=onnx")
        if self.opset is not None and self.opset not in onnx.OPSETS:
            raise UsageError(
                f"--opset={self.opset}: expected {onnx.OPSETS[0]} to {onnx.OPSETS[-1]}"
            )
        if self.file_format == "coreml" and self.batch is None:
            raise UsageError(
                "--batch=any: a Core ML package has a fixed batch; applications give it several "
                "images by predictions(fromBatch:)"
            )
        if self.file_format == "coreml" and self.images_dtype == "uint8" and self.batch != 1:
            raise UsageError(f"--batch={self.batch}: --input=uint8 of Core ML is a single image")
        if self.batch is None and self.file_format == "tflite":
            raise UsageError(
                "--batch=any: a TFLite file has a fixed batch, because the converter cannot fuse "
                "operations with a symbolic one; give a number, or --format=onnx or stablehlo"
            )

    @property
    def images_dtype(self) -> str:
        """The type of the file's images."""
        return self.input_dtype or ("int8" if self.precision == "int8" else "float32")

    @property
    def logits_dtype(self) -> str:
        """The type of the file's logits."""
        return self.output_dtype or ("int8" if self.precision == "int8" else "float32")


def write(model: Model, target: Target, network: Int8Network | None = None) -> bytes:
    """Writes a network with folded BatchNorm, without metadata and without checks.

    Of a Core ML package, which is a folder, the bytes are those of an archive, see `coreml.save`.

    Args:
      model: the network; its `spec.quant` is ignored.
      target: what to write.
      network: the int8 form of the network; required for precision "int8".

    Raises:
      UsageError: a package is not installed.
      ValueError: a weight is too large for float16, or the int8 form is missing.
    """
    spec = model.spec.replace(quant=None)
    normalize = model.preprocessing.normalize if target.images_dtype == "uint8" else None
    if target.precision == "int8":
        if network is None or target.batch is None:
            raise ValueError("int8 needs the int8 form of the network, and a fixed batch")
        integers = tflite.to_int8_tflite(network, batch=target.batch, normalize=normalize)
        return tflite_edits.with_boundary(integers, target.images_dtype, target.logits_dtype)
    folded = jax.tree.map(np.asarray, jax.jit(lambda v: fold(spec, v))(model.variables))
    if target.file_format == "onnx":
        return onnx.to_onnx(
            spec,
            folded,
            batch=target.batch,
            dtype=target.precision,
            normalize=normalize,
            any_size=target.any_size,
            opset=target.opset or onnx.OPSET,
        )
    if target.file_format == "coreml":
        is_classifier = target.batch == 1 and len(model.class_names) > 1 and not model.multi_label
        return coreml.to_coreml(
            spec,
            folded,
            batch=target.batch or 1,
            dtype=target.precision,
            normalize=normalize,
            class_names=model.class_names if is_classifier else (),
        )
    if target.file_format == "stablehlo":
        if target.precision == "float16":
            folded = jax.tree.map(tflite.to_half, folded)
        function = _logits_function(spec, folded, Forms(), normalize)
        shape = (target.batch or "N", *spec.input_shape)
        return to_stablehlo(function, shape, target.images_dtype)
    function = _logits_function(spec, folded, _TFLITE_FORMS, normalize)
    file = tflite.to_tflite(
        function, jax.ShapeDtypeStruct((target.batch, *spec.input_shape), target.images_dtype)
    )
    return tflite_edits.with_half_weights(file) if target.precision == "float16" else file


def _logits_function(
    spec: NetSpec,
    folded: dict,
    forms: Forms,
    normalize: tuple[Sequence[float], Sequence[float]] | None,
) -> Callable[[jax.Array], jax.Array]:
    """The function from images to logits that a file holds; see `onnx.to_onnx` for `normalize`."""

    def function(images):
        if normalize:
            factor, offset = tflite.affine(*normalize)
            images = images.astype(jnp.float32) * factor + offset
        weights = jax.tree.map(lambda w: jnp.asarray(w).astype(jnp.float32), folded)
        return apply_folded(spec, weights, images, forms=forms)

    return function


def counts(file: bytes, file_format: str) -> dict[str, int]:
    """How often each operation occurs in a file, the most frequent first."""
    of_format = {
        "tflite": tflite.counts,
        "onnx": onnx.counts,
        "coreml": coreml.counts,
        "stablehlo": stablehlo_counts,
    }
    return of_format[file_format](file)


def to_stablehlo(
    function: Callable, shape: tuple, dtype: str = "float32", platform: str = "cpu"
) -> bytes:
    """Exports a function of images; arrays that it closes over become constants.

    Args:
      function: images -> logits.
      shape: [batch, height, width, channels] of the images; a name instead of the batch stands
        for any number.
      dtype: the type of the images.
      platform: one of `PLATFORMS`, to lower for; the file runs on all of them.

    Returns:
      The file, which `jax.export.deserialize` reads; its `mlir_module()` is the StableHLO.
    """
    need("flatbuffers", "StableHLO", "export")  # jax.export imports it
    dimensions = jax.export.symbolic_shape(",".join(map(str, shape)))
    exported = jax.export.export(
        jax.jit(function),
        platforms=[platform],
        disabled_checks=[jax.export.DisabledSafetyCheck.platform()],
    )(jax.ShapeDtypeStruct(dimensions, dtype))
    return bytes(exported.serialize())


def stablehlo_counts(file: bytes) -> dict[str, int]:
    """How often each operation occurs, the most frequent first; depthwise convolutions apart.

    Constants and operations that only handle shapes are counted too, as XLA has not yet fused them.
    """
    need("flatbuffers", "StableHLO", "export")
    numbers: collections.Counter[str] = collections.Counter()
    module = jax.export.deserialize(bytearray(file)).mlir_module()
    for operation in _STABLEHLO_OPERATION.finditer(module):
        name = operation["name"]
        groups = _GROUPS.search(operation["rest"])
        if name == "convolution" and groups and int(groups[1]) > 1:
            name = STABLEHLO_DEPTHWISE
        numbers[name] += 1
    return dict(numbers.most_common())
