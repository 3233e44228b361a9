"""A network cut into the pieces that latency tables have: stem, blocks, tail.

Equal pieces of different networks are one entry of a table. A piece is measured with all inside
it, as runtimes fuse a convolution with its nonlinearity.
"""

import dataclasses
from collections.abc import Callable

import jax

from mbv3_jax.arch.cost import out_size
from mbv3_jax.arch.spec import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec
from mbv3_jax.latency.subjects import random_folded
from mbv3_jax.nn import fake_quant
from mbv3_jax.nn.folded import Forms, Tensor, Walk

KINDS = ("stem", "block", "tail")


@dataclasses.dataclass(frozen=True, order=True, kw_only=True)
class Piece:
    """The key of a table.

    kind: "stem", "block", or "tail": last 1x1 convolution, pooling, head, logits.
    size: side of its input in pixels.
    inputs, expansion, out: channels; of a tail, `expansion` are the last convolution's and `out`
      the classes; of a stem, `expansion` is 0.
    head: channels of a tail's head, 0 for none.
    squeezed: of squeeze-and-excite, 0 for none; gate: its, or "".
    shortcut: whether the input is added.
    """

    kind: str
    size: int
    inputs: int
    expansion: int
    out: int
    kernel: int
    stride: int
    act: str
    head: int = 0
    squeezed: int = 0
    gate: str = ""
    shortcut: bool = False
    padding: str = "same"

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(str(v) for v in dataclasses.astuple(self) if v != "")

    @property
    def out_size(self) -> int:
        """Side of its output in pixels; of a tail, of its last convolution."""
        return out_size(self.size, self.stride)


def pieces(spec: NetSpec) -> list[Piece]:
    """The pieces of a network, in order; one for each block, and two."""
    found, size, width = [], spec.resolution, spec.in_channels

    def add(kind, layer, expansion, **rest):
        nonlocal size, width
        gate = squeezed = None
        if layer.se:
            wide = expansion or layer.out
            squeezed = layer.se.channels(expansion=wide, block_input=width)
            gate = layer.se.gate
        fields = {"kernel": layer.kernel, "stride": layer.stride, "act": layer.act}
        piece = Piece(
            kind=kind,
            size=size,
            inputs=width,
            expansion=expansion,
            squeezed=squeezed or 0,
            gate=gate or "",
            padding=spec.padding if layer.kernel > 1 and layer.stride > 1 else "same",
            **fields,
            **rest,
        )
        found.append(piece)
        size, width = piece.out_size, piece.out

    add("stem", spec.stem, 0, out=spec.stem.out)
    for i, block in enumerate(spec.blocks):
        add("block", block, block.expansion, out=block.out, shortcut=spec.has_shortcut(i))
    head = spec.head.out if spec.head else 0
    add("tail", spec.last, spec.last.out, out=spec.num_classes, head=head)
    return found


def network(piece: Piece) -> NetSpec:
    """A network that has the piece; the rest of it is as small as can be."""
    se = None
    if piece.squeezed:
        ratio = piece.squeezed / (piece.expansion or piece.out)
        se = SESpec(ratio=ratio, divisor=1, gate=piece.gate)
    layer = {"kernel": piece.kernel, "stride": piece.stride, "act": piece.act, "se": se}
    stem = ConvSpec(kernel=1, out=piece.inputs, act="relu")
    block = BlockSpec(kernel=1, expansion=1, out=piece.inputs, act="relu")
    last, head = ConvSpec(kernel=1, out=1, act="relu"), None
    if piece.kind == "stem":
        stem = ConvSpec(out=piece.out, **layer)
    elif piece.kind == "block":
        block = BlockSpec(
            expansion=piece.expansion, out=piece.out, shortcut=piece.shortcut, **layer
        )
    else:
        last = ConvSpec(out=piece.expansion, **layer)
        head = HeadSpec(out=piece.head, act=piece.act) if piece.head else None
    return NetSpec(
        name=piece.kind,
        stem=stem,
        blocks=(block,),
        last=last,
        head=head,
        in_channels=piece.inputs if piece.kind == "stem" else 3,
        num_classes=piece.out if piece.kind == "tail" else 1,
        padding=piece.padding,
    )


class _AsTrained(Walk):
    """Depthwise convolutions in the form that is fast in XLA on this device."""

    def convolve(self, x, kernel, stride):
        return fake_quant.convolve(self.spec, x, kernel, stride, "auto")


def function(piece: Piece, runtime: str) -> Callable[[jax.Array], jax.Array]:
    """[1, size, size, inputs] -> what the piece computes, with random weights."""
    spec = network(piece)
    folded = random_folded(spec)
    if runtime == "xla":
        walk = _AsTrained(spec, folded, Forms())
    else:  # as export.writing has it
        walk = Walk(spec, folded, Forms(hard_sigmoid="rescaled"))

    def run(images):
        x = Tensor("input", images)
        if piece.kind == "block":
            return walk.bneck(0, x).value
        part, layer = ("stem", spec.stem) if piece.kind == "stem" else ("last", spec.last)
        x = walk.activated(part, layer.act, f"{part}/conv", x, layer.stride)
        if layer.se:
            x = walk.squeeze_excite(f"{part}/se", layer.se, x)
        if piece.kind == "stem":
            return x.value
        x = walk.pool("pool", x)
        if spec.head:
            x = walk.activated("head", spec.head.act, "head", x)
        return walk.conv("logits", x)

    return run
