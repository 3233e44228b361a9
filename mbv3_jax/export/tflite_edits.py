"""Changes to TFLite files that the converter wrote: float16 weights, and the types at the boundary.

The files are taken apart and put together again with the classes that flatbuffers generates from
TFLite's schema, which come with litert-converter.
"""

from typing import Any

import numpy as np

from mbv3_jax.core.packages import need
from mbv3_jax.export.tflite import to_half

_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_ALIGNMENT = 16  # bytes, of constants in TFLite's schema


def with_half_weights(model: bytes) -> bytes:
    """Stores the kernels and biases of a float32 file as float16, like TFLite's own converter.

    Each of these constants is followed by a DEQUANTIZE, which CPU runtimes compute once, when they
    load the file; GPU runtimes compute in float16.

    Raises:
      UsageError: a package is not installed.
      ValueError: a value is too large for float16.
    """
    schema = _schema()
    file = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = file.subgraphs[0]
    builtin, types = schema.BuiltinOperator, schema.TensorType
    weights = {
        index
        for op in graph.operators
        if file.operatorCodes[op.opcodeIndex].builtinCode
        in [getattr(builtin, name) for name in _WITH_WEIGHTS]
        for index in op.inputs[1:3]
        if index >= 0
    }
    code = _new_code(file, "DEQUANTIZE", 3)  # the first version that takes float16
    dequantizers = []
    for index in sorted(weights):
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
        full.buffer = 0  # the empty buffer by convention: this tensor is now computed
        dequantizers.append(_operator(code, len(graph.tensors) - 1, index))
    graph.operators = dequantizers + graph.operators
    used = {tensor.buffer for tensor in graph.tensors} | {m.buffer for m in file.metadata or ()}
    for index, buffer in enumerate(file.buffers):
        if index not in used:
            buffer.data = None
    return _packed(file, len(model))


def with_boundary(model: bytes, input_dtype: str, output_dtype: str) -> bytes:
    """Gives a full-integer file images and logits of another type.

    A QUANTIZE or a DEQUANTIZE is put between the old tensor and the new one. From uint8 to int8 it
    subtracts 128 and is exact.

    Args:
      model: a file with int8 input and output.
      input_dtype, output_dtype: "int8", "uint8" or "float32".

    Returns:
      The file; a uint8 tensor has the scale of the int8 one, and a zero point larger by 128.

    Raises:
      UsageError: a package is not installed.
    """
    schema = _schema()
    file = schema.ModelT.InitFromPackedBuf(model, 0)
    graph, signature = file.subgraphs[0], file.signatureDefs[0]
    (inside,), (outside,) = graph.inputs, graph.outputs
    if input_dtype != "int8":
        new = _like(graph, inside, input_dtype)
        # The first versions that write int8, and that read uint8 or int8 and write the other.
        code = _new_code(file, "QUANTIZE", 1 if input_dtype == "float32" else 2)
        graph.operators = [_operator(code, new, inside), *graph.operators]
        graph.inputs = [new]
        signature.inputs[0].tensorIndex = new
    if output_dtype != "int8":
        new = _like(graph, outside, output_dtype)
        name, version = ("DEQUANTIZE", 2) if output_dtype == "float32" else ("QUANTIZE", 2)
        graph.operators = [
            *graph.operators,
            _operator(_new_code(file, name, version), outside, new),
        ]
        graph.outputs = [new]
        signature.outputs[0].tensorIndex = new
    return _packed(file, len(model))


def _schema() -> Any:
    return need("litert_converter.schema_py_generated", "TFLite", "export")


def _new_code(file: Any, name: str, version: int) -> int:
    """Adds a builtin operation to those that the file uses; returns its index."""
    schema = _schema()
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = version
    file.operatorCodes.append(code)
    return len(file.operatorCodes) - 1


def _operator(code: int, read: int, written: int) -> Any:
    operator = _schema().OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, [read], [written]
    return operator


def _like(graph: Any, index: int, dtype: str) -> int:
    """Adds a tensor with the shape of an int8 one; returns its index."""
    schema = _schema()
    old, new = graph.tensors[index], schema.TensorT()
    new.shape, new.shapeSignature, new.hasRank = old.shape, old.shapeSignature, old.hasRank
    new.name, new.buffer = old.name + f"/{dtype}".encode(), 0
    new.type = getattr(schema.TensorType, dtype.upper())
    if dtype == "uint8":
        new.quantization = schema.QuantizationParametersT()
        new.quantization.scale = old.quantization.scale
        new.quantization.zeroPoint = [zero + 128 for zero in old.quantization.zeroPoint]
    graph.tensors.append(new)
    return len(graph.tensors) - 1


def _packed(file: Any, size: int) -> bytes:
    """The bytes of a file that was taken apart; `size` is their approximate number."""
    flatbuffers = need("flatbuffers", "TFLite", "export")
    schema = _schema()

    class Aligned(schema.BufferT):  # type: ignore[name-defined]  # an optional, untyped package
        """A buffer that begins at a multiple of `_ALIGNMENT`; the generated class ignores that."""

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

    for buffer in file.buffers:
        buffer.__class__ = Aligned
    builder = flatbuffers.Builder(size)
    builder.Finish(file.Pack(builder), b"TFL3")
    return bytes(builder.Output())
