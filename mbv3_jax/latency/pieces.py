"""A network cut into the pieces that a latency table lists: stem, blocks, tail.

Equal pieces of different networks share an entry of the table. A piece is measured as a whole,
because runtimes fuse a convolution with its nonlinearity.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mbv3_jax.arch.spec import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec
from mbv3_jax.arch.traversal import Convolution, Operation, ResidualAdd, stages, strided_size
from mbv3_jax.latency.subjects import random_folded
from mbv3_jax.nn.fake_quant import FastForward
from mbv3_jax.nn.folded import NATIVE, FoldedForward, Forms, Tensor

KINDS = ("stem", "block", "tail")


@dataclasses.dataclass(frozen=True, order=True, kw_only=True)
class Piece:
    """The key of a latency table.

    Attributes:
      kind: "stem", "block", or "tail" (last 1x1 convolution, pooling, head, logits).
      size: height of the input in pixels.
      inputs: input channels.
      expansion: expansion channels of a block; channels of a tail's last 1x1; 0 for a stem.
      out: output channels; of a tail, the number of classes.
      kernel, stride, act: of a block's depthwise layer, or of the stem or the last 1x1.
      head: channels of a tail's head, 0 for none.
      squeezed: channels inside squeeze-and-excite, 0 for none.
      gate: of squeeze-and-excite, "" for none.
      shortcut: whether the block's input is added.
      padding: see `NetSpec`; "same" if it makes no difference.
      width: of the input in pixels; 0 if it is as wide as high.
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
    width: int = 0

    @property
    def name(self) -> str:
        """The name of its file."""
        *values, width = (str(v) for v in dataclasses.astuple(self) if v != "")
        return "-".join([*values, width] if self.width else values)

    @property
    def sizes(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.size, self.width or self.size

    @property
    def out_sizes(self) -> tuple[int, int]:
        """Height and width of the output; for a tail, of its last convolution's output."""
        height, width = (strided_size(size, self.stride) for size in self.sizes)
        return height, width


def pieces(spec: NetSpec) -> list[Piece]:
    """The pieces of a network, in order: the stem, one for each block, and the tail."""
    grouped = stages(spec)
    last, head, logits = (_convolutions(grouped.get(s, ())) for s in ("last", "head", "logits"))
    tail = {
        "expansion": last["last"].out_shape[2],
        "out": logits["logits"].out_shape[2],
        "head": head["head"].out_shape[2] if head else 0,
    }
    return [
        _piece(spec, "stem", grouped["stem"], "stem", expansion=0, out=spec.stem.out),
        *(
            _piece(
                spec,
                "block",
                operations,
                f"{stage}/depthwise",
                expansion=_convolutions(operations)[f"{stage}/depthwise"].out_shape[2],
                out=operations[-1].out_shape[2],
                shortcut=isinstance(operations[-1], ResidualAdd),
            )
            for stage, operations in grouped.items()
            if stage.startswith("block")
        ),
        _piece(spec, "tail", grouped["last"], "last", **tail),
    ]


def _convolutions(operations: Sequence[Operation]) -> dict[str, Convolution]:
    return {op.name: op for op in operations if isinstance(op, Convolution)}


def _piece(
    spec: NetSpec, kind: str, operations: Sequence[Operation], main: str, **fields: Any
) -> Piece:
    """The piece of a stage; its kernel, stride and activation are those of the layer `main`."""
    convs = _convolutions(operations)
    conv, (size, width, inputs) = convs[main], operations[0].in_shape
    reduce = convs.get(f"{conv.stage}/se/reduce")
    expand = convs.get(f"{conv.stage}/se/expand")
    return Piece(
        kind=kind,
        size=size,
        inputs=inputs,
        kernel=conv.kernel,
        stride=conv.stride,
        act=conv.act or "",
        squeezed=reduce.out_shape[2] if reduce else 0,
        gate=(expand.gate or "") if expand else "",
        # Both paddings are the same without a stride.
        padding=spec.padding if conv.kernel > 1 and conv.stride > 1 else "same",
        width=width if width != size else 0,
        **fields,
    )


def network(piece: Piece) -> NetSpec:
    """A network that contains the piece; everything else in it is as small as possible."""
    se = None
    if piece.squeezed:
        ratio = piece.squeezed / (piece.expansion or piece.out)
        se = SESpec(ratio=ratio, divisor=1, gate=piece.gate)
    stem = ConvSpec(kernel=1, out=piece.inputs, act="relu")
    block = BlockSpec(kernel=1, expansion=1, out=piece.inputs, act="relu")
    last, head = ConvSpec(kernel=1, out=1, act="relu"), None
    if piece.kind == "block":
        block = BlockSpec(
            kernel=piece.kernel,
            expansion=piece.expansion,
            out=piece.out,
            act=piece.act,
            stride=piece.stride,
            se=se,
            shortcut=piece.shortcut,
        )
    else:
        conv = ConvSpec(
            kernel=piece.kernel,
            out=piece.out if piece.kind == "stem" else piece.expansion,
            act=piece.act,
            stride=piece.stride,
            se=se,
        )
        if piece.kind == "stem":
            stem = conv
        else:
            last = conv
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


def function(piece: Piece, runtime: str) -> Callable[[jax.Array], jax.Array]:
    """The piece as a function with random weights: [1, height, width, inputs] -> its output.

    Args:
      piece: which.
      runtime: "xla" uses the forms of convolutions that are fast in XLA on this device; others are
        written as `export.formats.write` writes them.
    """
    spec = network(piece)
    folded, grouped = random_folded(spec), stages(spec)
    forward: FoldedForward
    if runtime == "xla":
        forward = FastForward(spec, folded, NATIVE)
    else:
        forward = FoldedForward(spec, folded, Forms(hard_sigmoid="rescaled"))
    names = {"stem": ["stem"], "block": ["block1"], "tail": ["last", "pool", "head", "logits"]}
    operations = [op for name in names[piece.kind] for op in grouped.get(name, ())]
    return lambda images: forward.run(operations, Tensor("input", images)).value
