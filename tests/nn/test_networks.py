"""Every registered network, forward and backward at two resolutions, against plain NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_net import Reference, random_variables

from mbv3_jax.arch import build
from mbv3_jax.nn import functional
from mbv3_jax.nn.blocks import Compute

NETWORKS = (
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "mobilenet_v3_large_minimalistic",
    "mobilenet_v3_small_minimalistic",
    "mobilenet_v2",
    "mnasnet_a1",
)
# Compiles in a fifth of the time; how fast the program runs does not matter here.
FAST_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


def images(spec, batch, seed=1):
    size = (batch, spec.resolution, spec.resolution, spec.in_channels)
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


# The gradient is held to `share` of its size. An activation within rounding of a ReLU's kink takes
# the other slope than the reference's, which moves gradients by up to a twentieth; with smooth
# nonlinearities it cannot.
CASES = [
    *((name, resolution, "paper", 0.1) for name in NETWORKS for resolution in (32, 48)),
    ("mnasnet_a1", 40, "swish", 1e-3),
]


@pytest.mark.parametrize(("name", "resolution", "nonlinearity", "share"), CASES)
def test_forward_and_backward(name, resolution, nonlinearity, share):
    """In training: logits, statistics, and the gradient along a random direction."""
    # With the usual epsilon, channels that barely vary over 12 images amplify rounding.
    options = {"num_classes": 7, "dropout": 0.0, "bn_eps": 0.1, "nonlinearity": nonlinearity}
    spec = build(name, width=0.35, resolution=resolution, **options)
    variables = random_variables(functional.shapes(spec))
    x = images(spec, batch=12)
    weights = np.random.default_rng(2).standard_normal((12, 7)).astype(np.float32)

    def loss(params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        how = Compute(depthwise="grouped")
        logits, new_stats = functional.apply(spec, variables, x, train=True, compute=how)
        return jnp.sum(weights * logits), (logits, new_stats)

    args = (variables["params"], variables["batch_stats"], x)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*args)
    (_, (logits, stats)), gradients = step.compile(compiler_options=FAST_COMPILE)(*args)

    reference = Reference(spec, variables, x, train=True)
    scale = np.abs(reference.logits).max()
    np.testing.assert_allclose(logits, reference.logits, atol=1e-4 * scale, rtol=0)
    for layer, expected in reference.batch_stats.items():
        got = functools.reduce(lambda tree, key: tree[key], layer.split("/"), stats)["bn"]
        for kind in ("mean", "var"):
            np.testing.assert_allclose(got[kind], expected[kind], rtol=1e-4, atol=1e-4)

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.any(gradient), jax.tree_util.keystr(path)
    direction = random_variables(functional.shapes(spec)["params"], seed=3)

    def moved(amount):
        params = jax.tree.map(lambda p, d: p + amount * np.float64(d), args[0], direction)
        there = {"params": params, "batch_stats": args[1]}
        return (weights * Reference(spec, there, x, train=True).logits).sum()

    by_differences = (moved(1e-6) - moved(-1e-6)) / 2e-6
    products = jax.tree.map(lambda g, d: np.vdot(np.float64(g), d), gradients, direction)
    by_gradient = sum(jax.tree.leaves(products))
    size = math.sqrt(sum(p**2 for p in jax.tree.leaves(products)))
    print(abs(by_gradient - by_differences) / size)
    assert by_gradient == pytest.approx(by_differences, abs=share * size)


@pytest.mark.parametrize("resolution", [96, 224])
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_at_full_width(name, resolution):
    spec = build(name, resolution=resolution)
    variables = functional.shapes(spec)
    x = jax.ShapeDtypeStruct((2, resolution, resolution, 3), "float32")
    logits, stats = jax.eval_shape(
        lambda v, x: functional.apply(spec, v, x, train=True, key=jax.random.key(0)), variables, x
    )
    assert (logits.shape, logits.dtype) == ((2, 1000), "float32")
    assert stats == variables["batch_stats"]
