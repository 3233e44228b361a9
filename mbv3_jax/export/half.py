"""Float16 weights in a TFLite file, as TFLite's own converter stores them.

Each constant of a convolution becomes float16, with a DEQUANTIZE behind it that CPU runtimes do
once, when they load the file; GPU runtimes compute in float16.
"""

import numpy as np

from mbv3_jax.export.packages import need

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
    flatbuffers = need("flatbuffers", "TFLite")
    schema = need("litert_converter.schema_py_generated", "TFLite")

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
