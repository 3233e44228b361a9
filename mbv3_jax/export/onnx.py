"""ONNX files, written from the spec: a node for each layer and nonlinearity, nothing traced.

The runtime's own HardSwish and HardSigmoid, Conv with groups for depthwise layers, a symbolic
batch. Images are [N, C, H, W], as ONNX has them; uint8 ones [N, H, W, C], as decoders give them.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from mbv3_jax.arch.spec import BlockSpec, NetSpec, SESpec
from mbv3_jax.core.packages import need
from mbv3_jax.export.tflite import to_half
from mbv3_jax.nn.ops.geometry import pad_amounts

OPSET, IR_VERSION = 18, 8  # what ONNX Runtime 1.14 of 2023 reads
DEPTHWISE = "Conv (depthwise)"


def to_onnx(
    spec: NetSpec,
    folded: dict,
    *,
    batch: int | None = None,
    dtype: str = "float32",
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> bytes:
    """Writes a network.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.
      batch: images at a time; None for any number.
      dtype: of weights and computation, "float32" or "float16"; input and logits stay float32.
      normalize: mean and deviation of each channel, of values from 0 to 1: the input is then
        uint8, and normalised inside.

    Returns:
      The file; its input is called "images", its output "logits" [N, num_classes].

    Raises:
      UsageError: onnx is not installed.
      ValueError: a weight is too large for float16.
    """
    need("onnx", "ONNX", "export")
    from onnx import TensorProto, checker, helper, shape_inference

    writer = _Writer(spec, folded, np.dtype(dtype))
    side, channels, n = spec.resolution, spec.in_channels, batch or "N"
    if normalize:
        kind, shape = TensorProto.UINT8, [n, side, side, channels]
        x = writer.normalized("images", *normalize)
    else:
        kind, shape = TensorProto.FLOAT, [n, channels, side, side]
        x = "images"
    half = writer.dtype == np.float16
    if half:
        x = writer.node("Cast", [x], "images/float16", to=TensorProto.FLOAT16)
    last = writer.network(x, "logits/float16" if half else "logits")
    if half:
        writer.node("Cast", [last], "logits", to=TensorProto.FLOAT)
    graph = helper.make_graph(
        writer.nodes,
        spec.name,
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [n, spec.num_classes])],
        writer.constants,
    )
    model = helper.make_model(
        graph,
        producer_name="mbv3_jax",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    model = shape_inference.infer_shapes(model, strict_mode=True)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def counts(model: bytes) -> dict[str, int]:
    """How often each operation occurs, the most frequent first; depthwise convolutions apart."""
    onnx = need("onnx", "ONNX", "export")

    def name(node):
        groups = {a.name: a.i for a in node.attribute}.get("group", 1)
        return DEPTHWISE if node.op_type == "Conv" and groups > 1 else node.op_type

    nodes = onnx.load_model_from_string(model).graph.node
    return dict(collections.Counter(map(name, nodes)).most_common())


def with_metadata(model: bytes, entries: dict[str, str]) -> bytes:
    """The file with these entries as metadata_props."""
    onnx = need("onnx", "ONNX", "export")
    proto = onnx.load_model_from_string(model)
    onnx.helper.set_model_props(proto, entries)
    return proto.SerializeToString()


def metadata(model: bytes) -> dict[str, str]:
    """The entries that `with_metadata` wrote."""
    onnx = need("onnx", "ONNX", "export")
    return {p.key: p.value for p in onnx.load_model_from_string(model).metadata_props}


@dataclasses.dataclass(frozen=True)
class _Image:
    """A tensor [N, C, side, side] by its name."""

    name: str
    side: int


class _Writer:
    """Collects nodes and constants, layer after layer as `nn.folded.apply_folded` computes."""

    def __init__(self, spec: NetSpec, folded: dict, dtype: np.dtype):
        self.spec, self.folded, self.dtype = spec, folded, dtype
        self.nodes, self.constants = [], []

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes) -> str:
        """Adds an operation; returns the name of what it writes."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value, dtype=None) -> str:
        """Adds a constant; returns its name."""
        from onnx import numpy_helper

        kind, array = dtype or self.dtype, np.asarray(value)
        array = to_half(array, name) if kind == np.float16 else array.astype(kind)
        array = np.ascontiguousarray(array)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def normalized(self, name: str, mean, std) -> str:
        """uint8 [N, H, W, C] -> normalised float32 [N, C, H, W]."""
        mean, std = (np.asarray(v, np.float64).reshape(-1, 1, 1) for v in (mean, std))
        factor = self.constant(f"{name}/factor", 1 / (255 * std), np.float32)
        offset = self.constant(f"{name}/offset", -mean / std, np.float32)
        x = self.node("Transpose", [name], f"{name}/transposed", perm=(0, 3, 1, 2))
        x = self.node("Cast", [x], f"{name}/float", to=1)  # TensorProto.FLOAT
        x = self.node("Mul", [x, factor], f"{name}/scaled")
        return self.node("Add", [x, offset], f"{name}/normalized")

    def layer(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Kernel [k, k, in, out] and bias [out]."""
        found = self.folded
        for part in name.split("/"):
            found = found[part]
        return np.asarray(found["kernel"]), np.asarray(found["bias"])

    def conv(self, name: str, x: _Image, stride: int = 1) -> _Image:
        """The convolution `name`, without a nonlinearity."""
        kernel, bias = self.layer(name)
        size, groups = kernel.shape[0], 1
        if name.endswith("depthwise/conv"):
            groups = kernel.shape[3]
        before, after = pad_amounts(
            x.side, kernel=size, stride=stride, dilation=1, padding=self.spec.padding
        )
        self.node(
            "Conv",
            [
                x.name,
                self.constant(f"{name}/kernel", kernel.transpose(3, 2, 0, 1)),
                self.constant(f"{name}/bias", bias),
            ],
            name,
            kernel_shape=(size, size),
            strides=(stride, stride),
            pads=(before, before, after, after),
            group=groups,
        )
        return _Image(name, (x.side + before + after - size) // stride + 1)

    def dense(self, name: str, x: str, output: str) -> str:
        """The 1x1 convolution `name` of [N, C]."""
        kernel, bias = self.layer(name)
        weights = self.constant(f"{name}/kernel", kernel[0, 0].T)
        bias = self.constant(f"{name}/bias", bias)
        return self.node("Gemm", [x, weights, bias], output, transB=1)

    def activation(self, act: str, x: str) -> str:
        """A nonlinearity or a gate."""
        name = f"{x}/{act}"
        if act == "relu":
            return self.node("Relu", [x], name)
        if act == "relu6":
            ends = [self.constant(f"{name}/{k}", v) for k, v in (("min", 0), ("max", 6))]
            return self.node("Clip", [x, *ends], name)
        if act == "h_swish":
            return self.node("HardSwish", [x], name)
        if act == "hard_sigmoid":
            return self.node("HardSigmoid", [x], name, alpha=1 / 6, beta=0.5)
        gate = self.node("Sigmoid", [x], f"{x}/sigmoid")
        return gate if act == "sigmoid" else self.node("Mul", [x, gate], name)

    def activated(self, name: str, act: str, x: _Image, stride: int = 1) -> _Image:
        """Convolution and nonlinearity."""
        x = self.conv(name, x, stride)
        return _Image(self.activation(act, x.name), x.side)

    def squeeze_excite(self, name: str, se: SESpec, x: _Image) -> _Image:
        """Scales the channels by a gate computed from their averages."""
        pooled = _Image(self.node("GlobalAveragePool", [x.name], f"{name}/pool"), 1)
        y = self.activated(f"{name}/reduce", se.act, pooled)
        y = self.conv(f"{name}/expand", y)
        gate = self.activation(se.gate, y.name)
        return _Image(self.node("Mul", [x.name, gate], name), x.side)

    def bneck(self, index: int, block: BlockSpec, x: _Image) -> _Image:
        """Block `index`, from 0."""
        name, inputs = f"block{index + 1}", x
        if self.spec.has_expand(index):
            x = self.activated(f"{name}/expand/conv", block.act, x)
        x = self.activated(f"{name}/depthwise/conv", block.act, x, block.stride)
        if block.se:
            x = self.squeeze_excite(f"{name}/se", block.se, x)
        x = self.conv(f"{name}/project/conv", x)
        if not self.spec.has_shortcut(index):
            return x
        return _Image(self.node("Add", [inputs.name, x.name], name), x.side)

    def network(self, images: str, output: str) -> str:
        """Normalised [N, C, H, W] -> [N, num_classes], called `output`."""
        spec, x = self.spec, _Image(images, self.spec.resolution)
        x = self.activated("stem/conv", spec.stem.act, x, spec.stem.stride)
        if spec.stem.se:
            x = self.squeeze_excite("stem/se", spec.stem.se, x)
        for index, block in enumerate(spec.blocks):
            x = self.bneck(index, block, x)
        x = self.activated("last/conv", spec.last.act, x, spec.last.stride)
        if spec.last.se:
            x = self.squeeze_excite("last/se", spec.last.se, x)
        x = _Image(self.node("GlobalAveragePool", [x.name], "pool"), 1)
        if spec.head:
            x = self.activated("head", spec.head.act, x)
        return self.dense("logits", self.node("Flatten", [x.name], "flat"), output)
