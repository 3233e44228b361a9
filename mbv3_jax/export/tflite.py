"""TFLite files in float32, float16 and int8, made by litert-converter without TensorFlow.

JAX lowers a function to StableHLO, which the converter's passes turn into TFLite. The names of the
passes are internal to litert-converter; its version is pinned for that reason.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from mbv3_jax.core.packages import need
from mbv3_jax.nn import fake_quant
from mbv3_jax.nn.folded import INT8, apply_folded
from mbv3_jax.nn.ops.geometry import Geometry
from mbv3_jax.quant.post_training import Int8Network

# The converter's custom calls around what is to be int8; backend_config holds the type.
QUANTIZE, DEQUANTIZE = "odml_torch.uniform_quantize", "odml_torch.uniform_dequantize"


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a file, with the shape and the type of its first output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def to_tflite(
    function: Callable,
    *examples: jax.ShapeDtypeStruct,
    inputs: Sequence[str] = ("images",),
    outputs: Sequence[str] = ("logits",),
    quantized: bool = False,
) -> bytes:
    """Converts a function; arrays that it closes over become constants of the file.

    Args:
      function: arrays -> an array or a tuple of arrays.
      examples: shapes and types of the arguments. All dimensions must be fixed, because the
        converter fuses nothing with a symbolic one.
      inputs, outputs: names for the only signature of the file.
      quantized: whether the function has custom calls to `QUANTIZE` and `DEQUANTIZE`, between
        which the file is to compute with integers.

    Returns:
      The file.

    Raises:
      UsageError: litert-converter is not installed.
    """
    ir = need("litert_converter.mlir.ir", "TFLite", "export")
    passmanager = need("litert_converter.mlir.passmanager", "TFLite", "export")
    converter = need("litert_converter.mlir._mlir_libs.converter_api_ext", "TFLite", "export")
    # The module is passed as text, because the converter refuses every custom call in the portable
    # form.
    lowered = jax.jit(function).trace(*examples).lower(lowering_platforms=("cpu",)).as_text()
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(lowered)
        passmanager.PassManager.parse("builtin.module(inline,symbol-dce)").run(module.operation)
        converter.set_signature(
            module.operation,
            signature_name="serving_default",
            input_names=list(inputs),
            output_names=list(outputs),
        )
        config = converter.ConvertToTFLConfig()
        # The converter reads the custom calls only in models that come from PyTorch.
        config.model_origin_framework = "PYTORCH" if quantized else "JAX"
        config.canonicalizing_inf_as_min_max_float = False
        if quantized:
            config.qdq_conversion_mode = "STATIC"
        converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        return converter.export_flatbuffer_to_bytes(module.operation)


def operations(model: bytes) -> list[Operation]:
    """Lists the operations of a TFLite file in order."""
    schema = need("litert_converter.schema_py_generated", "TFLite", "export")
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    types = {v: k for k, v in vars(schema.TensorType).items() if not k.startswith("_")}
    file = schema.Model.GetRootAs(model, 0)
    graph = file.Subgraphs(0)
    result: list[Operation] = []
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = file.OperatorCodes(operator.OpcodeIndex())
        # Files for old runtimes fill only the smaller, deprecated field.
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        if name == "CUSTOM":
            name = code.CustomCode().decode()
        tensor = graph.Tensors(operator.Outputs(0))
        shape = tuple(tensor.Shape(k) for k in range(tensor.ShapeLength()))
        result.append(Operation(name, shape, types[tensor.Type()]))
    return result


def counts(model: bytes) -> dict[str, int]:
    """How often each operation occurs, the most frequent first."""
    return dict(collections.Counter(op.name for op in operations(model)).most_common())


def to_half(values: np.ndarray, name: str = "a weight") -> np.ndarray:
    """Converts to float16.

    Args:
      values: an array.
      name: its name, for the message.

    Raises:
      ValueError: a value is too large for float16.
    """
    largest = float(np.max(np.abs(values), initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise ValueError(f"{name}: {largest:.3g} is too large for float16")
    return values.astype(np.float16)


def to_int8_tflite(
    network: Int8Network,
    *,
    batch: int = 1,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> bytes:
    """Writes a full-integer TFLite file, which computes what `Int8Network.simulate` simulates.

    litert-converter replaces float arithmetic between a custom call that quantizes and one that
    dequantizes by integer arithmetic. Both calls are placed at every tensor that an int8 runtime
    stores (see `nn.folded`) and around every kernel, with the scales of the simulation.

    Args:
      network: folded weights and ranges.
      batch: images at a time.
      normalize: mean and standard deviation of each channel, for values from 0 to 1; the input is
        then pixels less 128, which an int8 convolution of the file normalises: by an exact factor
        for each channel, which a scale of the input could not hold.

    Returns:
      The file. It maps int8 images [batch, height, width, channels] to int8 logits
      [batch, num_classes]; both tensors have a scale and a zero point.

    Raises:
      UsageError: litert-converter is not installed.
    """
    spec, ranges = network.spec, network.ranges()
    kernel_scales: dict[str, np.ndarray] = {}

    def scale_of(name):
        return fake_quant.activation_scale(*map(np.float32, ranges[name]), xp=np)

    def on_activation(name, x):
        scale, zero = scale_of(name)
        return _as_int8(x, (float(scale),), (int(zero),), None)

    def on_weight(name, kernel, axis):
        integers, scale = fake_quant.quantize_weight(kernel, axis, np)
        kernel_scales[name] = scale
        scales = tuple(np.atleast_1d(scale).tolist())
        return _as_int8(integers * scale, scales, (0,) * len(scales), axis)

    def on_bias(name, bias, inputs, kernel):
        return _unequal(bias, scale_of(inputs)[0] * kernel_scales[name])

    def normalized(pixels):
        factor, offset = affine(*normalize)
        kernel = on_weight("images", factor.reshape(1, 1, 1, -1), 3)
        # A pixel is one unit of its scale, so that a unit of the bias is that of the kernel.
        bias = _unequal(offset, kernel_scales["images"])
        pixels = _as_int8(pixels, (1.0,), (-128,), None)
        return Geometry.of(pixels, kernel, 1, spec.padding).convolve(pixels, kernel) + bias

    def run(images):
        return apply_folded(
            spec,
            network.folded,
            normalized(images) if normalize else images,
            forms=INT8,
            on_activation=on_activation,
            on_weight=on_weight,
            on_bias=on_bias,
        )

    images = jax.ShapeDtypeStruct((batch, *spec.input_shape), "float32")
    return to_tflite(run, images, quantized=True)


def affine(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the offset, float32 [channels], by which pixels of 0 to 255 are normalised."""
    means, stds = (np.asarray(v, np.float64) for v in (mean, std))
    return (1 / (255 * stds)).astype("f4"), (-means / stds).astype("f4")


def _unequal(bias: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Changes a bias [channels] of equal values, by a quarter of its unit at most.

    The converter would keep only one number of such a bias, with the scale of the first channel.
    """
    if len(bias) < 2 or np.any(bias != bias[0]):
        return bias
    unequal = np.array(bias)
    unequal[-1] += max(unit[-1] / 4, 2 * np.spacing(np.abs(bias[-1])))
    return unequal


_as_int8_p = Primitive("as_int8")


def _as_int8(x, scales: tuple, zeros: tuple, axis: int | None):
    """Marks `x` as int8 with one scale, or with one for each channel along `axis`."""
    return _as_int8_p.bind(x, scales=scales, zeros=zeros, axis=axis)


_as_int8_p.def_abstract_eval(lambda x, **_: x)


def _lower(context, x, *, scales, zeros, axis):
    (aval,) = context.avals_in
    size = "x".join(map(str, aval.shape))
    pairs = ",".join(f"{scale!r}:{zero}" for scale, zero in zip(scales, zeros, strict=True))
    # Without bounds the type ranges from -128 to 127; kernels use -127 to 127.
    kind = pairs if axis is None else f"{axis},{{{pairs}}}"
    joined = "," if axis is None else ":"
    integers = f"tensor<{size}x!quant.uniform<i8:f32{joined}{kind}>>"
    attribute = ir.StringAttr.get(integers)
    stored = stablehlo.custom_call([x.type], [x], QUANTIZE, backend_config=attribute)
    return [stablehlo.custom_call([x.type], [stored], DEQUANTIZE)]


mlir.register_lowering(_as_int8_p, _lower)
