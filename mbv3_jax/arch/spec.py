"""A network as data: frozen, validated, convertible to JSON and back.

A `NetSpec` holds everything that decides what a trained network computes: layers, channels,
nonlinearities, padding, BatchNorm constants, input resolution, number of classes. `nn/modules.py`
builds the network, `traversal.py` lists its operations, `edits.py` changes the spec, and a
checkpoint stores it next to the weights.
"""

import dataclasses
import json
import math

from mbv3_jax.arch.activations import ACTIVATIONS, GATES
from mbv3_jax.core.checks import Resolution, check_resolution, check_whole, choose, flag, sides
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.core.limits import check_limit

PADDINGS = ("same", "symmetric")
SE_SOURCES = ("expansion", "input")
MIN_RESOLUTION = 32  # the networks halve the resolution five times


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds a channel count to a multiple of `divisor`, never below 90% of `value`.

    This is the rule of the MobileNetV2 reference code (slim `conv_blocks.py`): round half up, to at
    least one `divisor`, and add one `divisor` where rounding down lost more than a tenth.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _check_fraction(path: str, got: object) -> None:
    if isinstance(got, bool) or not isinstance(got, int | float) or not 0 <= got < 1:
        raise ValueError(f"{path}: got {got!r}, expected a number from 0 to below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SESpec:
    """Squeeze-and-excite: global average pool, 1x1 to `channels()`, `act`, 1x1 back, gate, scale.

    Attributes:
      ratio: the squeezed width as a share of the width that `of` names.
      of: "expansion", the block's expansion (MobileNetV3 section 5.3, "large SE"), or "input", the
        block's input (MnasNet).
      divisor: `make_divisible` rounds the squeezed width to multiples of it; 1 is plain rounding
        (MnasNet).
      gate: a key of `activations.GATES`.
      act: a key of `activations.ACTIVATIONS`, after the first 1x1.
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
        """The squeezed width for a block with these numbers of channels."""
        reference = expansion if self.of == "expansion" else block_input
        return make_divisible(reference * self.ratio, self.divisor)


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

    Its layers, in order: 1x1 expansion to `expansion` channels, BatchNorm, `act` (left out if
    `expansion` equals the number of input channels); `kernel` x `kernel` depthwise convolution with
    `stride`, BatchNorm, `act`; squeeze-and-excite if `se` is given; 1x1 projection to `out`
    channels, BatchNorm, no nonlinearity. The block's input is added if `shortcut` is True, `stride`
    is 1, and `out` equals the number of input channels.
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
    """How a network is trained in simulated int8 (`nn.fake_quant`).

    The ranges of activations are moving averages of batch minima and maxima.

    Attributes:
      delay_steps: training computes in float for this many steps and only observes the ranges.
      freeze_steps: after this many steps the ranges and the BatchNorm statistics no longer change.
      range_decay: the share of the old range that is kept at each step.
    """

    delay_steps: int = 0
    freeze_steps: int = 0
    range_decay: float = 0.99

    def __post_init__(self):
        check_whole("delay_steps", self.delay_steps, 0)
        check_whole("freeze_steps", self.freeze_steps, 0)
        _check_fraction("range_decay", self.range_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetSpec:
    """A whole classifier: stem, blocks, last 1x1, global average pool, head, dropout, logits.

    Attributes:
      name: the table that the network comes from, or another name.
      stem, blocks, last: see `ConvSpec` and `BlockSpec`.
      head: the layer between pooling and logits; None for networks without one (MobileNetV2).
      resolution: of the input image in pixels: the side of a square, or (height, width).
      in_channels: channels of the input image.
      num_classes: number of logits.
      padding: how strided convolutions pad: "same" as TensorFlow does (asymmetric if the size is
        even), or "symmetric" as PyTorch does.
      bn_eps: added to the variance in BatchNorm.
      bn_decay: the share of the old running statistic that is kept at each step (PyTorch's
        "momentum" is one minus this).
      dropout: the share of values that training drops before the logits.
      drop_path: the rate at the last block; it rises linearly from zero at the first.
      quant: set for networks that are trained to run in int8.
    """

    name: str
    stem: ConvSpec
    blocks: tuple[BlockSpec, ...]
    last: ConvSpec
    head: HeadSpec | None
    resolution: Resolution = 224
    in_channels: int = 3
    num_classes: int = 1000
    padding: str = "same"
    bn_eps: float = 1e-3
    bn_decay: float = 0.99
    dropout: float = 0.2
    drop_path: float = 0.0
    quant: QuantSpec | None = None

    def __post_init__(self):
        resolution = check_resolution("resolution", self.resolution, MIN_RESOLUTION)
        object.__setattr__(self, "resolution", resolution)
        check_whole("in_channels", self.in_channels, 1)
        check_whole("num_classes", self.num_classes, 1)
        choose("padding", self.padding, PADDINGS)
        _check_fraction("bn_decay", self.bn_decay)
        _check_fraction("dropout", self.dropout)
        _check_fraction("drop_path", self.drop_path)
        if isinstance(self.bn_eps, bool) or not (
            isinstance(self.bn_eps, int | float) and 0 < self.bn_eps < math.inf
        ):
            raise ValueError(f"bn_eps: got {self.bn_eps!r}, expected a positive number")
        if not isinstance(self.blocks, tuple) or not self.blocks:
            raise ValueError("blocks: expected a tuple of at least one BlockSpec")
        self._check_size()

    def _check_size(self) -> None:
        """Refuses a network that is too large, before anything of it is built.

        `traversal` would count exactly, but takes 40 times as long, and a search makes many specs.
        This counts at most a 1x1 expansion too many in each block.

        Raises:
          OverLimit: it has too many blocks, parameters, or values between two layers.
        """
        check_limit("MBV3_MAX_BLOCKS", len(self.blocks), "blocks: there are")
        height, width, channels = self.input_shape
        pixels = height * width
        check_limit("MBV3_MAX_ACTIVATIONS", pixels * channels, "resolution: the input has")
        named: list[tuple[str, ConvSpec | BlockSpec]] = [("stem", self.stem)]
        named += ((f"blocks[{i}]", block) for i, block in enumerate(self.blocks))
        values: dict[str, int] = {}  # the most between two layers of each part
        weights: dict[str, int] = {}
        for path, layer in (*named, ("last", self.last)):
            height, width = -(-height // layer.stride), -(-width // layer.stride)
            strided, out, taps = height * width, layer.out, layer.kernel**2
            wide = layer.expansion if isinstance(layer, BlockSpec) else out
            values[path] = strided * out
            weights[path] = channels * taps * out
            if isinstance(layer, BlockSpec):
                values[path] = max(pixels * wide, strided * out)
                weights[path] = (channels + taps + out) * wide
            if layer.se:
                squeezed = layer.se.channels(expansion=wide, block_input=channels)
                weights[path] += 2 * wide * squeezed
            pixels, channels = strided, out
        if self.head:
            weights["head"] = channels * self.head.out
            channels = self.head.out
        weights["num_classes"] = channels * self.num_classes
        path = max(values, key=lambda path: values[path])
        check_limit("MBV3_MAX_ACTIVATIONS", values[path], f"{path}: a layer of it has")
        path = max(weights, key=lambda path: weights[path])
        total = sum(weights.values())
        check_limit("MBV3_MAX_PARAMETERS", total, f"{path}: with it, the network has")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the input image."""
        return (*sides(self.resolution), self.in_channels)

    def replace(self, **changes) -> "NetSpec":
        """A copy with these fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def block_inputs(self) -> tuple[int, ...]:
        """Input channels of each block."""
        return (self.stem.out, *(b.out for b in self.blocks[:-1]))

    def strides(self) -> dict[str, int]:
        """The stages that make feature maps, "stem", "block1", ..., "last", with their strides.

        A stride is the number of pixels of the image between neighbouring values of the output.
        """
        layers: dict[str, ConvSpec | BlockSpec] = {"stem": self.stem}
        layers |= {f"block{i}": block for i, block in enumerate(self.blocks, start=1)}
        layers["last"] = self.last
        strides, total = {}, 1
        for name, layer in layers.items():
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

    def drop_path_rate(self, index: int) -> float:
        """The rate at which training drops the output of block `index` (from 0)."""
        return self.drop_path * index / max(len(self.blocks) - 1, 1)


def spec_to_json(spec: NetSpec) -> str:
    """The spec as JSON text, which `spec_from_json` reads back as an equal spec."""
    return json.dumps(dataclasses.asdict(spec), indent=1)


def spec_from_json(text: str | bytes) -> NetSpec:
    """Reads what `spec_to_json` wrote.

    Raises:
      ValueError: the text is not a JSON object, or a field is missing, unknown or out of range;
        the message gives the field's path.
    """
    return parse_json(text, NetSpec, "spec")
