"""ONNX files, written from the list of operations: nothing is traced.

Activations are the nodes of their registry entries (ONNX's own HardSwish and HardSigmoid),
depthwise layers are Conv with groups, and the batch and the size of the images may be symbolic.
Images are [N, C, H, W], as is usual in ONNX; uint8 images are [N, H, W, C], as decoders return
them.
"""

import collections
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from mbv3_jax.arch.activations import ACTIVATIONS, GATES, Activation, Gate
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.traversal import (
    IMAGES,
    ChannelScale,
    Convolution,
    Dropout,
    GlobalPool,
    ResidualAdd,
    lookup,
    traverse,
)
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import need
from mbv3_jax.export.tflite import affine, to_half
from mbv3_jax.nn.ops.geometry import pad_amounts

OPSET = 18  # readable by ONNX Runtime 1.14 (2023) and later
OPSETS = range(11, 25)  # Clip takes its bounds as inputs since 11; 24 is the newest of onnx 1.19
DEPTHWISE = "Conv (depthwise)"


def to_onnx(
    spec: NetSpec,
    folded: dict,
    *,
    batch: int | None = None,
    dtype: str = "float32",
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    any_size: bool = False,
    opset: int = OPSET,
) -> bytes:
    """Writes a network as an ONNX file.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.
      batch: number of images in a batch; None for any number.
      dtype: of weights and computation, "float32" or "float16"; input and logits stay float32.
      normalize: mean and standard deviation of each channel, for values from 0 to 1; the input is
        then uint8 and is normalised inside the file.
      any_size: whether images may have any height and width, instead of `spec.resolution`.
      opset: the version of ONNX's operators, one of `OPSETS`.

    Returns:
      The file's bytes; its input is called "images", its output "logits" [N, num_classes].

    Raises:
      UsageError: onnx is not installed, or an operator is newer than the opset.
      ValueError: a weight is too large for float16.
    """
    need("onnx", "ONNX", "export")
    from onnx import TensorProto, checker, helper, shape_inference

    writer = _Writer(spec, folded, np.dtype(dtype), any_size)
    channels, n = spec.in_channels, batch or "N"
    height, width = ("H", "W") if any_size else spec.input_shape[:2]
    if normalize:
        kind, shape = TensorProto.UINT8, [n, height, width, channels]
        x = writer.normalized("images", *normalize)
    else:
        kind, shape = TensorProto.FLOAT, [n, channels, height, width]
        x = "images"
    half = writer.dtype == np.float16
    if half:
        x = writer.node("Cast", [x], "images/float16", to=TensorProto.FLOAT16)
    last = writer.network(x, "logits/float16" if half else "logits")
    if half:
        writer.node("Cast", [last], "logits", to=TensorProto.FLOAT)
    _check_opset(opset, {node.op_type for node in writer.nodes})
    graph = helper.make_graph(
        writer.nodes,
        spec.name,
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [n, spec.num_classes])],
        writer.constants,
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph,
        producer_name="mbv3_jax",
        ir_version=helper.find_min_ir_version_for(opsets),
        opset_imports=opsets,
    )
    model = shape_inference.infer_shapes(model, strict_mode=True)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _check_opset(opset: int, operators: Collection[str]) -> None:
    """Checks that an opset has the operators.

    Raises:
      UsageError: it lacks one; the message has the first opset that has them all.
    """
    from onnx import defs

    first: dict[str, int] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in operators:
            since = first.get(schema.name, schema.since_version)
            first[schema.name] = min(since, schema.since_version)
    newest = max(first, key=lambda name: (first[name], name))
    if first[newest] > opset:
        raise UsageError(
            f"--opset={opset}: the network needs {newest}, which ONNX has since opset "
            f"{first[newest]}; give --opset={first[newest]} or more"
        )


def counts(model: bytes) -> dict[str, int]:
    """How often each operation occurs, the most frequent first.

    Depthwise convolutions are counted apart, as `DEPTHWISE`.
    """
    onnx = need("onnx", "ONNX", "export")

    def name(node):
        groups = {a.name: a.i for a in node.attribute}.get("group", 1)
        return DEPTHWISE if node.op_type == "Conv" and groups > 1 else node.op_type

    nodes = onnx.load_model_from_string(model).graph.node
    return dict(collections.Counter(map(name, nodes)).most_common())


def with_metadata(model: bytes, entries: dict[str, str]) -> bytes:
    """A copy of the file with these entries in its metadata_props."""
    onnx = need("onnx", "ONNX", "export")
    proto = onnx.load_model_from_string(model)
    onnx.helper.set_model_props(proto, entries)
    return proto.SerializeToString()


def metadata(model: bytes) -> dict[str, str]:
    """The entries that `with_metadata` wrote."""
    onnx = need("onnx", "ONNX", "export")
    return {p.key: p.value for p in onnx.load_model_from_string(model).metadata_props}


class _Writer:
    """Collects the nodes and constants of a graph, operation by operation."""

    def __init__(self, spec: NetSpec, folded: dict, dtype: np.dtype, any_size: bool = False):
        self.spec, self.folded, self.dtype, self.any_size = spec, folded, dtype, any_size
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def network(self, images: str, output: str) -> str:
        """Normalised [N, C, H, W] -> [N, num_classes], a tensor called `output`."""
        tensors = {IMAGES: images}
        for op in traverse(self.spec):
            inputs = [tensors[name] for name in op.inputs]
            match op:
                case Convolution(name="logits"):
                    flat = self.node("Flatten", inputs, "flat")
                    tensors[op.name] = self.dense(op, flat, output)
                case Convolution():
                    tensors[op.name] = self.activated(op, inputs[0])
                case GlobalPool():
                    tensors[op.name] = self.node("GlobalAveragePool", inputs, op.name)
                case ChannelScale():
                    tensors[op.name] = self.node("Mul", inputs, op.name)
                case ResidualAdd():
                    tensors[op.name] = self.node("Add", inputs, op.name)
                case Dropout():
                    tensors[op.name] = inputs[0]
                case _:
                    raise TypeError(f"{op.name}: ONNX has no form of {type(op).__name__} yet")
        return tensors["logits"]

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes) -> str:
        """Adds an operation; returns the name of the tensor that it writes."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        """Adds a constant; returns its name."""
        from onnx import numpy_helper

        array = np.asarray(value)
        dtype = np.dtype(dtype or self.dtype)
        array = to_half(array, name) if dtype == np.float16 else array.astype(dtype)
        array = np.ascontiguousarray(array)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def normalized(self, name: str, mean: Sequence[float], std: Sequence[float]) -> str:
        """uint8 [N, H, W, C] -> normalised float32 [N, C, H, W]."""
        factors, offsets = (values.reshape(-1, 1, 1) for values in affine(mean, std))
        factor = self.constant(f"{name}/factor", factors, np.float32)
        offset = self.constant(f"{name}/offset", offsets, np.float32)
        x = self.node("Transpose", [name], f"{name}/transposed", perm=(0, 3, 1, 2))
        x = self.node("Cast", [x], f"{name}/float", to=1)  # TensorProto.FLOAT
        x = self.node("Mul", [x, factor], f"{name}/scaled")
        return self.node("Add", [x, offset], f"{name}/normalized")

    def layer(self, conv: Convolution) -> tuple[np.ndarray, np.ndarray]:
        """Kernel [k, k, in, out] and bias [out]."""
        layer = lookup(self.folded, conv.path)
        return np.asarray(layer["kernel"]), np.asarray(layer["bias"])

    def activated(self, conv: Convolution, x: str) -> str:
        """A convolution of [N, C, H, W] with its activation or gate."""
        kernel, bias = self.layer(conv)
        if self.any_size and self.spec.padding == "same":
            pads: dict[str, Any] = {"auto_pad": "SAME_UPPER"}  # TensorFlow's, for each size
        else:
            (top, bottom), (left, right) = (
                pad_amounts(
                    size,
                    kernel=conv.kernel,
                    stride=conv.stride,
                    dilation=1,
                    padding=self.spec.padding,
                )
                for size in conv.in_shape[:2]
            )
            pads = {"pads": (top, left, bottom, right)}
        y = self.node(
            "Conv",
            [
                x,
                self.constant(f"{conv.path}/kernel", kernel.transpose(3, 2, 0, 1)),
                self.constant(f"{conv.path}/bias", bias),
            ],
            conv.path,
            kernel_shape=(conv.kernel, conv.kernel),
            strides=(conv.stride, conv.stride),
            **pads,
            group=kernel.shape[3] if conv.depthwise else 1,
        )
        if conv.gate:
            return self.elementwise(GATES[conv.gate], y)
        return self.elementwise(ACTIVATIONS[conv.act], y) if conv.act else y

    def elementwise(self, entry: Activation | Gate, x: str) -> str:
        """An activation or a gate, from the nodes of its entry."""
        tensors = {"x": x}
        for node in entry.onnx:
            output = f"{x}/{node.output or entry.name}"
            constants = [self.constant(f"{output}/{k}", v) for k, v in node.constants.items()]
            inputs = [*(tensors[name] for name in node.inputs), *constants]
            tensors[node.output] = self.node(node.op, inputs, output, **node.attributes)
        return tensors[""]

    def dense(self, conv: Convolution, x: str, output: str) -> str:
        """A 1x1 convolution of [N, C]."""
        kernel, bias = self.layer(conv)
        inputs = [
            x,
            self.constant(f"{conv.path}/kernel", kernel[0, 0].T),
            self.constant(f"{conv.path}/bias", bias),
        ]
        return self.node("Gemm", inputs, output, transB=1)
