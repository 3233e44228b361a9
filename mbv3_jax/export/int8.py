"""Full-integer TFLite files with the scales that simulated int8 has.

Between a custom call that quantizes and one that dequantizes, litert-converter makes integer
arithmetic of what is computed in float. The two are written at every tensor that an int8 runtime
stores (`nn.folded`) and around every kernel, with our scales: the file computes what `nn.quantized`
simulates.
"""

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from mbv3_jax.export import tflite
from mbv3_jax.nn import quantized
from mbv3_jax.nn.folded import INT8, apply_folded
from mbv3_jax.quant.network import Int8Network


def to_int8_tflite(network: Int8Network, *, batch: int = 1) -> bytes:
    """The TFLite file of an int8 network.

    Args:
      network: folded weights and ranges.
      batch: images at once.

    Returns:
      The file: int8 images [batch, R, R, channels] to int8 logits [batch, num_classes]; both
      tensors of the file have scale and zero point.

    Raises:
      UsageError: litert-converter is not installed.
    """
    spec, ranges, kernel_scales = network.spec, network.ranges(), {}

    def scale_of(name):
        return quantized.activation_scale(*map(np.float32, ranges[name]), xp=np)

    def on_activation(name, x):
        scale, zero = scale_of(name)
        return _as_int8(x, (float(scale),), (int(zero),), None)

    def on_weight(name, kernel, axis):
        integers, scale = quantized.quantize_weight(kernel, axis, np)
        kernel_scales[name] = scale
        scales = tuple(np.atleast_1d(scale).tolist())
        return _as_int8(integers * scale, scales, (0,) * len(scales), axis)

    def on_bias(name, bias, inputs, kernel):
        return _unequal(bias, scale_of(inputs)[0] * kernel_scales[name])

    def run(images):
        return apply_folded(
            spec,
            network.folded,
            images,
            forms=INT8,
            on_activation=on_activation,
            on_weight=on_weight,
            on_bias=on_bias,
        )

    shape = (batch, spec.resolution, spec.resolution, spec.in_channels)
    return tflite.to_tflite(run, jax.ShapeDtypeStruct(shape, "float32"), quantized=True)


def _unequal(bias: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """A bias [channels] whose values are not all the same, by a quarter of its unit at most.

    The converter keeps one number of a bias of equal values, and gives it the scale of the first
    channel.
    """
    if len(bias) < 2 or np.any(bias != bias[0]):
        return bias
    unequal = np.array(bias)
    unequal[-1] += max(unit[-1] / 4, 2 * np.spacing(np.abs(bias[-1])))
    return unequal


_as_int8_p = Primitive("as_int8")


def _as_int8(x, scales: tuple, zeros: tuple, axis: int | None):
    """`x` as int8 with one scale, or one for each channel along `axis`."""
    return _as_int8_p.bind(x, scales=scales, zeros=zeros, axis=axis)


_as_int8_p.def_abstract_eval(lambda x, **_: x)


def _lower(context, x, *, scales, zeros, axis):
    (aval,) = context.avals_in
    size = "x".join(map(str, aval.shape))
    pairs = ",".join(f"{scale!r}:{zero}" for scale, zero in zip(scales, zeros, strict=True))
    # Without bounds the type is -128 to 127; kernels use -127 to 127 of it.
    kind = pairs if axis is None else f"{axis},{{{pairs}}}"
    joined = "," if axis is None else ":"
    integers = f"tensor<{size}x!quant.uniform<i8:f32{joined}{kind}>>"
    attribute = ir.StringAttr.get(integers)
    stored = stablehlo.custom_call([x.type], [x], tflite.QUANTIZE, backend_config=attribute)
    return [stablehlo.custom_call([x.type], [stored], tflite.DEQUANTIZE)]


mlir.register_lowering(_as_int8_p, _lower)
