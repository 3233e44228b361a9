"""What a network costs, counted from its spec: parameters, multiply-adds, activation memory.

The conventions are those of the MobileNet papers: a multiply-add (MAdd) is one multiplication with
its addition. Convolutions are counted, those of squeeze-and-excite and the logits included;
BatchNorm (folded away at inference), nonlinearities, pooling and additions are not. Parameters are
the trainable ones: BatchNorm's scale and bias, not its running statistics.
"""

import dataclasses
import math

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.traversal import Convolution, ResidualAdd, convolutions, traverse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One convolution of the network, with the BatchNorm and nonlinearity that follow it.

    Attributes:
      part: the stage: stem, block1, ..., last, head, logits.
      name: as in the parameter tree: block1/depthwise.
      kernel: side of the kernel in pixels.
      stride: the same in both directions.
      inputs: shape of the input, [height, width, channels].
      outputs: shape of the output, [height, width, channels].
      params: number of trainable parameters.
      madds: multiply-adds for one image.
    """

    part: str
    name: str
    kernel: int
    stride: int
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    params: int
    madds: int

    @property
    def activations(self) -> int:
        """Number of values that the layer writes for one image."""
        return math.prod(self.outputs)


def layers(spec: NetSpec) -> list[Layer]:
    """Every convolution of the network, in order of execution."""
    return [
        Layer(
            part=conv.stage,
            name=conv.name,
            kernel=conv.kernel,
            stride=conv.stride,
            inputs=conv.in_shape,
            outputs=conv.out_shape,
            params=_params(conv),
            madds=_madds(conv),
        )
        for conv in convolutions(spec)
    ]


def params(spec: NetSpec) -> int:
    """Number of trainable parameters."""
    return sum(map(_params, convolutions(spec)))


def madds(spec: NetSpec) -> int:
    """Multiply-adds of one forward pass over one image."""
    return sum(map(_madds, convolutions(spec)))


def _params(conv: Convolution) -> int:
    channels = conv.out_shape[2]  # of a scale and a bias with BatchNorm, else of a bias
    return math.prod(conv.kernel_shape) + channels * (2 if conv.batch_norm else 1)


def _madds(conv: Convolution) -> int:
    height, width, _ = conv.out_shape
    return math.prod(conv.kernel_shape) * height * width


def peak_activations(spec: NetSpec) -> int:
    """Most values that are in memory at once at inference, layer by layer, for one image.

    A layer needs its input and its output; inside a block with a shortcut, the block's input stays
    in memory as well. Nonlinearities and BatchNorm are taken to work in place.
    """
    sources = {op.stage: op for op in traverse(spec) if isinstance(op, ResidualAdd)}
    peak = 0
    for conv in convolutions(spec):
        if "/se/" in conv.name:
            continue  # the map that SE scales is counted where the depthwise layer writes it
        add = sources.get(conv.stage)
        # The first layer of a block reads the block's input, which is then its own.
        waiting = math.prod(add.out_shape) if add and conv.inputs[0] != add.inputs[0] else 0
        peak = max(peak, math.prod(conv.in_shape) + math.prod(conv.out_shape) + waiting)
    return peak
