"""The sums of a training step, by the shapes of all networks, against NumPy in float64.

jaxlib 0.10.2 computes some sums on CPU wrongly: where a matrix product and a sum of its values
become one `__ynn_fusion`, the last of more than 32768 results along one side are wrong
(https://github.com/jax-ml/jax/issues/39103; 0.12.0.1 is right). No sum here is of that kind, so
nothing is switched off. XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce would avoid it.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.arch import build
from mbv3_jax.arch.tables import TABLES
from mbv3_jax.arch.traversal import (
    ChannelScale,
    Convolution,
    GlobalPool,
    Operation,
    traverse,
)
from mbv3_jax.nn.ops.batch_norm import batch_norm_infer, batch_norm_train
from mbv3_jax.nn.ops.spatial import pointwise_conv
from mbv3_jax.train.losses import cross_entropy

BATCHES = (1, 37, 512)
RIGHT = 2**15  # results along one side, up to which that kind is right
VALUES = 2**25  # at most, so that an array has 128 MB
NUMBERS = np.random.default_rng(0).integers(-8, 9, 100_003).astype(np.float32)


def operations(kind):
    networks = [name for name in TABLES if name != "tiny"]  # which other tests register
    return [op for name in networks for op in traverse(build(name)) if isinstance(op, kind)]


def batches(shapes, values=VALUES):
    """Every distinct shape with every batch, or with the largest that has so many values."""
    found = set()
    for shape in shapes:
        most = max(1, values // int(np.prod(shape)))
        found |= {(min(batch, most), *shape) for batch in BATCHES}
    return sorted(found)


def numbers(shape, offset=0):
    """Whole numbers, whose sums float32 holds exactly up to 2^24."""
    return np.resize(np.roll(NUMBERS, offset), shape)


def assert_near(got, want, scale=1.0):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=1e-4 * scale)


POOLED = {op.in_shape for op in operations(GlobalPool) + operations(ChannelScale)}
NORMALISED = {op.out_shape for op in operations(Convolution) if op.batch_norm}
# Those with the most channels; what matters here is no more than how many results a sum has.
PRODUCTS = sorted(
    {
        (op.in_shape, op.out_shape[2])
        for op in operations(Convolution)
        if op.kernel == 1 and op.batch_norm
    },
    key=lambda product: (product[0][2] + product[1], product),
)[-12:]
LAST = {
    (*before.in_shape, before.out_shape[2])
    for before, op in itertools.pairwise(operations(Operation))
    if isinstance(op, GlobalPool) and op.stage == "pool" and isinstance(before, Convolution)
}


def test_average_pooling_and_the_gradient_of_a_gate():
    @jax.jit
    def sums(x, g):
        gate = jnp.ones((x.shape[0], 1, 1, x.shape[3]))
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        return pooled, jax.vjp(lambda gate: x * gate, gate)[1](g)[0]

    for shape in batches(POOLED):
        x, g = numbers(shape), numbers(shape, 7)
        pooled, gradient = sums(x, g)
        assert_near(pooled, x.mean((1, 2), np.float64, keepdims=True))
        products = np.einsum("nhwc,nhwc->nc", x, g)  # below 2^24, hence exact
        assert_near(gradient[:, 0, 0], products)


def test_statistics_of_batch_norm_and_their_gradients():
    @jax.jit
    def sums(x, g):
        ones = jnp.ones(x.shape[-1])
        y, pull = jax.vjp(lambda scale: batch_norm_train(x, scale, ones, eps=1e-3), ones)
        (dscale,) = pull((g, *map(jnp.zeros_like, y[1:])))
        _, pull = jax.vjp(lambda bias: batch_norm_train(x, ones, bias, eps=1e-3)[0], ones)
        return (*y[1:], dscale, pull(g)[0])

    for shape in batches(NORMALISED, 2**21):
        x, g = numbers(shape), numbers(shape, 7)
        mean, var, dscale, dbias = sums(x, g)
        pixels = int(np.prod(shape[:3]))
        rows = x.reshape(pixels, -1).astype(np.float64)
        errors = g.reshape(pixels, -1).astype(np.float64)
        assert_near(mean, rows.mean(0))
        assert_near(var, rows.var(0), 10)
        normalised = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-3)
        assert_near(dscale, (normalised * errors).sum(0), pixels**0.5 * 10)
        assert_near(dbias, errors.sum(0), 10)


@pytest.mark.parametrize("classes", sorted({build(name).num_classes for name in TABLES}))
@pytest.mark.parametrize("batch", BATCHES)
def test_the_loss_and_the_gradient_of_the_bias_of_the_logits(batch, classes):
    logits, labels = numbers((batch, classes)) / 4, np.arange(batch) % classes

    @jax.jit
    def value_and_gradient(logits, bias):
        return jax.value_and_grad(lambda bias: jnp.mean(cross_entropy(logits + bias, labels)))(bias)

    value, gradient = value_and_gradient(logits, np.zeros(classes, np.float32))
    exact = logits.astype(np.float64)
    probabilities = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    assert_near(value, -np.log(probabilities[np.arange(batch), labels]).mean())
    assert_near(gradient, (probabilities - np.eye(classes)[labels]).mean(0))


def products_summed(function, *shapes):
    """The longest side of the results of each fusion of a matrix product and a sum."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(function).lower(*arguments).compile().as_text()
    bodies = [body for body in text.split("\n\n") if " dot(" in body and " reduce(" in body]
    results = [re.search(r"-> f32\[([\d,]+)\]", body) for body in bodies if "ENTRY" not in body]
    return [max(map(int, result[1].split(","))) for result in results]


@pytest.mark.skipif(jax.__version__ != "0.10.2", reason="another version may be right")
@pytest.mark.parametrize("results, right", [(RIGHT, True), (RIGHT + 1, False)])
def test_the_kind_that_is_wrong_is_recognised(results, right):
    def norms(x, matrix):
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(x)

    x = np.zeros((results, 3), np.float32)
    x[:, 0] = np.arange(results)
    assert products_summed(norms, x.shape, (3, 3)) == [results]
    norm = jax.jit(norms)(x, np.eye(3, dtype=np.float32))[-1]
    assert (norm == (results - 1.0) ** 2) == right


def test_no_sum_of_a_matrix_product_in_training_is_of_that_kind():
    def layer(x, kernel):
        y = pointwise_conv(x, kernel)
        ones = jnp.ones(y.shape[-1])
        return batch_norm_train(y, ones, ones, eps=1e-3, act=jax.nn.relu)

    def train(x, kernel, g):
        (y, mean, var), pull = jax.vjp(layer, x, kernel)
        dx, dkernel = pull((g, mean, var))
        return y, jnp.mean(y, axis=(1, 2)), jnp.sum(dx, axis=(0, 1, 2)), dkernel

    for (height, width, inputs), outputs in PRODUCTS:
        image, kernel = (512, height, width, inputs), (1, 1, inputs, outputs)
        sides = products_summed(train, image, kernel, (*image[:3], outputs))
        assert max(sides, default=0) <= RIGHT, (image, outputs)


def test_pooling_the_last_layer_in_evaluation():
    """The one sum of a matrix product whose results are that many, but along no one side."""

    def evaluate(x, kernel, shift):
        y = pointwise_conv(x, kernel)
        ones = jnp.ones(y.shape[-1])
        y = batch_norm_infer(y, ones, shift, 0 * ones, ones, eps=0.0)
        return jnp.mean(jax.nn.relu(y), axis=(1, 2))

    for batch, (height, width, inputs, outputs) in itertools.product(BATCHES, sorted(LAST)):
        shape, pixels = (batch, height, width, inputs), batch * height * width
        x, kernel, shift = numbers(shape), numbers((inputs, outputs), 7), numbers(outputs, 9)
        sides = products_summed(evaluate, shape, (1, 1, inputs, outputs), (outputs,))
        assert max(sides, default=0) <= RIGHT
        pooled = jax.jit(evaluate)(x, kernel[None, None], shift)
        y = np.maximum(x.reshape(pixels, inputs) @ kernel + shift, 0)  # exact
        want = y.reshape(batch, height * width, outputs).mean(1, np.float64)
        assert_near(pooled, want, want.max())
