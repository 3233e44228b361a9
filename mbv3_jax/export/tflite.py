"""TFLite files from JAX functions by litert-converter, without TensorFlow.

JAX gives StableHLO; the converter's own passes make TFLite of it. Their names are internals of
litert-converter, whose version is therefore pinned.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import jax

from mbv3_jax.export.packages import need

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
    ir = need("litert_converter.mlir.ir", "TFLite")
    passmanager = need("litert_converter.mlir.passmanager", "TFLite")
    converter = need("litert_converter.mlir._mlir_libs.converter_api_ext", "TFLite")
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
    schema = need("litert_converter.schema_py_generated", "TFLite")
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
