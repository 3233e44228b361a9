"""depthwise_conv and its gradients against XLA's grouped convolution."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend import core

from mbv3_jax.nn import ops

SIZES = ((9, 12), (8, 7))


def reference(x, kernel, *, stride, padding, dilation=1):
    k = kernel.shape[0]
    pads = "SAME" if padding == "same" else [(dilation * (k - 1) // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
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


def value_and_gradients(f, x, kernel):
    y, pull = jax.vjp(f, x, kernel)
    # A cotangent that differs everywhere.
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_value_and_gradients(k, stride, dilation, padding):
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    inputs = [example(k, hw) for hw in SIZES]

    @jax.jit
    def run(inputs):
        ours = functools.partial(ops.depthwise_conv, impl="shifted", **how)
        theirs = functools.partial(reference, **how)
        return [[value_and_gradients(f, *i) for i in inputs] for f in (ours, theirs)]

    got, want = run(inputs)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5)


def multiplications(jaxpr):
    """Products of single numbers in a program."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.outvars[0].aval.size if equation.primitive.name == "mul" else 0
        for inner in core.jaxprs_in_params(equation.params):
            total += multiplications(inner)
    return total


@pytest.mark.parametrize(
    "hw, taps", [((1, 1), 1), ((1, 2), 3), ((2, 2), 3 * 3), ((2, 3), 3 * 5), ((3, 3), 5 * 5)]
)
def test_taps_in_the_padding_are_not_computed(hw, taps):
    x, kernel = example(5, hw)
    how = {"stride": 1, "padding": "same"}
    f = functools.partial(ops.depthwise_conv, impl="shifted", **how)
    program = jax.make_jaxpr(functools.partial(value_and_gradients, f))(x, kernel)
    assert multiplications(program.jaxpr) == 3 * x.size * taps


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_maps_smaller_than_the_kernel(padding):
    options = [
        (example(k, hw), {"stride": stride, "padding": padding, "dilation": dilation})
        for hw in ((1, 1), (2, 3))
        for k in (2, 5)
        for stride in (1, 2)
        for dilation in (1, 2)
        if padding == "same" or k != 2 or dilation == 2  # an even reach
    ]

    def run(f):
        return [value_and_gradients(functools.partial(f, **how), *i) for i, how in options]

    ours = functools.partial(ops.depthwise_conv, impl="shifted")
    got, want = jax.jit(lambda: (run(ours), run(reference)))()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["auto", "grouped", "shifted"])
def test_every_form_gives_the_same(impl):
    x, kernel = example(5)
    how = {"stride": 2, "padding": "same"}
    got = value_and_gradients(functools.partial(ops.depthwise_conv, impl=impl, **how), x, kernel)
    want = value_and_gradients(functools.partial(reference, **how), x, kernel)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_is_summed_in_float32(stride):
    x, kernel = example(5, dtype=jnp.bfloat16)
    how = {"stride": stride, "padding": "same"}
    got = value_and_gradients(functools.partial(ops.depthwise_conv, **how), x, kernel)
    exact = value_and_gradients(
        functools.partial(reference, **how), x.astype(jnp.float32), kernel.astype(jnp.float32)
    )
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # Half a unit in the last of bfloat16's 8 bits, plus the cotangent's own rounding.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-7, atol=0.03)


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives(stride):
    x, kernel = example(3, hw=(4, 5), n=1, c=2)
    how = {"stride": stride, "padding": "same"}

    def hessians(f):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(f(x, kernel, **how)))

        def norm_of_gradients(x, kernel):
            return sum(jnp.sum(g**2) for g in jax.grad(loss, argnums=(0, 1))(x, kernel))

        return jax.jit(jax.grad(norm_of_gradients, argnums=(0, 1)))(x, kernel)

    for a, b in zip(hessians(ops.depthwise_conv), hessians(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_vmap_and_remat():
    x, kernel = example(3, n=4)
    f = functools.partial(ops.depthwise_conv, stride=2, padding="same")
    want = value_and_gradients(f, x, kernel)
    for a, b in zip(value_and_gradients(jax.checkpoint(f), x, kernel), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    kernels = jnp.stack([kernel, 2 * kernel])
    y, dx, dk = jax.vmap(functools.partial(value_and_gradients, f), in_axes=(None, 0))(x, kernels)
    for a, b in zip((y[0], dx[0], dk[0]), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y[1], 2 * want[0], rtol=1e-5, atol=1e-5)


def test_batch_on_two_devices_meets_only_in_the_kernel_gradient():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices (XLA_FLAGS=--xla_force_host_platform_device_count=2)")
    x, kernel = example(3, n=4)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("batch",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    f = functools.partial(ops.depthwise_conv, stride=2, padding="same", impl="shifted")
    step = jax.jit(
        functools.partial(value_and_gradients, f),
        in_shardings=(split, whole),
        out_shardings=(split, split, whole),
    )
    text = step.lower(x, kernel).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in text
    assert text.count(" all-reduce(") == 1
    for a, b in zip(step(x, kernel), value_and_gradients(f, x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_lowers_for_every_platform_in_one_export():
    x, kernel = example(3)
    f = functools.partial(ops.depthwise_conv, stride=2, padding="same")
    exported = export.export(
        jax.jit(functools.partial(value_and_gradients, f)), platforms=("cpu", "cuda", "tpu")
    )(x, kernel)
    got = exported.call(x, kernel)
    for a, b in zip(got, value_and_gradients(f, x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_wrong_arguments_are_named():
    x, kernel = example(3)
    with pytest.raises(ValueError, match="depthwise: got 'fast', expected one of 'auto'"):
        ops.depthwise_conv(x, kernel, stride=1, padding="same", impl="fast")
    for padding, impl in itertools.product(("valid", "SAME"), ops.DEPTHWISE_IMPLS):
        with pytest.raises(ValueError, match=f"padding: got '{padding}', expected one of 'same'"):
            ops.depthwise_conv(x, kernel, stride=1, padding=padding, impl=impl)
    with pytest.raises(ValueError, match=r"kernel \(3, 3, 1, 4\)"):
        ops.depthwise_conv(x, kernel[..., :4], stride=1, padding="same")
