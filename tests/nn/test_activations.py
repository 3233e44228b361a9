"""Nonlinearities and gates: values, and gradients at and beside their kinks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.arch.activations import ACTIVATIONS, GATES

FUNCTIONS = ACTIVATIONS | GATES
KINKS = {"relu": [0], "relu6": [0, 6], "h_swish": [-3, 3], "hard_sigmoid": [-3, 3]}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Value and derivative away from the kinks, in float64.
EXPECTED = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0)),
    "relu6": (lambda x: np.clip(x, 0, 6), lambda x: 1.0 * ((x > 0) & (x < 6))),
    "swish": (
        lambda x: x * sigmoid(x),
        lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    ),
    "h_swish": (
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        lambda x: np.where(np.abs(x) < 3, (2 * x + 3) / 6, x > 3),
    ),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
    "hard_sigmoid": (lambda x: np.clip(x + 3, 0, 6) / 6, lambda x: (np.abs(x) < 3) / 6),
}


def gradient(name, x):
    return jax.vmap(jax.grad(FUNCTIONS[name]))(jnp.asarray(x, jnp.float32))


def test_every_function_is_checked():
    assert set(ACTIVATIONS) == {"relu", "relu6", "h_swish", "swish"}
    assert set(GATES) == {"hard_sigmoid", "sigmoid"}
    assert set(FUNCTIONS) == set(EXPECTED)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_slopes(name):
    # Quarters from -10 to 10, shifted by an eighth: never on a kink, exact in float32.
    x = np.arange(-10, 10, 0.25) + 0.125
    value, slope = EXPECTED[name]
    np.testing.assert_allclose(FUNCTIONS[name](jnp.float32(x)), value(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient(name, x), slope(x), rtol=1e-5, atol=1e-5)
    at_kinks = np.float64(KINKS.get(name, [0]))
    np.testing.assert_allclose(FUNCTIONS[name](jnp.float32(at_kinks)), value(at_kinks))


@pytest.mark.parametrize(("name", "kink"), [(n, k) for n, kinks in KINKS.items() for k in kinks])
def test_gradient_at_a_kink_lies_between_the_one_sided_ones(name, kink):
    h = 2.0**-8
    values = np.float64(FUNCTIONS[name](jnp.float32([kink - h, kink, kink + h])))
    left, right = np.diff(values) / h
    value = EXPECTED[name][0]
    exact = [(value(kink) - value(kink - h)) / h, (value(kink + h) - value(kink)) / h]
    np.testing.assert_allclose([left, right], exact, atol=1e-4)
    assert abs(left - right) > 0.1  # it is a kink
    at = float(gradient(name, [kink])[0])
    assert min(left, right) - 2 * h <= at <= max(left, right) + 2 * h
    # And each side's own slope right next to it.
    beside = gradient(name, [kink - h, kink + h])
    np.testing.assert_allclose(beside, EXPECTED[name][1](np.array([kink - h, kink + h])), atol=1e-5)


def test_h_swish_known_points():
    h_swish, hard_sigmoid = ACTIVATIONS["h_swish"], GATES["hard_sigmoid"]
    x = jnp.float32([-4, -3, -1.5, 0, 1, 3, 5])
    np.testing.assert_allclose(h_swish(x), [0, 0, -0.375, 0, 2 / 3, 3, 5], rtol=1e-6)
    # Keras' former hard sigmoid, 0.2 x + 0.5, is already 1 at 2.5; ours is 11/12 there.
    np.testing.assert_allclose(hard_sigmoid(jnp.float32(2.5)), 11 / 12, rtol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_entries_tell_the_truth(name):
    """Whether it is homogeneous, and what it is the product with."""
    entry, x = ACTIVATIONS[name], jnp.linspace(-9, 9, 101)
    scales = bool(jnp.allclose(entry(2.5 * x), 2.5 * entry(x), atol=1e-5))
    assert entry.homogeneous == scales
    if entry.gate:
        np.testing.assert_allclose(entry(x), x * GATES[entry.gate](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_gates_tell_the_truth(name):
    gate, x = GATES[name], jnp.linspace(-9, 9, 101)
    assert float(gate(x).min()) >= 0 and float(gate(x).max()) <= 1
    if form := gate.relu6_form:
        np.testing.assert_allclose(
            form.factor * gate(x), jax.nn.relu6(x + form.offset), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_stays_half(name):
    x = jnp.linspace(-8, 8, 33).astype(jnp.bfloat16)
    y = FUNCTIONS[name](x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.float32(y), EXPECTED[name][0](np.float32(x)), rtol=0.02, atol=0.01
    )
