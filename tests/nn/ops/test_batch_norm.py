"""BatchNorm against the formula in float64 and against autodiff of the plain formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.nn import ops

EPS = 1e-3


def plain(x, scale, bias, *, act=None):
    mean, var = jnp.mean(x, axis=(0, 1, 2)), jnp.var(x, axis=(0, 1, 2))
    y = (x - mean) / jnp.sqrt(var + EPS) * scale + bias
    return act(y) if act else y, mean, var


def example(n=4, hw=(5, 3), c=6, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    x = 2 * jax.random.normal(keys[0], (n, *hw, c)) + 1
    return x.astype(dtype), jax.random.normal(keys[1], (c,)), jax.random.normal(keys[2], (c,))


def weighted(f):
    """A scalar of all three results, with weights that differ everywhere."""

    def loss(*args):
        return sum(jnp.sum(o * jnp.cos(jnp.arange(o.size).reshape(o.shape))) for o in f(*args))

    return loss


@pytest.mark.parametrize("act", [None, jax.nn.relu, jax.nn.hard_swish, jax.nn.silu])
def test_values_and_gradients(act):
    args = example()
    ours = functools.partial(ops.batch_norm_train, eps=EPS, act=act)
    for a, b in zip(ours(*args), plain(*args, act=act), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    got = jax.grad(weighted(ours), argnums=(0, 1, 2))(*args)
    want = jax.grad(weighted(functools.partial(plain, act=act)), argnums=(0, 1, 2))(*args)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_second_derivatives():
    args = example(n=2, hw=(2, 2), c=3)

    def norm(f):
        return lambda *a: sum(jnp.sum(g**2) for g in jax.grad(weighted(f), (0, 1, 2))(*a))

    ours = functools.partial(ops.batch_norm_train, eps=EPS, act=jax.nn.silu)
    got = jax.grad(norm(ours), (0, 1, 2))(*args)
    want = jax.grad(norm(functools.partial(plain, act=jax.nn.silu)), (0, 1, 2))(*args)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_variance_survives_a_large_mean():
    x = 1000 + np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype(np.float32)
    _, mean, var = ops.batch_norm_train(jnp.asarray(x), jnp.ones(2), jnp.zeros(2), eps=EPS)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)


def test_bfloat16_input_has_float32_statistics():
    x, scale, bias = example(dtype=jnp.bfloat16)
    y, mean, var = ops.batch_norm_train(x, scale, bias, eps=EPS)
    want = plain(x.astype(jnp.float32), scale, bias)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(mean, want[1], rtol=1e-6)
    np.testing.assert_allclose(var, want[2], rtol=1e-5)
    np.testing.assert_allclose(y.astype(jnp.float32), want[0], rtol=2**-8, atol=1e-3)
    dx, dscale, _ = jax.grad(
        lambda *a: jnp.sum(ops.batch_norm_train(*a, eps=EPS)[0].astype(jnp.float32) ** 2), (0, 1, 2)
    )(x, scale, bias)
    assert (dx.dtype, dscale.dtype) == (jnp.bfloat16, jnp.float32)


def test_groups_are_normalised_apart():
    x, scale, bias = example()
    y, mean, var = ops.batch_norm_train(x, scale, bias, eps=EPS, groups=2)
    first, second = (plain(half, scale, bias) for half in (x[:2], x[2:]))
    np.testing.assert_allclose(y, jnp.concatenate([first[0], second[0]]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean, (first[1] + second[1]) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, (first[2] + second[2]) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="bn_groups: got 3 for a batch of 4"):
        ops.batch_norm_train(x, scale, bias, eps=EPS, groups=3)


def test_inference_uses_the_statistics_it_is_given():
    x, scale, bias = example()
    mean, var = jnp.arange(6.0), 1 + jnp.arange(6.0)
    y = ops.batch_norm_infer(x, scale, bias, mean, var, eps=EPS)
    want = (x - mean) / jnp.sqrt(var + EPS) * scale + bias
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups, reductions", [(1, True), (2, False)])
def test_two_devices_exchange_sums_only(groups, reductions):
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices (XLA_FLAGS=--xla_force_host_platform_device_count=2)")
    x, scale, bias = example()
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("batch",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    f = functools.partial(ops.batch_norm_train, eps=EPS, groups=groups)
    step = jax.jit(lambda x: f(x, scale, bias)[0], in_shardings=split, out_shardings=split)
    text = step.lower(x).compile().as_text()
    assert (" all-reduce(" in text) == reductions
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in text
    np.testing.assert_allclose(step(x), f(x, scale, bias)[0], rtol=1e-5, atol=1e-6)
