"""TFLite files from JAX functions by litert-converter, without TensorFlow.

JAX gives StableHLO; the converter's own passes make TFLite of it. Their names are internals of
litert-converter, whose version is therefore pinned.
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
from mbv3_jax.quant.post_training import Int8Network

# Of this converter, for tensors that are to be int8: with the type as backend_config.
QUANTIZE, DEQUANTIZE = "odml_torch.uniform_quantize", "odml_torch.uniform_dequantize"


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a file: its name, and [shape] and dtype of what it writes first."""

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
      function: of arrays to an array or a tuple of them.
      examples: shapes and dtypes of the arguments. All dimensions are fixed: with a symbolic
        one nothing would be fused.
      inputs, outputs: their names in the file's only signature.
      quantized: the function has custom calls to `QUANTIZE` and `DEQUANTIZE`, and what lies
        between them is to be integer arithmetic.

    Returns:
      The file.

    Raises:
      UsageError: litert-converter is not installed.
    """
    ir = need("litert_converter.mlir.ir", "TFLite", "export")
    passmanager = need("litert_converter.mlir.passmanager", "TFLite", "export")
    converter = need("litert_converter.mlir._mlir_libs.converter_api_ext", "TFLite", "export")
    # As text: the converter's own reader of the portable form refuses every custom call.
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
        # It reads the custom calls only in what it thinks came from PyTorch.
        config.model_origin_framework = "PYTORCH" if quantized else "JAX"
        config.canonicalizing_inf_as_min_max_float = False
        if quantized:
            config.qdq_conversion_mode = "STATIC"
        converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        return converter.export_flatbuffer_to_bytes(module.operation)


def operations(model: bytes) -> list[Operation]:
    """The operations of a TFLite file in order."""
    schema = need("litert_converter.schema_py_generated", "TFLite", "export")
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    types = {v: k for k, v in vars(schema.TensorType).items() if not k.startswith("_")}
    file = schema.Model.GetRootAs(model, 0)
    graph, found = file.Subgraphs(0), []
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = file.OperatorCodes(operator.OpcodeIndex())
        # Files of old runtimes have the small field only.
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        if name == "CUSTOM":
            name = code.CustomCode().decode()
        tensor = graph.Tensors(operator.Outputs(0))
        shape = tuple(tensor.Shape(k) for k in range(tensor.ShapeLength()))
        found.append(Operation(name, shape, types[tensor.Type()]))
    return found


def counts(model: bytes) -> dict[str, int]:
    """How often each operation occurs, the most frequent first."""
    return dict(collections.Counter(op.name for op in operations(model)).most_common())


# Float16 weights in a TFLite file, as TFLite's own converter stores them.
#
# Each constant of a convolution becomes float16, with a DEQUANTIZE behind it that CPU runtimes do
# once, when they load the file; GPU runtimes compute in float16.

_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_ALIGNMENT = 16  # of constants, in TFLite's schema


def to_half(values: np.ndarray, name: str = "a weight") -> np.ndarray:
    """As float16.

    Raises:
      ValueError: a value is too large for it.
    """
    largest = float(np.max(np.abs(values), initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise ValueError(f"{name}: {largest:.3g} is too large for float16")
    return values.astype(np.float16)


def with_half_weights(model: bytes) -> bytes:
    """Stores the kernels and biases of a float32 file as float16.

    Raises:
      UsageError: a package is not installed.
      ValueError: a value is too large for float16.
    """
    flatbuffers = need("flatbuffers", "TFLite", "export")
    schema = need("litert_converter.schema_py_generated", "TFLite", "export")

    class Aligned(schema.BufferT):
        # What the generated class packs may begin anywhere.
        def Pack(self, builder):
            if self.data is None or not len(self.data):
                return super().Pack(builder)
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = bytes(self.data)
            data = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, data)
            return schema.BufferEnd(builder)

    file = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = file.subgraphs[0]
    builtin, types = schema.BuiltinOperator, schema.TensorType
    wanted = {
        index
        for op in graph.operators
        if file.operatorCodes[op.opcodeIndex].builtinCode
        in [getattr(builtin, name) for name in _WITH_WEIGHTS]
        for index in op.inputs[1:3]
        if index >= 0
    }
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin.DEQUANTIZE
    code.version = 3  # the first that takes float16
    file.operatorCodes.append(code)
    first = []
    for index in sorted(wanted):
        full = graph.tensors[index]
        data = file.buffers[full.buffer].data
        if full.type != types.FLOAT32 or data is None or not len(data):
            continue
        values = np.frombuffer(bytes(data), np.float32)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(to_half(values, full.name.decode()).tobytes(), np.uint8)
        file.buffers.append(buffer)
        half = schema.TensorT()
        half.shape, half.name = full.shape, full.name + b"/float16"
        half.type, half.buffer = types.FLOAT16, len(file.buffers) - 1
        graph.tensors.append(half)
        full.buffer = 0  # by convention the empty one: it is computed now
        operator = schema.OperatorT()
        operator.opcodeIndex = len(file.operatorCodes) - 1
        operator.inputs, operator.outputs = [len(graph.tensors) - 1], [index]
        first.append(operator)
    graph.operators = first + graph.operators
    used = {tensor.buffer for tensor in graph.tensors} | {m.buffer for m in file.metadata or ()}
    for index, buffer in enumerate(file.buffers):
        if index not in used:
            buffer.data = None
        buffer.__class__ = Aligned
    builder = flatbuffers.Builder(len(model))
    builder.Finish(file.Pack(builder), b"TFL3")
    return bytes(builder.Output())


# Full-integer TFLite files with the scales that simulated int8 has.
#
# Between a custom call that quantizes and one that dequantizes, litert-converter makes integer
# arithmetic of what is computed in float. The two are written at every tensor that an int8 runtime
# stores (`nn.folded`) and around every kernel, with our scales: the file computes what
# `nn.quantized` simulates.


def to_int8_tflite(network: Int8Network, *, batch: int = 1) -> bytes:
    """The TFLite file of an int8 network.

    Args:
      network: folded weights and ranges.
      batch: images at once.

    Returns:
      The file: int8 images [batch, R, R, channels] to int8 logits [batch, num_classes]; both
      tensors of the file have scale and zero point.

    Raises:
      UsageError: litert-converter is not installed.
    """
    spec, ranges, kernel_scales = network.spec, network.ranges(), {}

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

    def run(images):
        return apply_folded(
            spec,
            network.folded,
            images,
            forms=INT8,
            on_activation=on_activation,
            on_weight=on_weight,
            on_bias=on_bias,
        )

    shape = (batch, spec.resolution, spec.resolution, spec.in_channels)
    return to_tflite(run, jax.ShapeDtypeStruct(shape, "float32"), quantized=True)


def _unequal(bias: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """A bias [channels] whose values are not all the same, by a quarter of its unit at most.

    The converter keeps one number of a bias of equal values, and gives it the scale of the first
    channel.
    """
    if len(bias) < 2 or np.any(bias != bias[0]):
        return bias
    unequal = np.array(bias)
    unequal[-1] += max(unit[-1] / 4, 2 * np.spacing(np.abs(bias[-1])))
    return unequal


_as_int8_p = Primitive("as_int8")


def _as_int8(x, scales: tuple, zeros: tuple, axis: int | None):
    """`x` as int8 with one scale, or one for each channel along `axis`."""
    return _as_int8_p.bind(x, scales=scales, zeros=zeros, axis=axis)


_as_int8_p.def_abstract_eval(lambda x, **_: x)


def _lower(context, x, *, scales, zeros, axis):
    (aval,) = context.avals_in
    size = "x".join(map(str, aval.shape))
    pairs = ",".join(f"{scale!r}:{zero}" for scale, zero in zip(scales, zeros, strict=True))
    # Without bounds the type is -128 to 127; kernels use -127 to 127 of it.
    kind = pairs if axis is None else f"{axis},{{{pairs}}}"
    joined = "," if axis is None else ":"
    integers = f"tensor<{size}x!quant.uniform<i8:f32{joined}{kind}>>"
    attribute = ir.StringAttr.get(integers)
    stored = stablehlo.custom_call([x.type], [x], QUANTIZE, backend_config=attribute)
    return [stablehlo.custom_call([x.type], [stored], DEQUANTIZE)]


mlir.register_lowering(_as_int8_p, _lower)
