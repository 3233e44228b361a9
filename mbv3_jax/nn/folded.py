"""The network as a phone runs it: BatchNorm folded into the convolutions, and nothing hidden.

`apply_folded` calls a hook at every tensor that an int8 runtime stores: observers record there,
fake quantization rounds there, an export writes quantize and dequantize there. Float exports,
calibration, simulated int8 and int8 exports are this one function with different hooks.

Two forms of h-swish and hard-sigmoid are the same function of the image. "native" calls JAX's.
"rescaled" leaves the division by 6 out: the tensor is then 6 times as large as the network's, and
the next convolution's kernel is divided by 6 instead (by 36 behind squeeze-and-excite). A shortcut
adds tensors of one factor, so that the kernel before it takes the factor of the block's input.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.spec import NetSpec, SESpec
from mbv3_jax.core.checks import choose
from mbv3_jax.nn import ops
from mbv3_jax.nn.activations import ACTIVATIONS, GATES
from mbv3_jax.nn.ops.geometry import Geometry

FORMS = ("native", "rescaled")

# on_weight(name, kernel [k, k, in, out], channel axis or None for one scale) -> kernel
OnWeight = Callable[[str, jax.Array, int | None], jax.Array]
# on_bias(name, bias [out], name of the convolution's input, kernel) -> bias
OnBias = Callable[[str, jax.Array, str, jax.Array], jax.Array]
# on_activation(name, x [N, H, W, C]) -> x
OnActivation = Callable[[str, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forms:
    """How the hard activations are written, see above; always the same network.

    h_swish: "native" is one operation where the runtime has it; "rescaled" is x * relu6(x + 3).
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
    """Puts BatchNorm's running statistics into the convolutions.

    Args:
      spec: the network.
      variables: {"params", "batch_stats"} of `functional.init` or training.

    Returns:
      Nested dicts like the parameters without BatchNorm, {"kernel": [k, k, in, out],
      "bias": [out]} for every convolution: `folded["block3"]["depthwise"]["conv"]["kernel"]`.
    """

    def walk(params, stats):
        if "bn" in params:
            factor, shift = ops.batch_norm_affine(**params["bn"], **stats["bn"], eps=spec.bn_eps)
            conv = {"kernel": params["conv"]["kernel"] * factor, "bias": shift}
            rest = {k: v for k, v in params.items() if k not in ("conv", "bn")}
            return {"conv": conv, **walk(rest, stats)}
        return {
            k: walk(v, stats.get(k, {})) if isinstance(v, dict) else v for k, v in params.items()
        }

    return walk(variables["params"], variables["batch_stats"])


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
      forms: of the hard activations.
      on_weight: gets every kernel as it is used; channel axis 3, one scale for each output
        channel; and with None the 3 of a rescaled h-swish.
      on_activation: gets every tensor, by names such as "input", "stem", "block1/expand/pre",
        "block1/se/pool", "block1", "pool", "logits". The last part says what a tensor is: "pre"
        comes before h-swish or a gate, "relu6" is relu6(x + 3), "sigmoid" a sigmoid; otherwise
        it is the output of the layer of that name.
      on_bias: gets every bias as it is used.

    Returns:
      Float32 logits [N, num_classes].
    """
    return Walk(spec, folded, forms, on_weight, on_activation, on_bias).logits(images)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A stored tensor: `value` is `factor` times what the network's definition says."""

    name: str
    value: jax.Array
    factor: float = 1.0


class Walk:
    """One pass through a network; `quantized.py` trains by overriding some of its methods."""

    def __init__(self, spec, folded, forms, on_weight=None, on_activation=None, on_bias=None):
        self.spec, self.folded, self.forms = spec, folded, forms
        self.on_weight = on_weight or (lambda name, kernel, axis: kernel)
        self.on_activation = on_activation or (lambda name, x: x)
        self.on_bias = on_bias or (lambda name, bias, inputs, kernel: bias)

    def stored(self, name: str, value: jax.Array, factor: float = 1.0) -> Tensor:
        """A tensor that the runtime keeps in memory."""
        return Tensor(name, self.on_activation(name, value), factor)

    def conv(
        self, name: str, x: Tensor, *, stride: int = 1, factor: float = 1.0, offset: float = 0.0
    ) -> jax.Array:
        """factor * (convolution + bias) + offset, of the layer `name`."""
        layer = self.folded
        for part in name.split("/"):
            layer = layer[part]
        kernel, bias = layer["kernel"], layer["bias"]
        if factor != x.factor:
            kernel = kernel * (factor / x.factor)
        if (factor, offset) != (1.0, 0.0):
            bias = bias * factor + offset
        kernel = self.on_weight(name, kernel, 3)
        bias = self.on_bias(name, bias, x.name, kernel)
        return self.convolve(x.value, kernel, stride) + bias

    def convolve(self, x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
        """x [N, H, W, C], depthwise where the kernel has one input channel for many."""
        return Geometry.of(x, kernel, stride, self.spec.padding).convolve(x, kernel)

    def before_shortcut(self, index: int, x: jax.Array) -> jax.Array:
        """What block `index` (from 0) adds to its input; training drops some of it."""
        return x

    def before_logits(self, x: Tensor) -> Tensor:
        """What the logits are computed from; training drops some of it."""
        return x

    def activated(self, name: str, act: str, layer: str, x: Tensor, stride: int = 1) -> Tensor:
        """Convolution `layer` and nonlinearity; the result is called `name`."""
        if act not in ("h_swish", "swish"):
            y = self.conv(layer, x, stride=stride)
            return self.stored(name, ACTIVATIONS[act](y))
        y = self.stored(f"{name}/pre", self.conv(layer, x, stride=stride)).value
        if act == "h_swish" and self.forms.h_swish == "rescaled":
            three = self.on_weight(f"{name}/three", np.full((1, 1, 1, 1), 3.0, np.float32), None)
            gate = self.stored(f"{name}/relu6", jax.nn.relu6(y + three)).value
            return self.stored(name, y * gate, 6.0)
        if act == "swish":
            gate = self.stored(f"{name}/sigmoid", jax.nn.sigmoid(y)).value
            return self.stored(name, y * gate)
        return self.stored(name, ACTIVATIONS[act](y))

    def squeeze_excite(self, name: str, se: SESpec, x: Tensor) -> Tensor:
        """Scales the channels of `x` by a gate computed from their averages."""
        pooled = self.pool(f"{name}/pool", x)
        y = self.activated(f"{name}/reduce", se.act, f"{name}/reduce", pooled)
        if se.gate == "hard_sigmoid" and self.forms.hard_sigmoid == "rescaled":
            y = jax.nn.relu6(self.conv(f"{name}/expand", y, offset=3.0))
            gate = self.stored(f"{name}/relu6", y, 6.0)
        else:
            y = self.stored(f"{name}/pre", self.conv(f"{name}/expand", y))
            kind = "sigmoid" if se.gate == "sigmoid" else "gate"
            gate = self.stored(f"{name}/{kind}", GATES[se.gate](y.value))
        return self.stored(name, x.value * gate.value, x.factor * gate.factor)

    def pool(self, name: str, x: Tensor) -> Tensor:
        """Averages all pixels: [N, 1, 1, C]."""
        return self.stored(name, jnp.mean(x.value, axis=(1, 2), keepdims=True), x.factor)

    def bneck(self, index: int, x: Tensor) -> Tensor:
        """Block `index`, from 0."""
        spec, name, inputs = self.spec, f"block{index + 1}", x
        block, shortcut = spec.blocks[index], spec.has_shortcut(index)
        if spec.has_expand(index):
            x = self.activated(f"{name}/expand", block.act, f"{name}/expand/conv", x)
        layer = f"{name}/depthwise"
        x = self.activated(layer, block.act, f"{layer}/conv", x, block.stride)
        if block.se:
            x = self.squeeze_excite(f"{name}/se", block.se, x)
        factor = inputs.factor if shortcut else 1.0
        y = self.stored(
            f"{name}/project", self.conv(f"{name}/project/conv", x, factor=factor), factor
        )
        if not shortcut:
            return y
        return self.stored(name, inputs.value + self.before_shortcut(index, y.value), factor)

    def logits(self, images: jax.Array) -> jax.Array:
        """Normalised [N, H, W, in_channels] -> float32 [N, num_classes]."""
        spec = self.spec
        if images.ndim != 4 or images.shape[3] != spec.in_channels:
            raise ValueError(
                f"images: got shape {images.shape}, expected [N, H, W, {spec.in_channels}]"
            )
        x = self.stored("input", images.astype(jnp.float32))
        x = self.activated("stem", spec.stem.act, "stem/conv", x, spec.stem.stride)
        if spec.stem.se:
            x = self.squeeze_excite("stem/se", spec.stem.se, x)
        for index in range(len(spec.blocks)):
            x = self.bneck(index, x)
        x = self.activated("last", spec.last.act, "last/conv", x, spec.last.stride)
        if spec.last.se:
            x = self.squeeze_excite("last/se", spec.last.se, x)
        x = self.pool("pool", x)
        if spec.head:
            x = self.activated("head", spec.head.act, "head", x)
        x = self.before_logits(x)
        return self.stored("logits", self.conv("logits", x)).value[:, 0, 0]
