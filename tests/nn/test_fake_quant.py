"""Simulated int8 against integer arithmetic written out in NumPy; training in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_net import random_variables
from small_net import NET, apply, random_images

from mbv3_jax.arch.spec import QuantSpec, spec_from_json, spec_to_json
from mbv3_jax.nn import fake_quant, functional
from mbv3_jax.nn.folded import fold
from mbv3_jax.nn.modules import Compute

INT8 = NET.replace(quant=QuantSpec(delay_steps=1, freeze_steps=3, range_decay=0.5))


def begin(spec=INT8, seed=0):
    variables = random_variables(functional.shapes(spec), seed)
    state = variables["batch_stats"]["quant"]
    variables["batch_stats"]["quant"] = jax.tree.map(np.zeros_like, state)
    return variables


@functools.cache
def _train_step():
    def step(variables, images):
        logits, stats = functional.apply(INT8, variables, images, train=True)
        return logits, variables | {"batch_stats": stats}

    return jax.jit(step)


def after(steps, variables):
    for i in range(steps):
        logits, variables = _train_step()(variables, random_images(NET, batch=8, seed=i))
    return logits, variables


def test_weights_are_the_integers_of_the_runtime():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    kernel[..., 3] = 0
    integers, scale = map(np.asarray, fake_quant.quantize_weight(kernel))
    assert np.abs(integers).max(axis=(0, 1, 2)).tolist() == [127, 127, 127, 0, 127]
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    np.testing.assert_array_equal(
        scale, np.maximum(largest * np.float32(1 / 127), np.float32(1e-8))
    )
    np.testing.assert_array_equal(integers, np.round(kernel / scale))
    np.testing.assert_array_equal(fake_quant.fake_weight(kernel), integers * scale)
    once = jax.grad(lambda k: jnp.sum(fake_quant.fake_weight(k) * kernel))(kernel)
    np.testing.assert_array_equal(once, kernel)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (-1, 1.04, 2.04 / 255, -3),
        (0, 6, 6 / 255, -128),
        (1, 5.1, 5.1 / 255, -128),
        (-2, -1, 2 / 255, 127),
    ],
)
def test_zero_is_exact_and_the_range_fits(low, high, scale, zero):
    got = fake_quant.activation_scale(jnp.float32(low), jnp.float32(high))
    np.testing.assert_allclose(got, (scale, zero), rtol=1e-6)


def test_activations_round_and_clip_and_pass_gradients_inside():
    x = jnp.asarray([-3.0, -0.5, 0.0, 0.013, 1.0, 9.0])
    fake = functools.partial(fake_quant.fake_activation, low=jnp.float32(-1), high=jnp.float32(4.1))
    scale = 5.1 / 255
    np.testing.assert_allclose(fake(x), [-1, -0.5, 0, scale, 1, 4.1], atol=1e-6)
    assert jax.grad(lambda x: fake(x).sum())(x).tolist() == [0, 1, 1, 1, 1, 0]


def test_names_of_tensors():
    names = fake_quant.tensors(NET)
    assert names[:4] == ("input", "stem/pre", "stem/relu6", "stem")
    assert names[-1] == "logits" and len(set(names)) == len(names)
    with_state = functional.shapes(INT8)["batch_stats"]["quant"]
    assert with_state["low"].shape == (len(names),)


def test_float_until_the_delay_is_over_then_rounded():
    variables = begin()
    images = random_images(NET, batch=8, seed=0)
    plain = {
        "params": variables["params"],
        "batch_stats": {k: v for k, v in variables["batch_stats"].items() if k != "quant"},
    }
    want, stats = apply(NET, plain, images, train=True)
    got, one = after(1, variables)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert float(one["batch_stats"]["quant"]["on"]) == 0
    for key in ("stem", "block2"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
            one["batch_stats"][key],
            jax.tree.map(np.asarray, stats[key]),
        )
    in_float, _ = apply(INT8, one, images)
    twin = {k: v for k, v in one["batch_stats"].items() if k != "quant"}
    want, _ = apply(NET, {"params": one["params"], "batch_stats": twin}, images)
    np.testing.assert_allclose(in_float, want, atol=2e-5)
    _, two = after(2, variables)
    rounded, _ = apply(INT8, two, images)
    state = two["batch_stats"]["quant"]
    scale, _ = fake_quant.activation_scale(state["low"][-1], state["high"][-1])
    assert float(state["on"]) > 0.5
    np.testing.assert_allclose(rounded / scale, np.round(rounded / scale), atol=1e-3)


def test_frozen_statistics_stay_and_training_equals_evaluation():
    _, three = after(3, begin())
    images = random_images(NET, batch=8, seed=9)
    logits, four = _train_step()(three, images)
    stay = four["batch_stats"] | {"quant": four["batch_stats"]["quant"] | {"steps": 3.0}}
    jax.tree.map(np.testing.assert_array_equal, stay, three["batch_stats"])
    # The kernel rounded before BatchNorm or behind it: the same but for ties and rounding.
    evaluated, _ = apply(INT8, three, images)
    state = three["batch_stats"]["quant"]
    scale = float(fake_quant.activation_scale(state["low"][-1], state["high"][-1])[0])
    assert np.abs(logits - evaluated).max() <= 1.01 * scale
    assert np.mean(np.abs(logits - evaluated) < scale / 2) > 0.5


def test_gradients_reach_what_they_reach_in_float():
    _, two = after(2, begin())
    images = random_images(NET, batch=8, seed=3)

    def size(spec, variables):
        def loss(params):
            out, _ = functional.apply(spec, variables | {"params": params}, images, train=True)
            return jnp.sum(jnp.square(out))

        return jax.jit(jax.grad(loss))(variables["params"])

    twin = {k: v for k, v in two["batch_stats"].items() if k != "quant"}
    simulated = size(INT8, two)
    plain = size(NET, {"params": two["params"], "batch_stats": twin})
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (simulated, plain)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 0.95


def test_one_layer_equals_integer_arithmetic():
    """The stem's convolution with int8, int32 and rescaling, as the runtime does it."""
    _, two = after(2, begin())
    plain = {k: v for k, v in two["batch_stats"].items() if k != "quant"}
    folded = fold(NET, {"params": two["params"], "batch_stats": plain})
    state, found = two["batch_stats"]["quant"], {}
    forward = fake_quant.SimulatedForward(NET, folded, state["low"], state["high"])
    rounded = forward.on_activation
    forward.on_activation = lambda name, x: found.setdefault(name, rounded(name, x))
    forward.logits(jnp.asarray(random_images(NET, batch=1)))

    def integers(i, x):
        scale, zero = fake_quant.activation_scale(state["low"][i], state["high"][i])
        return np.round(np.asarray(x / scale)).astype(np.int64), float(scale), int(zero)

    x, in_scale, _ = integers(0, found["input"])
    y, out_scale, zero = integers(1, found["stem/pre"])
    kernel, scales = map(np.asarray, fake_quant.quantize_weight(folded["stem"]["conv"]["kernel"]))
    bias = np.round(np.asarray(folded["stem"]["conv"]["bias"]) / (in_scale * scales))
    sums = np.stack(
        [np.einsum("hwi,hwio->o", x[0, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3], kernel)
         for r in range(15) for c in range(15)]
    ).reshape(15, 15, -1) + bias  # fmt: skip
    want = np.clip(np.round(sums * in_scale * scales / out_scale), -128 - zero, 127 - zero)
    assert np.abs(want - y[0, :15, :15]).max() <= 1
    assert np.mean(want == y[0, :15, :15]) > 0.99


def test_refusals():
    with pytest.raises(ValueError, match=r"range_decay: got 1, expected a number from 0"):
        QuantSpec(range_decay=1)
    with pytest.raises(ValueError, match=r"compute.dtype: got 'bfloat16', but int8 is simulated"):
        functional.apply(INT8, begin(), random_images(NET, 1), compute=Compute(dtype="bfloat16"))
    with pytest.raises(ValueError, match="batch_stats/quant/low: missing"):
        functional.check(INT8, random_variables(functional.shapes(NET)))
    assert spec_from_json(spec_to_json(INT8)) == INT8
