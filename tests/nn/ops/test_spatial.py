"""Dense and 1x1 convolutions against XLA's convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.nn import ops


def reference(x, kernel, *, stride=1, padding="same"):
    k = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME" if padding == "same" else [((k - 1) // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def value_and_gradients(f, *args):
    y, pull = jax.vjp(f, *args)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


def example(k, inputs, out, hw=(8, 9)):
    keys = jax.random.split(jax.random.key(k), 2)
    x = jax.random.normal(keys[0], (2, *hw, inputs))
    return x, jax.random.normal(keys[1], (k, k, inputs, out))


@pytest.mark.parametrize("k, inputs", [(3, 3), (3, 4), (5, 3), (1, 3)])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv(k, inputs, stride, padding):
    x, kernel = example(k, inputs, 4)
    how = {"stride": stride, "padding": padding}
    got = value_and_gradients(functools.partial(ops.conv, **how), x, kernel)
    want = value_and_gradients(functools.partial(reference, **how), x, kernel)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5)


def test_pointwise_conv():
    x, kernel = example(1, 6, 5)
    got = value_and_gradients(ops.pointwise_conv, x, kernel)
    want = value_and_gradients(reference, x, kernel)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    bias = jnp.arange(5.0)
    np.testing.assert_allclose(
        ops.pointwise_conv(x, kernel, bias), want[0] + bias, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("f, k", [(ops.pointwise_conv, 1), (ops.conv, 3)])
def test_second_derivatives(f, k):
    x, kernel = example(k, 3, 2, hw=(4, 4))
    how = {} if k == 1 else {"stride": 2, "padding": "same"}

    def norm(f):
        def loss(*args):
            return jnp.sum(jnp.sin(f(*args, **how)))

        return lambda *a: sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(*a))

    got, want = (jax.grad(norm(g), (0, 1))(x, kernel) for g in (f, reference))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)  # values reach 100


def test_bfloat16_sums_in_float32():
    x = jnp.full((1, 1, 1, 4096), 1, jnp.bfloat16)
    kernel = jnp.full((1, 1, 4096, 1), 1, jnp.bfloat16)
    y = ops.pointwise_conv(x, kernel)
    assert y.dtype == jnp.bfloat16 and y.item() == 4096  # in bfloat16, 256 + 1 is 256


def test_wrong_shapes_are_named():
    x, kernel = example(3, 3, 4)
    with pytest.raises(ValueError, match=r"pointwise_conv: got x .* kernel \(3, 3, 3, 4\)"):
        ops.pointwise_conv(x, kernel)
    with pytest.raises(ValueError, match=r"conv: got x .* kernel \(3, 3, 2, 4\)"):
        ops.conv(x, kernel[:, :, :2], stride=1, padding="same")
