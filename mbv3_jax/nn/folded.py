"""The network as a phone runs it: BatchNorm folded into the convolutions, every tensor visible.

`apply_folded` calls a hook for every tensor that an int8 runtime stores: observers record it, fake
quantization rounds it, an export writes quantize and dequantize for it. Float exports, calibration,
simulated int8 and int8 exports are this one function with different hooks.

h-swish and hard-sigmoid have two forms, which compute the same function of the image. "native"
calls JAX's function. "rescaled" leaves out the division by 6: the stored tensor is then 6 times as
large as the network's, and the next convolution's kernel is divided by 6 (by 36 after
squeeze-and-excite). A shortcut needs two tensors with the same factor, so the kernel before it
takes the factor of the block's input.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.activations import ACTIVATIONS, GATES, RELU6_TENSOR
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.traversal import (
    IMAGES,
    ChannelScale,
    Convolution,
    Dropout,
    GlobalPool,
    Operation,
    ResidualAdd,
    convolutions,
    insert,
    lookup,
    traverse,
)
from mbv3_jax.core.checks import choose
from mbv3_jax.nn import ops
from mbv3_jax.nn.ops.geometry import Geometry

FORMS = ("native", "rescaled")

# on_weight(name, kernel [k, k, in, out], channel axis or None for one scale) -> kernel
OnWeight = Callable[[str, Any, int | None], Any]
# on_bias(name, bias [out], name of the convolution's input, kernel) -> bias
OnBias = Callable[[str, Any, str, Any], Any]
# on_activation(name, x [N, H, W, C]) -> x
OnActivation = Callable[[str, Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forms:
    """How the hard functions are written; the network is the same.

    Attributes:
      h_swish: "native" is one operation, for runtimes that have it; "rescaled" is x * relu6(x + 3).
      hard_sigmoid: "native", or "rescaled", which is relu6(x + 3) with the 3 in the bias.
    """

    h_swish: str = "native"
    hard_sigmoid: str = "native"

    def __post_init__(self):
        choose("forms.h_swish", self.h_swish, FORMS)
        choose("forms.hard_sigmoid", self.hard_sigmoid, FORMS)


NATIVE = Forms()
INT8 = Forms(h_swish="rescaled", hard_sigmoid="rescaled")


def fold(spec: NetSpec, variables: dict) -> dict:
    """Folds BatchNorm's running statistics into the convolutions.

    Args:
      spec: the network.
      variables: {"params", "batch_stats"} from `functional.init` or training.

    Returns:
      Nested dicts like the parameters, without BatchNorm: {"kernel": [k, k, in, out],
      "bias": [out]} for every convolution, as in `folded["block3"]["depthwise"]["conv"]["kernel"]`.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    folded: dict[str, Any] = {}
    for conv in convolutions(spec):
        layer = lookup(params, conv.path)
        if conv.batch_norm_path:
            factor, bias = ops.batch_norm_affine(
                **lookup(params, conv.batch_norm_path),
                **lookup(batch_stats, conv.batch_norm_path),
                eps=spec.bn_eps,
            )
            layer = {"kernel": layer["kernel"] * factor, "bias": bias}
        insert(folded, conv.path, dict(layer))
    return folded


def folded_shapes(spec: NetSpec) -> dict:
    """What `fold` returns, as `jax.ShapeDtypeStruct`s."""
    shapes: dict[str, Any] = {}
    for conv in convolutions(spec):
        kernel = jax.ShapeDtypeStruct(conv.kernel_shape, jnp.float32)
        bias = jax.ShapeDtypeStruct(conv.kernel_shape[3:], jnp.float32)
        insert(shapes, conv.path, {"kernel": kernel, "bias": bias})
    return shapes


def apply_folded(
    spec: NetSpec,
    folded: dict,
    images: jax.Array,
    *,
    forms: Forms = NATIVE,
    on_weight: OnWeight | None = None,
    on_activation: OnActivation | None = None,
    on_bias: OnBias | None = None,
) -> jax.Array:
    """Runs the network in float32, every convolution as XLA's own.

    Args:
      spec: the network.
      folded: from `fold`.
      images: normalised [N, H, W, in_channels]; H and W need not be `spec.resolution`.
      forms: of the hard functions.
      on_weight: is called with every kernel before its use, and returns the kernel to use. The
        channel axis is 3, for one scale per output channel. The 3 of a rescaled h-swish is passed
        too, with axis None.
      on_activation: is called with every stored tensor, and returns the tensor to use. Names are
        such as "input", "stem", "block1/expand/pre", "block1/se/pool", "block1", "pool", "logits".
        The last part tells what a tensor is: "pre" is the input of an activation or a gate,
        "relu6" is relu6(x + 3), "sigmoid" a sigmoid; otherwise it is the output of the layer of
        that name.
      on_bias: is called with every bias before its use, and returns the bias to use.

    Returns:
      Float32 logits [N, num_classes].

    Raises:
      ValueError: the images do not fit.
    """
    return FoldedForward(spec, folded, forms, on_weight, on_activation, on_bias).logits(images)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A stored tensor: `value` is `factor` times what the network's definition says."""

    name: str
    value: Any
    factor: float = 1.0


class FoldedForward:
    """One forward pass over the operations of a network.

    Subclasses override single operations: quantization-aware training normalises by batch
    statistics and drops, latency measurements use other forms of the convolution.
    """

    def __init__(
        self,
        spec: NetSpec,
        folded: dict,
        forms: Forms,
        on_weight: OnWeight | None = None,
        on_activation: OnActivation | None = None,
        on_bias: OnBias | None = None,
    ):
        self.spec, self.folded, self.forms = spec, folded, forms
        self.on_weight = on_weight or (lambda name, kernel, axis: kernel)
        self.on_activation = on_activation or (lambda name, x: x)
        self.on_bias = on_bias or (lambda name, bias, inputs, kernel: bias)
        self.ends: dict[str, Tensor] = {}  # what the last operation of each stage wrote

    def logits(self, images: jax.Array) -> jax.Array:
        """Normalised [N, H, W, in_channels] -> float32 [N, num_classes]."""
        channels = self.spec.in_channels
        if images.ndim != 4 or images.shape[3] != channels:
            raise ValueError(f"images: got shape {images.shape}, expected [N, H, W, {channels}]")
        x = self.stored(IMAGES, images.astype(jnp.float32))
        return self.run(traverse(self.spec), x).value[:, 0, 0]

    def run(self, operations: Sequence[Operation], x: Tensor) -> Tensor:
        """Runs some consecutive operations of the network.

        Args:
          operations: the first one reads `x`, and none of them reads anything from before it.
          x: the tensor that the first operation reads.

        Returns:
          What the last operation writes.
        """
        tensors = {operations[0].inputs[0]: x}
        # A residual sum needs the factor of the block's input; its other input takes it on.
        sources = {op.inputs[1]: op.inputs[0] for op in operations if isinstance(op, ResidualAdd)}
        for op in operations:
            factor = tensors[sources[op.name]].factor if op.name in sources else 1.0
            x = self.operation(op, [tensors[name] for name in op.inputs], factor)
            tensors[op.name] = self.ends[op.stage] = x
        return x

    def operation(self, op: Operation, inputs: Sequence[Tensor], factor: float) -> Tensor:
        """Computes one operation; the output of a linear convolution has `factor`."""
        x = inputs[0]
        match op:
            case Convolution(gate=str()):
                return self.gated(op, x)
            case Convolution(act=str()):
                return self.activated(op, x)
            case Convolution():
                return self.stored(op.name, self.conv(op, x, factor=factor), factor)
            case GlobalPool():
                pooled = jnp.mean(x.value, axis=(1, 2), keepdims=True)
                return self.stored(op.name, pooled, x.factor)
            case ChannelScale():
                gate = inputs[1]
                return self.stored(op.name, x.value * gate.value, x.factor * gate.factor)
            case ResidualAdd():
                branch = self.residual_branch(op, inputs[1].value)
                return self.stored(op.name, x.value + branch, x.factor)
            case Dropout():
                return dataclasses.replace(x, value=self.dropped(op, x.value))
        raise TypeError(f"{op.name}: {type(op).__name__} is not an operation of a folded network")

    def stored(self, name: str, value: jax.Array, factor: float = 1.0) -> Tensor:
        """A tensor that the runtime keeps in memory."""
        return Tensor(name, self.on_activation(name, value), factor)

    def conv(
        self, op: Convolution, x: Tensor, *, factor: float = 1.0, offset: float = 0.0
    ) -> jax.Array:
        """factor * (convolution + bias) + offset."""
        layer = lookup(self.folded, op.path)
        kernel, bias = layer["kernel"], layer["bias"]
        if factor != x.factor:
            kernel = kernel * (factor / x.factor)
        if (factor, offset) != (1.0, 0.0):
            bias = bias * factor + offset
        kernel = self.on_weight(op.path, kernel, 3)
        bias = self.on_bias(op.path, bias, x.name, kernel)
        return self.convolve(x.value, kernel, op.stride) + bias

    def convolve(self, x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
        """x [N, H, W, C]; depthwise if the kernel has one input channel for C."""
        return Geometry.of(x, kernel, stride, self.spec.padding).convolve(x, kernel)

    def residual_branch(self, op: ResidualAdd, x: jax.Array) -> jax.Array:
        """What a block adds to its input; training drops some of it."""
        return x

    def dropped(self, op: Dropout, x: jax.Array) -> jax.Array:
        """What the logits are computed from; training drops some of it."""
        return x

    def activated(self, op: Convolution, x: Tensor) -> Tensor:
        """A convolution with its activation."""
        name, act = op.name, ACTIVATIONS[op.act or ""]
        y = self.conv(op, x)
        if act.fused:
            return self.stored(name, act(y))
        y = self.stored(f"{name}/pre", y).value
        if act.gate is None:
            return self.stored(name, act(y))
        gate = GATES[act.gate]
        if gate.relu6_form is None:
            value = self.stored(f"{name}/{gate.tensor}", gate(y)).value
            return self.stored(name, y * value)
        if self.forms.h_swish == "native":
            return self.stored(name, act(y))
        offset = np.full((1, 1, 1, 1), gate.relu6_form.offset, np.float32)
        offset = self.on_weight(f"{name}/three", offset, None)
        value = self.stored(f"{name}/{RELU6_TENSOR}", jax.nn.relu6(y + offset)).value
        return self.stored(name, y * value, gate.relu6_form.factor)

    def gated(self, op: Convolution, x: Tensor) -> Tensor:
        """The last convolution of a squeeze-and-excite with its gate."""
        name, gate = op.name.rpartition("/")[0], GATES[op.gate or ""]
        form = gate.relu6_form
        if form is not None and self.forms.hard_sigmoid == "rescaled":
            y = jax.nn.relu6(self.conv(op, x, offset=form.offset))
            return self.stored(f"{name}/{RELU6_TENSOR}", y, form.factor)
        y = self.stored(f"{name}/pre", self.conv(op, x)).value
        return self.stored(f"{name}/{gate.tensor}", gate(y))
