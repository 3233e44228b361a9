"""The network in simulated int8: training sees the rounding of integer arithmetic on a phone.

The arithmetic is TFLite's (its quantization specification). Kernels are int8, symmetric, -127 to
127, with a scale for each output channel; activations are int8 with a scale and a zero point for
each tensor; biases are int32 in units of the input's scale times the kernel's. Gradients pass
through rounding unchanged and are zero where a value is clipped (Jacob et al. 2018,
arXiv:1712.05877).

A network with `spec.quant` is computed like this in training and in evaluation. Its state is kept
in `batch_stats["quant"]`: `low` and `high`, [tensors] each, the range of every tensor of
`tensors(spec)`, an exponential moving average of batch minima and maxima; `steps`, the number of
batches trained on so far; and `on`, above 0 once tensors are rounded. All are float32, so that a
moving average of the weights can average them too; an average of `on` is above 0 as soon as one of
its values was.
"""

import functools
import types
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mbv3_jax.arch.activations import fixed_range
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.traversal import (
    Convolution,
    Dropout,
    ResidualAdd,
    insert,
    lookup,
)
from mbv3_jax.nn import ops
from mbv3_jax.nn.folded import INT8, FoldedForward, Tensor, apply_folded, fold, folded_shapes
from mbv3_jax.nn.modules import Compute

LOWEST, HIGHEST = -128, 127
_SMALLEST = 1e-8  # scale of a tensor that is always zero


def weight_scale(kernel: jax.Array, axis: int | None = 3, xp: types.ModuleType = jnp) -> jax.Array:
    """The scale of each channel along `axis` [channels], or one []: largest magnitude / 127.

    Here and below, `xp` may be `numpy` for concrete NumPy arrays; the bits are the same.
    """
    axes = None if axis is None else tuple(i for i in range(kernel.ndim) if i != axis)
    # Times the inverse: XLA turns a division by a constant into this anyway when it compiles.
    return xp.maximum(xp.max(xp.abs(kernel), axis=axes) * (1 / HIGHEST), _SMALLEST)


def quantize_weight(
    kernel: jax.Array, axis: int | None = 3, xp: types.ModuleType = jnp
) -> tuple[jax.Array, jax.Array]:
    """Integers -127 to 127 in the shape of `kernel` (last axis: channels), and their scale."""
    scale = weight_scale(kernel, axis, xp)
    return xp.clip(xp.round(kernel / scale), -HIGHEST, HIGHEST), scale


def fake_weight(kernel: jax.Array, axis: int | None = 3) -> jax.Array:
    """The kernel rounded as in int8, float32; the gradient passes through."""
    integers, scale = quantize_weight(jax.lax.stop_gradient(kernel), axis)
    return kernel + jax.lax.stop_gradient(integers * scale - kernel)


def activation_scale(
    low: jax.Array, high: jax.Array, xp: types.ModuleType = jnp
) -> tuple[jax.Array, jax.Array]:
    """Scale and zero point (a whole float32) of a range that holds `low`, `high` and 0."""
    low, high = xp.minimum(low, 0), xp.maximum(high, 0)
    scale = xp.maximum((high - low) * (1 / (HIGHEST - LOWEST)), _SMALLEST)
    return scale, xp.clip(xp.round(LOWEST - low / scale), LOWEST, HIGHEST)


def fake_activation(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """`x` rounded as in int8, float32; the gradient passes where nothing is clipped."""
    scale, zero = activation_scale(*jax.lax.stop_gradient((low, high)))
    clipped = jnp.clip(x, (LOWEST - zero) * scale, (HIGHEST - zero) * scale)
    integers = jnp.clip(jnp.round(x / scale) + zero, LOWEST, HIGHEST)
    return clipped + jax.lax.stop_gradient((integers - zero) * scale - clipped)


@functools.lru_cache(maxsize=64)
def tensors(spec: NetSpec) -> tuple[str, ...]:
    """The names of all int8 tensors, in the order in which they are computed."""
    names = []

    def note(name, x):
        names.append(name)
        return x

    def run(folded, images):
        return apply_folded(spec, folded, images, forms=INT8, on_activation=note)

    images = jax.ShapeDtypeStruct((1, *spec.input_shape), "f4")
    jax.eval_shape(run, folded_shapes(spec), images)
    return tuple(names)


def state_shapes(spec: NetSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of `batch_stats["quant"]`."""
    ranges = jax.ShapeDtypeStruct((len(tensors(spec)),), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    return {"low": ranges, "high": ranges, "steps": scalar, "on": scalar}


def simulate(
    spec: NetSpec,
    folded: dict,
    low: jax.Array,
    high: jax.Array,
    images: jax.Array,
    *,
    depthwise: str = "auto",
) -> jax.Array:
    """Runs a folded network as an int8 runtime would.

    Args:
      spec: the network.
      folded: from `folded.fold`.
      low: [tensors], see `tensors`.
      high: [tensors].
      images: normalised [N, H, W, in_channels].
      depthwise: form of the depthwise convolution, of `ops.DEPTHWISE_IMPLS`.

    Returns:
      Float32 logits [N, num_classes], whole multiples of their scale.
    """
    return SimulatedForward(spec, folded, low, high, depthwise).logits(images)


class FastForward(FoldedForward):
    """A folded network in float, each convolution in the form that training uses."""

    depthwise = "auto"

    def convolve(self, x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
        padding = self.spec.padding
        if kernel.shape[2] != x.shape[3]:
            return ops.depthwise_conv(
                x, kernel, stride=stride, padding=padding, impl=self.depthwise
            )
        if kernel.shape[:2] == (1, 1) and stride == 1:
            return ops.pointwise_conv(x, kernel)
        return ops.conv(x, kernel, stride=stride, padding=padding)


class SimulatedForward(FastForward):
    """One forward pass in simulated int8."""

    def __init__(
        self,
        spec: NetSpec,
        folded: dict,
        low: jax.Array,
        high: jax.Array,
        depthwise: str = "auto",
    ):
        index = {name: i for i, name in enumerate(tensors(spec))}

        def range_of(name):
            return low[index[name]], high[index[name]]

        def on_bias(name, bias, inputs, kernel):
            # `kernel` is rounded already, but rounding it again would give the same scale: its
            # largest magnitude is a multiple of it.
            unit = activation_scale(*range_of(inputs))[0] * weight_scale(kernel)
            return bias + jax.lax.stop_gradient(jnp.round(bias / unit) * unit - bias)

        super().__init__(
            spec,
            folded,
            INT8,
            on_weight=lambda name, kernel, axis: fake_weight(kernel, axis),
            on_activation=lambda name, x: fake_activation(x, *range_of(name)),
            on_bias=on_bias,
        )
        self.depthwise = depthwise


class TrainingForward(FastForward):
    """One forward pass of training: by batch statistics, or by running ones once they are frozen.

    Kernels are rounded before BatchNorm instead of after folding. This is equivalent: each output
    channel has its own scale, and BatchNorm multiplies the scale together with the channel.
    """

    def __init__(self, spec: NetSpec, variables: dict, compute: Compute, key: jax.Array | None):
        if spec.quant is None:
            raise ValueError(f"{spec.name}: quant: got None, expected a QuantSpec")
        super().__init__(spec, variables["params"], INT8)
        self.stats, self.compute, self.key = variables["batch_stats"], compute, key
        self.depthwise, self.range_decay = compute.depthwise, spec.quant.range_decay
        self.state = self.stats["quant"]
        self.names = iter(enumerate(tensors(spec)))
        self.ranges: list[tuple[jax.Array, jax.Array]] = []
        self.moved: dict[str, dict[str, jax.Array]] = {}  # BatchNorm's path -> new statistics
        self.on = (self.state["steps"] >= spec.quant.delay_steps).astype(jnp.float32)
        self.frozen = self.state["steps"] >= spec.quant.freeze_steps
        self.on_weight = lambda name, kernel, axis: self.rounded(kernel, fake_weight(kernel, axis))
        self.on_activation = self.observed

    def rounded(self, x: jax.Array, fake: jax.Array) -> jax.Array:
        """`x` before the delay is over, then its rounded form."""
        return jnp.where(self.on > 0, fake, x)

    def observed(self, name: str, x: jax.Array) -> jax.Array:
        """Updates the range of a tensor, and rounds the tensor by it."""
        i, expected = next(self.names)
        if name != expected:
            raise AssertionError(f"got the tensor {name}, expected {expected}")
        if fixed := fixed_range(name):
            low, high = map(jnp.float32, fixed)
        else:
            old = jnp.stack([self.state["low"][i], self.state["high"][i]])
            new = jax.lax.stop_gradient(jnp.stack([jnp.min(x), jnp.max(x)]))
            rate = jnp.where(self.state["steps"] == 0, 1.0, 1 - self.range_decay)
            rate = jnp.where(self.frozen, 0.0, rate)
            low, high = old + rate * (new - old)
        self.ranges.append((low, high))
        return self.rounded(x, fake_activation(x, low, high))

    def conv(
        self, op: Convolution, x: Tensor, *, factor: float = 1.0, offset: float = 0.0
    ) -> jax.Array:
        """As `FoldedForward.conv`, with BatchNorm as a step of its own."""
        path = op.batch_norm_path
        if path is None:
            return super().conv(op, x, factor=factor, offset=offset)
        kernel = lookup(self.folded, op.path)["kernel"]
        kernel = self.on_weight(op.path, kernel / x.factor, 3)
        y = self.convolve(x.value, kernel, op.stride)
        params, stats = lookup(self.folded, path), lookup(self.stats, path)
        y, self.moved[path] = self.batch_norm(op.stage, y, params, stats)
        return y if factor == 1 else y * factor

    def batch_norm(self, stage: str, y: jax.Array, params: dict, stats: dict) -> tuple:
        """Normalises; returns the statistics after it as well."""
        eps, decay = self.spec.bn_eps, self.spec.bn_decay

        def running(y, params, stats):
            return ops.batch_norm_infer(y, **params, **stats, eps=eps), stats

        def batch(y, params, stats):
            y, mean, var = ops.batch_norm_train(y, **params, eps=eps, groups=self.compute.bn_groups)
            new = {"mean": mean, "var": var}
            return y, {k: decay * stats[k] + (1 - decay) * new[k] for k in stats}

        if stage in self.compute.frozen_bn:
            return running(y, params, stats)
        return jax.lax.cond(self.frozen, running, batch, y, params, stats)

    def residual_branch(self, op: ResidualAdd, x: jax.Array) -> jax.Array:
        if not op.drop_path:
            return x
        return ops.drop_path(x, op.drop_path, ops.block_key(self.key, op.number))

    def dropped(self, op: Dropout, x: jax.Array) -> jax.Array:
        return ops.dropout(x, op.rate, ops.dropout_key(self.key)) if op.rate else x

    def batch_stats(self) -> dict:
        """The statistics after the pass."""
        stats = jax.tree.map(lambda x: x, self.stats)
        for path, new in self.moved.items():
            insert(stats, path, new)
        low, high = (jnp.stack(values) for values in zip(*self.ranges, strict=True))
        steps = self.state["steps"] + 1
        stats["quant"] = {"low": low, "high": high, "steps": steps, "on": self.on}
        return stats


def apply(
    spec: NetSpec,
    variables: dict,
    images: jax.Array,
    *,
    stages: Sequence[str],
    train: bool,
    key: jax.Array | None,
    compute: Compute,
) -> tuple[jax.Array, dict, dict]:
    """`functional.apply_with_maps` for a network with `spec.quant`; without maps in inference."""
    if compute.dtype != "float32":
        raise ValueError(f"compute.dtype: got {compute.dtype!r}, but int8 is simulated in float32")
    if train:
        forward = TrainingForward(spec, variables, compute, key)
        logits, ends = forward.logits(images), forward.ends
        maps = {stage: ends[stage].value / ends[stage].factor for stage in stages}
        return logits, maps, forward.batch_stats()
    state, folded = variables["batch_stats"]["quant"], fold(spec, variables)

    def rounded(folded, low, high, images):
        return simulate(spec, folded, low, high, images, depthwise=compute.depthwise)

    def plain(folded, low, high, images):
        forward = FastForward(spec, folded, INT8)
        forward.depthwise = compute.depthwise
        return forward.logits(images)

    logits = jax.lax.cond(
        state["on"] > 0, rounded, plain, folded, state["low"], state["high"], images
    )
    return logits, {}, variables["batch_stats"]
