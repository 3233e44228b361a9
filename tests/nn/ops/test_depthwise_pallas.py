"""The Pallas kernels against XLA's grouped convolution.

They are interpreted, which takes seconds to compile: few and tiny shapes.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.nn import ops
from mbv3_jax.nn.activations import ACTIVATIONS

pallas_conv = functools.partial(ops.depthwise_conv, impl="pallas")
grouped_conv = functools.partial(ops.depthwise_conv, impl="grouped")


def example(k, hw=(5, 9), n=2, c=3, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(k), 2)
    x = jax.random.normal(keys[0], (n, *hw, c)).astype(dtype)
    return x, jax.random.normal(keys[1], (k, k, 1, c)).astype(dtype)


def value_and_gradients(f, x, kernel):
    y, pull = jax.vjp(f, x, kernel)
    # A cotangent that differs everywhere.
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


def assert_close(got, want, *, rtol=1e-5, atol=3e-5):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=rtol, atol=atol)


# Sizes: a full tile and more, odd and even ones, less than a tile; maps of one or two pixels meet
# a part of the taps only. 70 channels are two blocks, of which one is not full. bfloat16: half a
# unit in the last of its 8 bits, and the cotangent's own rounding.
@pytest.mark.parametrize(
    "k, stride, dilation, padding, hw, channels, dtype",
    [
        (3, 1, 1, "same", (5, 9), 3, "float32"),
        (3, 2, 2, "symmetric", (11, 8), 3, "bfloat16"),
        (5, 2, 1, "same", (2, 17), 70, "float32"),
        (7, 1, 1, "symmetric", (4, 1), 3, "float32"),
    ],
)
def test_value_and_gradients(k, stride, dilation, padding, hw, channels, dtype):
    how = {"stride": stride, "dilation": dilation, "padding": padding}
    x, kernel = example(k, hw, c=channels, dtype=dtype)
    run = jax.jit(value_and_gradients, static_argnums=0)
    got = run(functools.partial(pallas_conv, **how), x, kernel)
    assert {a.dtype for a in got} == {x.dtype}
    exact = run(
        functools.partial(grouped_conv, **how), x.astype(jnp.float32), kernel.astype(jnp.float32)
    )
    tolerance = {"rtol": 2**-7, "atol": 0.03} if dtype == "bfloat16" else {}
    assert_close(got, exact, **tolerance)


def test_second_derivatives():
    x, kernel = example(3, (3, 2), n=1, c=2)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients_of_gradients(f, x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(f(x, kernel, stride=2, padding="same")))

        def norm(x, kernel):
            return sum(jnp.sum(g**2) for g in jax.grad(loss, argnums=(0, 1))(x, kernel))

        return jax.grad(norm, argnums=(0, 1))(x, kernel)

    got, want = (gradients_of_gradients(f, x, kernel) for f in (pallas_conv, grouped_conv))
    assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_nested_vmap_and_remat():
    x, kernel = example(3, (3, 1))
    factors = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    @functools.partial(jax.jit, static_argnums=0)
    def run(f, x):
        one = functools.partial(value_and_gradients, jax.checkpoint(f))
        over_kernels = jax.vmap(lambda factor: one(x, factor * kernel))
        return jax.vmap(over_kernels)(factors)

    how = {"stride": 1, "padding": "same"}
    got, want = (run(functools.partial(f, **how), x) for f in (pallas_conv, grouped_conv))
    assert_close(got, want)


def test_batch_on_two_devices_meets_only_in_the_kernel_gradient():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices (XLA_FLAGS=--xla_force_host_platform_device_count=2)")
    x, kernel = example(3, (3, 4), n=4)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("batch",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    how = {"stride": 2, "padding": "same"}
    step = jax.jit(
        functools.partial(value_and_gradients, functools.partial(pallas_conv, **how)),
        in_shardings=(split, whole),
        out_shardings=(split, split, whole),
    )
    compiled = step.lower(x, kernel).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in text
    assert text.count(" all-reduce(") == 1
    # A wrong sum over devices would be off by a factor.
    want = value_and_gradients(functools.partial(grouped_conv, **how), x, kernel)
    got = compiled(jax.device_put(x, split), jax.device_put(kernel, whole))
    assert_close(got, want)


def test_shard_map():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices (XLA_FLAGS=--xla_force_host_platform_device_count=2)")
    x, kernel = example(3, (3, 4), n=4)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("batch",))
    batch, whole = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    f = functools.partial(pallas_conv, stride=2, padding="same")
    y = jax.shard_map(f, mesh=mesh, in_specs=(batch, whole), out_specs=batch, check_vma=False)(
        x, kernel
    )
    assert_close([y], [grouped_conv(x, kernel, stride=2, padding="same")])


def affine(channels):
    return jnp.linspace(0.5, 1.5, channels), jnp.linspace(-4, 4, channels)


@pytest.mark.parametrize("act", ["h_swish", None])
def test_affine_and_nonlinearity_in_the_kernel(act):
    x, kernel = example(3, (3, 4))
    how = {"stride": 1, "padding": "same", "act": ACTIVATIONS.get(act)}
    got, want = (
        jax.jit(functools.partial(ops.depthwise_conv_affine, impl=impl, **how))(
            x, kernel, *affine(3)
        )
        for impl in ("pallas", "grouped")
    )
    assert_close([got], [want])


def test_gradients_through_affine():
    x, kernel = example(3, (2, 1))

    @functools.partial(jax.jit, static_argnums=0)
    def run(impl):
        how = {"stride": 2, "padding": "same", "act": ACTIVATIONS["swish"], "impl": impl}
        y, pull = jax.vjp(
            functools.partial(ops.depthwise_conv_affine, **how), x, kernel, *affine(3)
        )
        return pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    assert_close(run("pallas"), run("grouped"))


def lowered_for(platform, impl="pallas"):
    x, kernel = example(5, (14, 14), n=8, c=72, dtype=jnp.bfloat16)

    def f(x, kernel):
        how = {"stride": 2, "padding": "same", "impl": impl}
        acts = [
            ops.depthwise_conv_affine(x, kernel, *affine(72), act=act, **how)
            for act in ACTIVATIONS.values()
        ]
        return acts, value_and_gradients(functools.partial(ops.depthwise_conv, **how), x, kernel)

    return jax.jit(f).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


def test_lowers_for_cuda_as_triton_kernels():
    text = lowered_for("cuda")
    names = re.findall(r'xla\.gpu\.triton.*?name = "(\w+)"', text, flags=re.DOTALL)
    assert sorted(names) == ["depthwise_correlate"] * 6 + ["depthwise_kernel_gradient"]
    assert "stablehlo.convolution" not in text


def test_lowers_for_tpu_as_the_grouped_convolution():
    text = lowered_for("tpu")
    assert "triton" not in text and text.count("stablehlo.convolution") == 7
    assert "triton" not in lowered_for("cuda", "auto")
