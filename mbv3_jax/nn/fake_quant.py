"""The network in simulated int8: what training sees of the integers of a phone.

The arithmetic is TFLite's (its quantization specification): kernels int8, symmetric, a scale for
each output channel, -127 to 127; activations int8, a scale and a zero point for each tensor;
biases int32 of the scale (input's times kernel's). Gradients pass rounding as if it were not there,
and stop where a value is clipped (Jacob et al. 2018, arXiv:1712.05877).

A network with `spec.quant` is computed like this, in training and evaluation alike. Its state
travels in `batch_stats["quant"]`: low and high [tensors], the range of every tensor of `tensors`,
an exponential moving average of batch minima and maxima; `steps`, the batches trained on so far;
`on`, above 0 once they are rounded. Both of these are float32, so that a moving average of the
weights may average them too; an average of `on` is above 0 as soon as one of its values was.
"""

import functools

import jax
import jax.numpy as jnp

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.nn import ops
from mbv3_jax.nn.folded import INT8, Walk, apply_folded, fold

LOWEST, HIGHEST = -128, 127
# What a tensor can be, by the last part of its name; TFLite prescribes the scale of a sigmoid.
FIXED_RANGES = {"relu6": (0.0, 6.0), "sigmoid": (0.0, 255 / 256)}
_SMALLEST = 1e-8  # scale of a tensor that is always zero


def weight_scale(kernel: jax.Array, axis: int | None = 3, xp=jnp) -> jax.Array:
    """The scale of each channel along `axis` [channels], or one []: largest magnitude / 127.

    `xp` is `numpy` for NumPy arrays that are known, here and below; the bits are the same.
    """
    axes = None if axis is None else tuple(i for i in range(kernel.ndim) if i != axis)
    # Times the inverse: XLA makes this of a division by a constant anyway, where it compiles it.
    return xp.maximum(xp.max(xp.abs(kernel), axis=axes) * (1 / HIGHEST), _SMALLEST)


def quantize_weight(kernel: jax.Array, axis: int | None = 3, xp=jnp) -> tuple:
    """Integers -127 to 127 in the shape of `kernel` (last axis: channels), and their scale."""
    scale = weight_scale(kernel, axis, xp)
    return xp.clip(xp.round(kernel / scale), -HIGHEST, HIGHEST), scale


def fake_weight(kernel: jax.Array, axis: int | None = 3) -> jax.Array:
    """The kernel as int8 has it, float32; the gradient passes."""
    integers, scale = quantize_weight(jax.lax.stop_gradient(kernel), axis)
    return kernel + jax.lax.stop_gradient(integers * scale - kernel)


def activation_scale(low: jax.Array, high: jax.Array, xp=jnp) -> tuple:
    """Scale and zero point (a whole float32) for values from `low` to `high`, and for 0."""
    low, high = xp.minimum(low, 0), xp.maximum(high, 0)
    scale = xp.maximum((high - low) * (1 / (HIGHEST - LOWEST)), _SMALLEST)
    return scale, xp.clip(xp.round(LOWEST - low / scale), LOWEST, HIGHEST)


def fake_activation(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """`x` as int8 has it, float32; the gradient passes where nothing is clipped."""
    scale, zero = activation_scale(*jax.lax.stop_gradient((low, high)))
    clipped = jnp.clip(x, (LOWEST - zero) * scale, (HIGHEST - zero) * scale)
    integers = jnp.clip(jnp.round(x / scale) + zero, LOWEST, HIGHEST)
    return clipped + jax.lax.stop_gradient((integers - zero) * scale - clipped)


@functools.lru_cache(maxsize=64)
def tensors(spec: NetSpec) -> tuple[str, ...]:
    """The names of all int8 tensors, in the order in which they are computed."""
    from mbv3_jax.nn import functional

    names = []

    def note(name, x):
        names.append(name)
        return x

    images = jax.ShapeDtypeStruct((1, spec.resolution, spec.resolution, spec.in_channels), "f4")

    def run(variables, images):
        return apply_folded(spec, fold(spec, variables), images, forms=INT8, on_activation=note)

    jax.eval_shape(run, functional.shapes(spec.replace(quant=None)), images)
    return tuple(names)


def state_shapes(spec: NetSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """What `batch_stats["quant"]` holds."""
    many, one = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((len(tensors(spec)),), ()))
    return {"low": many, "high": many, "steps": one, "on": one}


def simulate(
    spec: NetSpec,
    folded: dict,
    low: jax.Array,
    high: jax.Array,
    images: jax.Array,
    *,
    depthwise: str = "auto",
) -> jax.Array:
    """Runs a folded network as int8 would.

    Args:
      spec: the network.
      folded: from `folded.fold`.
      low: [tensors], see `tensors`.
      high: [tensors].
      images: normalised [N, H, W, in_channels].
      depthwise: form of the depthwise convolution.

    Returns:
      Float32 logits [N, num_classes], whole multiples of their scale.
    """
    return Simulated(spec, folded, low, high, depthwise).logits(images)


class Simulated(Walk):
    """One pass in simulated int8, convolutions in the forms that are fast here."""

    def __init__(self, spec, folded, low, high, depthwise="auto"):
        super().__init__(spec, folded, INT8, lambda name, kernel, axis: fake_weight(kernel, axis))
        index = {name: i for i, name in enumerate(tensors(spec))}
        self.on_activation = lambda name, x: fake_activation(x, low[index[name]], high[index[name]])
        self.on_bias = functools.partial(
            self._bias, lambda name: (low[index[name]], high[index[name]])
        )
        self.depthwise = depthwise

    @staticmethod
    def _bias(range_of, name, bias, inputs, kernel):
        # Rounding a kernel again gives the same scale: its largest magnitude is a multiple of it.
        unit = activation_scale(*range_of(inputs))[0] * weight_scale(kernel)
        return bias + jax.lax.stop_gradient(jnp.round(bias / unit) * unit - bias)

    def convolve(self, x, kernel, stride):
        return convolve(self.spec, x, kernel, stride, self.depthwise)


def convolve(spec: NetSpec, x: jax.Array, kernel: jax.Array, stride: int, depthwise: str):
    """Any convolution of the network, by its kernel, in the form that training uses."""
    how = {"stride": stride, "padding": spec.padding}
    if kernel.shape[2] != x.shape[3]:
        return ops.depthwise_conv(x, kernel, impl=depthwise, **how)
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return ops.pointwise_conv(x, kernel)
    return ops.conv(x, kernel, **how)


class Training(Walk):
    """One pass of training: by batch statistics, or by running ones once they are frozen.

    Kernels are rounded before BatchNorm instead of after folding. That is the same: each output
    channel has its own scale, which BatchNorm's factor multiplies along with the channel.
    """

    def __init__(self, spec, variables, compute, key):
        params, stats = variables["params"], variables["batch_stats"]
        state, quant = stats["quant"], spec.quant
        super().__init__(spec, params, INT8)
        self.stats, self.compute, self.key = stats, compute, key
        self.names = iter(enumerate(tensors(spec)))
        self.state, self.ranges, self.moved = state, [], {}
        self.on = (state["steps"] >= quant.delay_steps).astype(jnp.float32)
        self.frozen = state["steps"] >= quant.freeze_steps
        self.on_weight = lambda name, kernel, axis: self.rounded(kernel, fake_weight(kernel, axis))
        self.on_activation = self.observed

    def rounded(self, x, fake):
        """`x` before the delay is over, then its rounded form."""
        return jnp.where(self.on > 0, fake, x)

    def observed(self, name, x):
        """Moves the range of a tensor, and rounds the tensor by it."""
        i, expected = next(self.names)
        if name != expected:
            raise AssertionError(f"{name} came where {expected} was due")
        kind = name.rpartition("/")[2]
        if kind in FIXED_RANGES:
            low, high = map(jnp.float32, FIXED_RANGES[kind])
        else:
            old = jnp.stack([self.state["low"][i], self.state["high"][i]])
            new = jax.lax.stop_gradient(jnp.stack([jnp.min(x), jnp.max(x)]))
            rate = jnp.where(self.state["steps"] == 0, 1.0, 1 - self.spec.quant.range_decay)
            rate = jnp.where(self.frozen, 0.0, rate)
            low, high = old + rate * (new - old)
        self.ranges.append((low, high))
        return self.rounded(x, fake_activation(x, low, high))

    def conv(self, name, x, *, stride=1, factor=1.0, offset=0.0):
        """As `Walk.conv`, BatchNorm apart."""
        layer, _, last = name.rpartition("/")
        if last != "conv":  # of the head, the logits, squeeze-and-excite: a bias, no BatchNorm
            return super().conv(name, x, stride=stride, factor=factor, offset=offset)
        params, stats = self.folded, self.stats
        for part in layer.split("/"):
            params, stats = params[part], stats[part]
        kernel = self.on_weight(name, params["conv"]["kernel"] / x.factor, 3)
        y = self.convolve(x.value, kernel, stride)
        y, self.moved[layer] = self.batch_norm(layer, y, params["bn"], stats["bn"])
        return y if factor == 1 else y * factor

    def batch_norm(self, layer, y, params, stats):
        """Normalises; returns the statistics after it as well."""
        spec = self.spec

        def running(y, params, stats):
            return ops.batch_norm_infer(y, **params, **stats, eps=spec.bn_eps), stats

        def batch(y, params, stats):
            groups = self.compute.bn_groups
            y, mean, var = ops.batch_norm_train(y, **params, eps=spec.bn_eps, groups=groups)
            new = {"mean": mean, "var": var}
            decay = spec.bn_decay
            return y, {k: decay * stats[k] + (1 - decay) * new[k] for k in stats}

        if layer.split("/")[0] in self.compute.frozen_bn:
            return running(y, params, stats)
        return jax.lax.cond(self.frozen, running, batch, y, params, stats)

    def convolve(self, x, kernel, stride):
        return convolve(self.spec, x, kernel, stride, self.compute.depthwise)

    def before_shortcut(self, index, x):
        from mbv3_jax.nn.modules import drop_path

        rate = self.spec.drop_path * index / max(len(self.spec.blocks) - 1, 1)
        return drop_path(x, rate, jax.random.fold_in(self.key, index + 1)) if rate else x

    def before_logits(self, x):
        rate = self.spec.dropout
        if not rate:
            return x
        keep = jax.random.bernoulli(jax.random.fold_in(self.key, 0), 1 - rate, x.value.shape)
        value = jnp.where(keep, x.value / (1 - rate), 0)
        return type(x)(x.name, value, x.factor)

    def batch_stats(self):
        """The statistics after the pass."""
        stats = jax.tree.map(lambda x: x, self.stats)
        for layer, new in self.moved.items():
            node = stats
            for part in layer.split("/"):
                node = node[part]
            node["bn"] = new
        low, high = (jnp.stack(values) for values in zip(*self.ranges, strict=True))
        steps = self.state["steps"] + 1
        stats["quant"] = {"low": low, "high": high, "steps": steps, "on": self.on}
        return stats


def apply(spec, variables, images, *, train, key, compute) -> tuple[jax.Array, dict]:
    """`functional.apply` for a network with `spec.quant`."""
    if compute.dtype != "float32":
        raise ValueError(f"compute.dtype: got {compute.dtype!r}, but int8 is simulated in float32")
    if train:
        if key is None and (spec.dropout or spec.drop_path):
            raise ValueError("key: training with dropout or drop_path needs a random key")
        walk = Training(spec, variables, compute, key)
        return walk.logits(images), walk.batch_stats()
    state, folded = variables["batch_stats"]["quant"], fold(spec, variables)

    def rounded(folded, low, high, images):
        return simulate(spec, folded, low, high, images, depthwise=compute.depthwise)

    def plain(folded, low, high, images):
        walk = Walk(spec, folded, INT8)
        walk.convolve = lambda x, k, stride: convolve(spec, x, k, stride, compute.depthwise)
        return walk.logits(images)

    logits = jax.lax.cond(
        state["on"] > 0, rounded, plain, folded, state["low"], state["high"], images
    )
    return logits, variables["batch_stats"]
