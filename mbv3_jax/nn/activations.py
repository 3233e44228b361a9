"""Nonlinearities and gates by the names that specs use.

hard_sigmoid(x) = relu6(x + 3) / 6 and h_swish(x) = x * hard_sigmoid(x) (MobileNetV3 section
5.2); Keras' former 0.2x + 0.5 is another function.
"""

import jax


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), elementwise."""
    return jax.nn.relu(x)


def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6), elementwise."""
    return jax.nn.relu6(x)


def swish(x: jax.Array) -> jax.Array:
    """x * sigmoid(x), elementwise."""
    return jax.nn.silu(x)


def h_swish(x: jax.Array) -> jax.Array:
    """x * relu6(x + 3) / 6, elementwise."""
    return jax.nn.hard_swish(x)


def sigmoid(x: jax.Array) -> jax.Array:
    """1 / (1 + exp(-x)), elementwise."""
    return jax.nn.sigmoid(x)


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """relu6(x + 3) / 6, elementwise."""
    return jax.nn.hard_sigmoid(x)


ACTIVATIONS = {"relu": relu, "relu6": relu6, "h_swish": h_swish, "swish": swish}
GATES = {"hard_sigmoid": hard_sigmoid, "sigmoid": sigmoid}
