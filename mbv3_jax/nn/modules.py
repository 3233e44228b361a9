"""MobileNetV3 as Flax modules: convolution with BatchNorm, squeeze-and-excite, inverted residual.

Read it from the bottom: `MobileNet` is a whole network, `InvertedResidual` a row of the paper's
tables 1 and 2. Modules declare shapes only; `functional.init` fills the parameters.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from mbv3_jax.arch.activations import ACTIVATIONS, GATES
from mbv3_jax.arch.spec import BlockSpec, ConvSpec, NetSpec, SESpec
from mbv3_jax.core.checks import choose
from mbv3_jax.nn import ops

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a network is computed.

    Only `bn_groups` and `frozen_bn` change the result by more than rounding.

    Attributes:
      dtype: type of activations and of the matrix products; parameters, BatchNorm statistics and
        logits stay float32.
      depthwise: which form of the depthwise convolution to use (`ops.DEPTHWISE_IMPLS`).
      bn_groups: into how many groups a training batch is split for BatchNorm statistics. 1 takes
        the whole batch, across devices; the number of devices gives per-device statistics.
      frozen_bn: the stages ("stem", "block1", ..., "last") whose BatchNorm normalises by its
        running statistics in training too, and does not update them.
    """

    dtype: str = "float32"
    depthwise: str = "auto"
    bn_groups: int = 1
    frozen_bn: tuple[str, ...] = ()

    def __post_init__(self):
        choose("compute.dtype", self.dtype, DTYPES)
        choose("compute.depthwise", self.depthwise, ops.DEPTHWISE_IMPLS)


class Conv(nnx.Module):
    """Holds a convolution kernel [k, k, in, out] and, if asked for, a bias [out]."""

    def __init__(self, kernel: int, inputs: int, out: int, *, bias: bool = False):
        self.kernel = nnx.Param(jnp.zeros((kernel, kernel, inputs, out), jnp.float32))
        if bias:
            self.bias = nnx.Param(jnp.zeros((out,), jnp.float32))

    def pointwise(self, x: jax.Array) -> jax.Array:
        """[N, H, W, in] -> [N, H, W, out], for a 1x1 kernel."""
        bias = self.bias[...] if hasattr(self, "bias") else None
        return ops.pointwise_conv(x, self.kernel[...], bias)


class BatchNorm(nnx.Module):
    """Holds scale, bias and the running mean and variance, all [channels] float32."""

    def __init__(self, channels: int, spec: NetSpec, compute: Compute):
        self.eps, self.decay, self.groups = spec.bn_eps, spec.bn_decay, compute.bn_groups
        self.frozen = False
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: jax.Array, train: bool, act: str | None) -> jax.Array:
        """Normalises [N, H, W, C], then applies the activation `act`, if any.

        Training normalises by the statistics of the batch and updates the running ones. It applies
        the activation inside the normalisation, so nothing more is kept in memory for the gradient.
        """
        scale, bias, mean, var = self.scale[...], self.bias[...], self.mean[...], self.var[...]
        function = ACTIVATIONS[act].fn if act else None
        if not train or self.frozen:
            y = ops.batch_norm_infer(x, scale, bias, mean, var, eps=self.eps)
            return function(y) if function else y
        y, batch_mean, batch_var = ops.batch_norm_train(
            x, scale, bias, eps=self.eps, groups=self.groups, act=function
        )
        self.mean[...] = self.decay * mean + (1 - self.decay) * batch_mean
        self.var[...] = self.decay * var + (1 - self.decay) * batch_var
        return y


class ConvNormAct(nnx.Module):
    """Convolution, BatchNorm, activation; `act` None is the linear projection of a block.

    A 1x1 kernel runs as a matrix product, `depthwise` with one kernel for each channel, anything
    else as a dense convolution.
    """

    def __init__(
        self,
        kernel: int,
        inputs: int,
        out: int,
        *,
        act: str | None,
        spec: NetSpec,
        compute: Compute,
        stride: int = 1,
        depthwise: bool = False,
    ):
        self.stride, self.padding, self.act = stride, spec.padding, act
        self.impl = compute.depthwise if depthwise else None
        self.is_pointwise = kernel == 1 and stride == 1 and not depthwise
        self.conv = Conv(kernel, 1 if depthwise else inputs, out)
        self.bn = BatchNorm(out, spec, compute)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, in] -> [N, H', W', out]."""
        kernel, stride, padding = self.conv.kernel[...], self.stride, self.padding
        if self.is_pointwise:
            x = self.conv.pointwise(x)
        elif self.impl is None:
            x = ops.conv(x, kernel, stride=stride, padding=padding)
        else:
            x = ops.depthwise_conv(x, kernel, stride=stride, padding=padding, impl=self.impl)
        return self.bn(x, train, self.act)


class SqueezeExcite(nnx.Module):
    """Scales channels by a gate computed from their averages (MobileNetV3 figure 4)."""

    def __init__(self, se: SESpec, channels: int, block_input: int):
        squeezed = se.channels(expansion=channels, block_input=block_input)
        self.act, self.gate = se.act, se.gate
        self.reduce = Conv(1, channels, squeezed, bias=True)
        self.expand = Conv(1, squeezed, channels, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, C]."""
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        squeezed = ACTIVATIONS[self.act](self.reduce.pointwise(pooled))
        return x * GATES[self.gate](self.expand.pointwise(squeezed))


class ConvStage(ConvNormAct):
    """The stem, or the last 1x1 before pooling, with squeeze-and-excite if the spec has it."""

    def __init__(self, conv: ConvSpec, inputs: int, *, spec: NetSpec, compute: Compute):
        super().__init__(
            conv.kernel,
            inputs,
            conv.out,
            act=conv.act,
            stride=conv.stride,
            spec=spec,
            compute=compute,
        )
        if conv.se:
            self.se = SqueezeExcite(conv.se, conv.out, inputs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, in] -> [N, H', W', out]."""
        x = super().__call__(x, train)
        return self.se(x) if hasattr(self, "se") else x


class InvertedResidual(nnx.Module):
    """A block ("bneck" in the paper): expand, filter each channel, excite, project, add.

    See `arch.spec.BlockSpec`.
    """

    def __init__(
        self,
        block: BlockSpec,
        inputs: int,
        *,
        expand: bool,
        shortcut: bool,
        drop_path_rate: float,
        spec: NetSpec,
        compute: Compute,
    ):
        width, act = block.expansion, block.act
        self.has_shortcut, self.drop_path_rate = shortcut, drop_path_rate
        if expand:
            self.expand = ConvNormAct(1, inputs, width, act=act, spec=spec, compute=compute)
        self.depthwise = ConvNormAct(
            block.kernel,
            width,
            width,
            act=act,
            stride=block.stride,
            depthwise=True,
            spec=spec,
            compute=compute,
        )
        if block.se:
            self.se = SqueezeExcite(block.se, width, inputs)
        self.project = ConvNormAct(1, width, block.out, act=None, spec=spec, compute=compute)

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        """[N, H, W, in] -> [N, H', W', out]; drop-path draws from `key`, if the block has it."""
        y = self.expand(x, train) if hasattr(self, "expand") else x
        y = self.depthwise(y, train)
        if hasattr(self, "se"):
            y = self.se(y)
        y = self.project(y, train)
        if not self.has_shortcut:
            return y
        if train and self.drop_path_rate:
            y = ops.drop_path(y, self.drop_path_rate, key)
        return x + y


class MobileNet(nnx.Module):
    """Stem, block1 ... blockN, last 1x1, pooling, head, dropout, logits, as `spec` says."""

    def __init__(self, spec: NetSpec, compute: Compute):
        self.spec, self.compute = spec, compute
        self.stem = ConvStage(spec.stem, spec.in_channels, spec=spec, compute=compute)
        for i, (block, inputs) in enumerate(zip(spec.blocks, spec.block_inputs(), strict=True)):
            module = InvertedResidual(
                block,
                inputs,
                expand=spec.has_expand(i),
                shortcut=spec.has_shortcut(i),
                drop_path_rate=spec.drop_path_rate(i),
                spec=spec,
                compute=compute,
            )
            setattr(self, f"block{i + 1}", module)
        self.last = ConvStage(spec.last, spec.blocks[-1].out, spec=spec, compute=compute)
        width = spec.last.out
        if spec.head:
            self.head = Conv(1, width, spec.head.out, bias=True)
            width = spec.head.out
        self.logits = Conv(1, width, spec.num_classes, bias=True)
        for stage in compute.frozen_bn:
            choose("compute.frozen_bn", stage, spec.strides())
            for _, part in nnx.iter_modules(getattr(self, stage)):
                if isinstance(part, BatchNorm):
                    part.frozen = True

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Normalised [N, H, W, in_channels] -> float32 logits [N, num_classes].

        Raises:
          ValueError: the images have another number of channels, or training with dropout or
            drop-path got no key.
        """
        return self.logits_and_maps(images, train=train, key=key)[0]

    def logits_and_maps(
        self, images: jax.Array, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits as above, and the output of each stage by its name, see `maps`."""
        maps = dict(self.maps(images, train=train, key=key))
        x = self.embed(maps["last"])
        if train and self.spec.dropout:
            x = ops.dropout(x, self.spec.dropout, ops.dropout_key(key))
        return self.logits.pointwise(x.astype(jnp.float32))[:, 0, 0], maps

    def maps(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """Yields the output [N, H', W', C] of each stage of `spec.strides()` with its name."""
        if images.ndim != 4 or images.shape[3] != self.spec.in_channels:
            raise ValueError(
                f"images: got shape {images.shape}, expected [N, H, W, {self.spec.in_channels}]"
            )
        x = self.stem(images.astype(DTYPES[self.compute.dtype]), train)
        yield "stem", x
        for i in range(1, len(self.spec.blocks) + 1):
            block_key = None if key is None else ops.block_key(key, i)
            x = getattr(self, f"block{i}")(x, train, block_key)
            yield f"block{i}", x
        yield "last", self.last(x, train)

    def embed(self, x: jax.Array) -> jax.Array:
        """The map of "last" [N, H, W, C] -> the input of the logits [N, 1, 1, C']."""
        x = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        if not self.spec.head:
            return x
        return ACTIVATIONS[self.spec.head.act](self.head.pointwise(x))
