"""A network as data: frozen, validated, convertible to JSON and back.

A `NetSpec` says everything that decides what a trained network computes: layers, channels,
nonlinearities, padding, BatchNorm constants, input resolution, number of classes. The modules
in `nn/` build it, `cost.py` counts it, `edits.py` changes it, a checkpoint stores it.
"""

import dataclasses
import json
import math
import types
import typing

from mbv3_jax.core.checks import check_whole, choose, flag

ACTIVATIONS = ("relu", "relu6", "h_swish", "swish")
GATES = ("hard_sigmoid", "sigmoid")
PADDINGS = ("same", "symmetric")
SE_SOURCES = ("expansion", "input")
MIN_RESOLUTION = 32  # the networks halve the resolution five times


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds a channel count to a multiple of `divisor`, never below 90% of `value`.

    The rule of the MobileNetV2 reference code (slim `conv_blocks.py`): round half up, at least
    one `divisor`, and one `divisor` more where rounding down lost over a tenth.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _fraction(path: str, got) -> None:
    if isinstance(got, bool) or not isinstance(got, int | float) or not 0 <= got < 1:
        raise ValueError(f"{path}: got {got!r}, expected a number from 0 to below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SESpec:
    """Squeeze-and-excite: global average pool, 1x1 to `channels()`, `act`, 1x1 back, gate, scale.

    `of` is what the squeezed width is a `ratio` of: the block's expansion (MobileNetV3 section
    5.3, "large SE") or the block's input (MnasNet). Widths are rounded by `make_divisible` with
    `divisor`; 1 means plain rounding (MnasNet).
    """

    ratio: float = 0.25
    of: str = "expansion"
    divisor: int = 8
    gate: str = "hard_sigmoid"
    act: str = "relu"

    def __post_init__(self):
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float):
            raise ValueError(f"ratio: got {self.ratio!r}, expected a number")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio: got {self.ratio!r}, expected above 0 and at most 1")
        choose("of", self.of, SE_SOURCES)
        choose("gate", self.gate, GATES)
        choose("act", self.act, ACTIVATIONS)
        check_whole("divisor", self.divisor, 1)

    def channels(self, *, expansion: int, block_input: int) -> int:
        """The squeezed width for a block of these widths."""
        wide = expansion if self.of == "expansion" else block_input
        return make_divisible(wide * self.ratio, self.divisor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvSpec:
    """A convolution with BatchNorm and nonlinearity: the stem, or the last 1x1 before pooling."""

    kernel: int
    out: int
    act: str
    stride: int = 1
    se: SESpec | None = None

    def __post_init__(self):
        check_whole("kernel", self.kernel, 1, odd=True)
        check_whole("out", self.out, 1)
        check_whole("stride", self.stride, 1, 2)
        choose("act", self.act, ACTIVATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One inverted residual ("bneck", MobileNetV3 tables 1 and 2).

    1x1 expand to `expansion` channels, BatchNorm, `act` (left out where `expansion` equals the
    input); `kernel` x `kernel` depthwise with `stride`, BatchNorm, `act`; squeeze-and-excite if
    any; 1x1 project to `out`, BatchNorm, no nonlinearity. The input is added where `shortcut`
    is allowed, `stride` is 1, and `out` equals the input.
    """

    kernel: int
    expansion: int
    out: int
    act: str
    stride: int = 1
    se: SESpec | None = None
    shortcut: bool = True

    def __post_init__(self):
        check_whole("kernel", self.kernel, 1, odd=True)
        check_whole("expansion", self.expansion, 1)
        check_whole("out", self.out, 1)
        check_whole("stride", self.stride, 1, 2)
        choose("act", self.act, ACTIVATIONS)
        flag("shortcut", self.shortcut)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The 1x1 convolution between pooling and logits: bias, no BatchNorm (section 5.1)."""

    out: int
    act: str

    def __post_init__(self):
        check_whole("out", self.out, 1)
        choose("act", self.act, ACTIVATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """A network that computes in simulated int8 (`nn.quantized`).

    Ranges of activations are moving averages of batch minima and maxima, of which `range_decay`
    is kept at each step. The first `delay_steps` compute in float and only observe; after
    `freeze_steps` ranges and BatchNorm statistics stay as they are.
    """

    delay_steps: int = 0
    freeze_steps: int = 0
    range_decay: float = 0.99

    def __post_init__(self):
        check_whole("delay_steps", self.delay_steps, 0)
        check_whole("freeze_steps", self.freeze_steps, 0)
        _fraction("range_decay", self.range_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetSpec:
    """A whole classifier: stem, blocks, last 1x1, global average pool, head, dropout, logits.

    `padding` is how strided convolutions pad: "same" as TensorFlow does (asymmetric where the
    size is even), "symmetric" as PyTorch does. `bn_decay` is the share of the old running
    statistic that is kept at each step (PyTorch's "momentum" is one minus it). `drop_path` is
    the rate at the last block; it rises linearly from zero at the first. `quant` is of networks
    that are trained to run in int8.
    """

    name: str
    stem: ConvSpec
    blocks: tuple[BlockSpec, ...]
    last: ConvSpec
    head: HeadSpec | None
    resolution: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    padding: str = "same"
    bn_eps: float = 1e-3
    bn_decay: float = 0.99
    dropout: float = 0.2
    drop_path: float = 0.0
    quant: QuantSpec | None = None

    def __post_init__(self):
        check_whole("resolution", self.resolution, MIN_RESOLUTION)
        check_whole("in_channels", self.in_channels, 1)
        check_whole("num_classes", self.num_classes, 1)
        choose("padding", self.padding, PADDINGS)
        _fraction("bn_decay", self.bn_decay)
        _fraction("dropout", self.dropout)
        _fraction("drop_path", self.drop_path)
        if isinstance(self.bn_eps, bool) or not (
            isinstance(self.bn_eps, int | float) and 0 < self.bn_eps < math.inf
        ):
            raise ValueError(f"bn_eps: got {self.bn_eps!r}, expected a positive number")
        if not isinstance(self.blocks, tuple) or not self.blocks:
            raise ValueError("blocks: expected a tuple of at least one BlockSpec")

    def replace(self, **changes) -> "NetSpec":
        """A copy with these fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def block_inputs(self) -> tuple[int, ...]:
        """Input channels of each block."""
        return (self.stem.out, *(b.out for b in self.blocks[:-1]))

    def strides(self) -> dict[str, int]:
        """The stages that make feature maps, "stem", "block1", ..., "last", in their order, each
        with the stride of its output: how many pixels of the image lie from one value to the
        next, along a side."""
        layers = {"stem": self.stem}
        layers |= {f"block{i}": block for i, block in enumerate(self.blocks, start=1)}
        strides, total = {}, 1
        for name, layer in (layers | {"last": self.last}).items():
            total *= layer.stride
            strides[name] = total
        return strides

    def has_expand(self, index: int) -> bool:
        """Whether block `index` (from 0) begins with a 1x1 expansion."""
        return self.blocks[index].expansion != self.block_inputs()[index]

    def has_shortcut(self, index: int) -> bool:
        """Whether block `index` (from 0) adds its input to its output."""
        block = self.blocks[index]
        return block.shortcut and block.stride == 1 and block.out == self.block_inputs()[index]


def spec_to_json(spec: NetSpec) -> str:
    """The spec as JSON text; `from_json` gives back an equal spec."""
    return json.dumps(dataclasses.asdict(spec), indent=1)


def spec_from_json(text: str) -> NetSpec:
    """Reads what `to_json` wrote.

    Raises:
      ValueError: the text is no JSON object, or a field is missing, unknown or out of range;
        the message gives its path.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"spec: not JSON ({e})") from e
    return _from_tree(NetSpec, tree, "spec")


def _from_tree(kind, tree, path: str):
    """Builds the dataclass `kind` from a plain tree, naming `path` in every error."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # X | None
        inner = next(k for k in typing.get_args(kind) if k is not types.NoneType)
        return None if tree is None else _from_tree(inner, tree, path)
    if typing.get_origin(kind) is tuple:
        if not isinstance(tree, list):
            raise ValueError(f"{path}: got {tree!r}, expected a list")
        inner = typing.get_args(kind)[0]
        return tuple(_from_tree(inner, t, f"{path}[{i}]") for i, t in enumerate(tree))
    if not dataclasses.is_dataclass(kind):
        if kind is float and type(tree) is int:
            return float(tree)
        if type(tree) is not kind:
            raise ValueError(f"{path}: got {tree!r}, expected {kind.__name__}")
        return tree
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: got {tree!r}, expected an object")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(tree) - set(fields))
    missing = sorted(
        n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in tree
    )
    if unknown or missing:
        raise ValueError(
            f"{path}: unknown fields {unknown}, missing fields {missing}; "
            f"the fields are {', '.join(fields)}"
        )
    hints = typing.get_type_hints(kind)
    values = {n: _from_tree(hints[n], v, f"{path}.{n}") for n, v in tree.items()}
    try:
        return kind(**values)
    except ValueError as e:
        raise ValueError(f"{path}.{e}") from e
