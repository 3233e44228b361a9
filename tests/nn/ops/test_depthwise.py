"""depthwise_conv against XLA's grouped convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.nn import ops


def reference(x, kernel, stride, padding, dilation):
    k = kernel.shape[0]
    pads = "SAME" if padding == "same" else [(dilation * (k - 1) // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
        x.astype(jnp.float32),
        kernel.astype(jnp.float32),
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def example(k, hw=(9, 12), n=2, c=5, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(k), 2)
    x = jax.random.normal(keys[0], (n, *hw, c)).astype(dtype)
    return x, jax.random.normal(keys[1], (k, k, 1, c)).astype(dtype)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_value(k, stride, dilation, padding):
    x, kernel = example(k)
    want = reference(x, kernel, stride, padding, dilation)
    for impl in ops.DEPTHWISE_IMPLS:
        got = ops.depthwise_conv(
            x, kernel, stride=stride, padding=padding, dilation=dilation, impl=impl
        )
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_unknown_options_are_named():
    x, kernel = example(3)
    with pytest.raises(ValueError, match="depthwise: got 'fast', expected one of 'auto'"):
        ops.depthwise_conv(x, kernel, stride=1, padding="same", impl="fast")
    with pytest.raises(ValueError, match="padding: got 'valid', expected one of 'same'"):
        ops.depthwise_conv(x, kernel, stride=1, padding="valid")
