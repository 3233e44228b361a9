"""The topology of a network, written out once: its operations in order of execution.

`traverse(spec)` lists what a forward pass does, each operation with its shapes, the tensors that it
reads and the parameters that it uses. Costs, folding, quantization, exports, latency tables,
summaries and parameter names all come from this list. `nn/modules.py` has the same network as Flax
modules, for people to read; tests compare the two operation by operation.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from mbv3_jax.arch.spec import BlockSpec, ConvSpec, NetSpec, SESpec

Shape = tuple[int, int, int]  # height, width, channels
IMAGES = "input"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of the forward pass.

    Attributes:
      name: the tensor that it writes, unique in the network: "block1/depthwise".
      stage: the part of the network that it belongs to: "stem", "block1", ..., "last", "pool",
        "head", "logits".
      inputs: the tensors that it reads; `IMAGES` is the network's input.
      in_shape: shape of the first of them, [height, width, channels].
      out_shape: shape of what it writes.
    """

    name: str
    stage: str
    inputs: tuple[str, ...]
    in_shape: Shape
    out_shape: Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolution(Operation):
    """A convolution with the BatchNorm and the nonlinearity that follow it.

    Attributes:
      path: where its kernel lies in the parameter tree: "block1/depthwise/conv", "head".
      kernel: side of the kernel in pixels.
      stride: the same in both directions.
      depthwise: whether each channel has its own kernel.
      batch_norm: True: BatchNorm, whose parameters lie at `batch_norm_path`. False: a bias.
      act: the activation, a key of `activations.ACTIVATIONS`; None: linear, or a gate.
      gate: the gate of a squeeze-and-excite, a key of `activations.GATES`.
    """

    path: str
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    batch_norm: bool = True
    act: str | None = None
    gate: str | None = None

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """[height, width, input channels of one output, output channels]."""
        fan_in = 1 if self.depthwise else self.in_shape[2]
        return self.kernel, self.kernel, fan_in, self.out_shape[2]

    @property
    def batch_norm_path(self) -> str | None:
        """Where its BatchNorm lies in the parameter tree, or None without one."""
        return f"{self.name}/bn" if self.batch_norm else None


class GlobalPool(Operation):
    """The average over all pixels."""


class ChannelScale(Operation):
    """The end of a squeeze-and-excite: inputs[0] times the gate inputs[1], channel by channel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualAdd(Operation):
    """The shortcut of a block: inputs[0], the block's input, plus inputs[1].

    Attributes:
      drop_path: the rate at which training drops inputs[1] of whole examples.
      number: of the block, from 1; it selects the block's random numbers.
    """

    drop_path: float
    number: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropout(Operation):
    """Dropout before the logits, in training.

    Attributes:
      rate: the share of values that is dropped; 0 for none.
    """

    rate: float


def strided_size(size: int, stride: int) -> int:
    """Rows after a strided convolution: ceil(size / stride) with both paddings and odd kernels."""
    return -(-size // stride)


@functools.lru_cache(maxsize=256)
def traverse(spec: NetSpec) -> tuple[Operation, ...]:
    """Every operation of the network, in order of execution."""
    return _Recorder(spec).operations()


def stages(spec: NetSpec) -> dict[str, tuple[Operation, ...]]:
    """The operations grouped by stage, in order: "stem", "block1", ..., "last", "pool", ..."""
    grouped: dict[str, list[Operation]] = {}
    for operation in traverse(spec):
        grouped.setdefault(operation.stage, []).append(operation)
    return {stage: tuple(operations) for stage, operations in grouped.items()}


def convolutions(spec: NetSpec) -> list[Convolution]:
    """The operations with parameters, in order."""
    return [op for op in traverse(spec) if isinstance(op, Convolution)]


def parameter_paths(spec: NetSpec, stage: str | None = None) -> list[str]:
    """Paths of everything that holds parameters, in order: "stem/conv", "stem/bn", ..., "logits".

    Args:
      spec: the network.
      stage: only the paths of this stage.
    """
    return [
        path
        for op in convolutions(spec)
        if stage in (None, op.stage)
        for path in (op.path, op.batch_norm_path)
        if path
    ]


def lookup(tree: Mapping[str, Any], path: str) -> Any:
    """The part of nested dicts at a path such as "block1/se/reduce"."""
    node: Any = tree
    for part in path.split("/"):
        node = node[part]
    return node


def insert(tree: dict[str, Any], path: str, value: Any) -> None:
    """Puts a value into nested dicts at a path, creating the dicts on the way."""
    *parents, last = path.split("/")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


class _Recorder:
    """Records operations while a shape moves through the network."""

    def __init__(self, spec: NetSpec):
        self.spec = spec
        self.recorded: list[Operation] = []
        self.current = IMAGES  # the tensor that the next operation reads
        self.shape: Shape = spec.input_shape

    def operations(self) -> tuple[Operation, ...]:
        spec = self.spec
        self.conv_stage("stem", spec.stem)
        for index, block in enumerate(spec.blocks):
            self.block(index, block)
        self.conv_stage("last", spec.last)
        self.pool("pool", "pool")
        if spec.head:
            self.conv("head", "head", spec.head.out, act=spec.head.act, batch_norm=False)
        self.record(Dropout(name="dropout", stage="logits", **self.unchanged(), rate=spec.dropout))
        self.conv("logits", "logits", spec.num_classes, batch_norm=False)
        return tuple(self.recorded)

    def record(self, operation: Operation) -> None:
        self.recorded.append(operation)
        self.current, self.shape = operation.name, operation.out_shape

    def unchanged(self, *other_inputs: str) -> dict[str, Any]:
        """Inputs and shapes of an operation that keeps the shape."""
        inputs = (self.current, *other_inputs)
        return {"inputs": inputs, "in_shape": self.shape, "out_shape": self.shape}

    def conv(
        self,
        stage: str,
        name: str,
        out: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        batch_norm: bool = True,
        act: str | None = None,
        gate: str | None = None,
    ) -> None:
        height, width, _ = self.shape
        self.record(
            Convolution(
                name=name,
                stage=stage,
                inputs=(self.current,),
                in_shape=self.shape,
                out_shape=(strided_size(height, stride), strided_size(width, stride), out),
                path=f"{name}/conv" if batch_norm else name,
                kernel=kernel,
                stride=stride,
                depthwise=depthwise,
                batch_norm=batch_norm,
                act=act,
                gate=gate,
            )
        )

    def pool(self, stage: str, name: str) -> None:
        inputs, shape = (self.current,), self.shape
        pooled = (1, 1, shape[2])
        self.record(
            GlobalPool(name=name, stage=stage, inputs=inputs, in_shape=shape, out_shape=pooled)
        )

    def squeeze_excite(self, stage: str, se: SESpec | None, block_input: int) -> None:
        """MobileNetV3 figure 4, right."""
        if se is None:
            return
        name, scaled, shape = f"{stage}/se", self.current, self.shape
        squeezed = se.channels(expansion=shape[2], block_input=block_input)
        self.pool(stage, f"{name}/pool")
        self.conv(stage, f"{name}/reduce", squeezed, act=se.act, batch_norm=False)
        self.conv(stage, f"{name}/expand", shape[2], gate=se.gate, batch_norm=False)
        inputs = (scaled, self.current)
        self.record(
            ChannelScale(name=name, stage=stage, inputs=inputs, in_shape=shape, out_shape=shape)
        )

    def conv_stage(self, stage: str, conv: ConvSpec) -> None:
        """The stem, or the last 1x1 before pooling."""
        block_input = self.shape[2]
        self.conv(stage, stage, conv.out, kernel=conv.kernel, stride=conv.stride, act=conv.act)
        self.squeeze_excite(stage, conv.se, block_input)

    def block(self, index: int, block: BlockSpec) -> None:
        """An inverted residual, `index` from 0."""
        stage, source, block_input = f"block{index + 1}", self.current, self.shape[2]
        if self.spec.has_expand(index):
            self.conv(stage, f"{stage}/expand", block.expansion, act=block.act)
        self.conv(
            stage,
            f"{stage}/depthwise",
            block.expansion,
            kernel=block.kernel,
            stride=block.stride,
            depthwise=True,
            act=block.act,
        )
        self.squeeze_excite(stage, block.se, block_input)
        self.conv(stage, f"{stage}/project", block.out)
        if self.spec.has_shortcut(index):
            self.record(
                ResidualAdd(
                    name=stage,
                    stage=stage,
                    inputs=(source, self.current),
                    in_shape=self.shape,
                    out_shape=self.shape,
                    drop_path=self.spec.drop_path_rate(index),
                    number=index + 1,
                )
            )
