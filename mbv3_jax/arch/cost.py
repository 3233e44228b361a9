"""What a network costs, counted from its spec: parameters, multiply-adds, activation memory.

Conventions, those of the MobileNet papers: a multiply-add (MAdd) is one multiplication with its
addition; convolutions are counted, with squeeze-and-excite and the logits; BatchNorm (folded
away at inference), nonlinearities, pooling and additions are not. Parameters are the trainable
ones (BatchNorm scale and bias, not its running statistics).
"""

import dataclasses

from mbv3_jax.arch.spec import ConvSpec, NetSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One convolution of the network, with the BatchNorm and nonlinearity that follow it.

    `inputs` and `outputs` are [height, width, channels]; `params` and `madds` are counts for one
    image.
    """

    part: str  # stem, block1, ..., last, head, logits
    name: str  # as in the parameter tree: block1/depthwise
    kernel: int
    stride: int
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    params: int
    madds: int

    @property
    def activations(self) -> int:
        """Number of values that the layer writes for one image."""
        height, width, channels = self.outputs
        return height * width * channels


def out_size(size: int, stride: int) -> int:
    """Rows after a strided convolution: both paddings give ceil(size / stride), odd kernels."""
    return -(-size // stride)


class _Walk:
    """Collects layers while the shape moves through the network."""

    def __init__(self, spec: NetSpec):
        self.layers: list[Layer] = []
        self.size, self.channels = spec.resolution, spec.in_channels

    def conv(self, part, name, kernel, out, *, stride=1, depthwise=False, bn=True):
        inputs = (self.size, self.size, self.channels)
        self.size, fan_in = out_size(self.size, stride), 1 if depthwise else self.channels
        weights = kernel * kernel * fan_in * out
        self.layers.append(
            Layer(
                part=part,
                name=name,
                kernel=kernel,
                stride=stride,
                inputs=inputs,
                outputs=(self.size, self.size, out),
                params=weights + (2 * out if bn else out),
                madds=weights * self.size * self.size,
            )
        )
        self.channels = out

    def dense(self, part, name, inputs, out):
        """A 1x1 convolution with bias on pooled features, beside the main path."""
        shapes = {"inputs": (1, 1, inputs), "outputs": (1, 1, out)}
        count = {"params": inputs * out + out, "madds": inputs * out}
        self.layers.append(Layer(part=part, name=name, kernel=1, stride=1, **shapes, **count))

    def squeeze_excite(self, part, se, block_input):
        if se:
            squeezed = se.channels(expansion=self.channels, block_input=block_input)
            self.dense(part, f"{part}/se/reduce", self.channels, squeezed)
            self.dense(part, f"{part}/se/expand", squeezed, self.channels)

    def conv_spec(self, part: str, conv: ConvSpec):
        block_input = self.channels
        self.conv(part, part, conv.kernel, conv.out, stride=conv.stride)
        self.squeeze_excite(part, conv.se, block_input)


def layers(spec: NetSpec) -> list[Layer]:
    """Every convolution of the network in order of execution."""
    walk = _Walk(spec)
    walk.conv_spec("stem", spec.stem)
    for i, block in enumerate(spec.blocks):
        part, block_input = f"block{i + 1}", walk.channels
        if spec.has_expand(i):
            walk.conv(part, f"{part}/expand", 1, block.expansion)
        walk.conv(
            part,
            f"{part}/depthwise",
            block.kernel,
            block.expansion,
            stride=block.stride,
            depthwise=True,
        )
        walk.squeeze_excite(part, block.se, block_input)
        walk.conv(part, f"{part}/project", 1, block.out)
    walk.conv_spec("last", spec.last)
    walk.size = 1  # global average pooling
    if spec.head:
        walk.conv("head", "head", 1, spec.head.out, bn=False)
    walk.conv("logits", "logits", 1, spec.num_classes, bn=False)
    return walk.layers


def params(spec: NetSpec) -> int:
    """Number of trainable parameters."""
    return sum(layer.params for layer in layers(spec))


def madds(spec: NetSpec) -> int:
    """Multiply-adds of one forward pass over one image."""
    return sum(layer.madds for layer in layers(spec))


def peak_activations(spec: NetSpec) -> int:
    """Most values alive at once at inference, layer by layer, for one image.

    A layer needs its input and its output; inside a block with a shortcut the block's input
    stays alive as well. Nonlinearity and BatchNorm are taken as done in place.
    """
    peak, alive = 0, 0
    counted = layers(spec)
    kept = {f"block{i + 1}" for i in range(len(spec.blocks)) if spec.has_shortcut(i)}
    for previous, layer in zip([None, *counted], counted, strict=False):
        height, width, channels = layer.inputs
        if previous is None or previous.part != layer.part:
            alive = height * width * channels if layer.part in kept else 0
        held = alive if previous is not None and previous.part == layer.part else 0
        if "/se/" in layer.name:
            continue  # the map that SE scales is counted where the depthwise layer wrote it
        peak = max(peak, height * width * channels + layer.activations + held)
    return peak
