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
from mbv3_jax.nn.modules import Compute

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


def train_step(spec, variables, x, weights):
    """Logits, new statistics, and gradients of sum(weights * logits)."""

    def loss(params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        how = Compute(depthwise="grouped")
        logits, new_stats = functional.apply(spec, variables, x, train=True, compute=how)
        return jnp.sum(weights * logits), (logits, new_stats)

    args = (variables["params"], variables["batch_stats"], x)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*args)
    (_, (logits, stats)), gradients = step.compile(compiler_options=FAST_COMPILE)(*args)
    return logits, stats, gradients


def example(name, resolution, **options):
    """A thin network, its variables, 12 images and the weights of their logits.

    With the usual epsilon, channels that barely vary over so few images amplify rounding.
    """
    options |= {"width": 0.35, "num_classes": 7, "dropout": 0.0, "bn_eps": 0.1}
    spec = build(name, resolution=resolution, **options)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, resolution, resolution, 3)).astype(np.float32)
    weights = rng.standard_normal((12, 7)).astype(np.float32)
    return spec, random_variables(functional.shapes(spec)), x, weights


@pytest.mark.parametrize("resolution", [32, 48])
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_backward(name, resolution):
    spec, variables, x, weights = example(name, resolution)
    logits, stats, gradients = train_step(spec, variables, x, weights)

    reference = Reference(spec, variables, x, train=True)
    scale = np.abs(reference.logits).max()
    np.testing.assert_allclose(logits, reference.logits, atol=1e-4 * scale, rtol=0)
    for layer, expected in reference.batch_stats.items():
        got = functools.reduce(lambda tree, key: tree[key], layer.split("/"), stats)["bn"]
        for kind in ("mean", "var"):
            np.testing.assert_allclose(got[kind], expected[kind], rtol=1e-4, atol=1e-4)

    assert jax.tree.structure(gradients) == jax.tree.structure(variables["params"])
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.any(gradient), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mnasnet_a1"])
def test_gradient_along_a_random_direction(name):
    """With a smooth nonlinearity: an activation within rounding of a ReLU's kink would take the
    other slope than the reference's, and with so few pixels one such slope counts."""
    spec, variables, x, weights = example(name, 40, nonlinearity="swish")
    _, _, gradients = train_step(spec, variables, x, weights)
    direction = random_variables(functional.shapes(spec)["params"], seed=3)

    def moved(amount):
        params = jax.tree.map(
            lambda p, d: p + amount * np.float64(d), variables["params"], direction
        )
        there = {"params": params, "batch_stats": variables["batch_stats"]}
        return (weights * Reference(spec, there, x, train=True).logits).sum()

    by_differences = (moved(1e-6) - moved(-1e-6)) / 2e-6
    products = jax.tree.map(lambda g, d: np.vdot(np.float64(g), d), gradients, direction)
    size = math.sqrt(sum(p**2 for p in jax.tree.leaves(products)))
    by_gradient = sum(jax.tree.leaves(products))
    assert by_gradient == pytest.approx(by_differences, abs=1e-3 * size)


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
