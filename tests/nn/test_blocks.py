"""Squeeze-and-excite at its kinks, dropout, drop-path, shortcuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_net
from flax import nnx
from small_net import NET, apply, random_images

from mbv3_jax.arch import BlockSpec, ConvSpec, SESpec
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute, InvertedResidual, MobileNet, SqueezeExcite
from mbv3_jax.nn.ops import drop_path

# Squeeze-and-excite


def squeeze_excite(values, x, gate):
    """The module on [N, H, W, 8] with these kernels and biases."""
    module = SqueezeExcite(SESpec(gate=gate), 8, 8)
    for name in ("reduce", "expand"):
        for kind in ("kernel", "bias"):
            getattr(getattr(module, name), kind)[...] = values[name][kind]
    return module(x)


def se_values(seed=0):
    rng = np.random.default_rng(seed)
    layer = {"kernel": (1, 1, 8, 8), "bias": (8,)}
    draw = {name: {k: rng.standard_normal(s) for k, s in layer.items()} for name in ("a", "b")}
    return {"reduce": draw["a"], "expand": draw["b"]}, rng.standard_normal((2, 3, 5, 8))


def gradients(values, x, gate, weights):
    def loss(values, x):
        return jnp.sum(weights * squeeze_excite(values, x, gate))

    return jax.jit(jax.grad(loss, (0, 1)))(*to_float32((values, x)))


def to_float32(tree):
    return jax.tree.map(jnp.float32, tree)


@pytest.mark.parametrize("gate", ["hard_sigmoid", "sigmoid"])
def test_se_value_and_gradient(gate):
    values, x = se_values()
    weights = np.random.default_rng(1).standard_normal(x.shape)
    got = jax.jit(squeeze_excite, static_argnums=2)(*to_float32((values, x)), gate)
    expected = reference_net.squeeze_excite(x, values, gate)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

    gradient = gradients(values, x, gate, weights)
    for seed in range(3):
        direction = se_values(seed + 10)

        def moved(amount, direction=direction):
            there = jax.tree.map(lambda v, d: v + amount * d, (values, x), direction)
            return (weights * reference_net.squeeze_excite(there[1], there[0], gate)).sum()

        slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
        along = jax.tree.map(lambda g, d: np.vdot(np.float64(g), d), gradient, direction)
        assert sum(jax.tree.leaves(along)) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("at", [-3.0, 3.0])
def test_se_gate_at_its_kinks(at):
    """Every gate's input exactly on the kink: the slope lies between those on either side."""
    values, x = se_values()
    values["expand"] = {"kernel": np.zeros((1, 1, 8, 8)), "bias": np.full(8, at)}
    weights = np.ones_like(x)
    got = gradients(values, x, "hard_sigmoid", weights)[0]["expand"]["bias"]
    slope_inside = x.sum((0, 1, 2)) / 6  # outside it is zero
    low, high = np.minimum(0, slope_inside), np.maximum(0, slope_inside)
    assert np.all((low - 1e-5 <= got) & (got <= high + 1e-5))
    # A hair to the side, it is that side's.
    for step, expected in ((1e-3, slope_inside), (-1e-3, 0 * slope_inside)):
        values["expand"]["bias"] = np.full(8, at - np.sign(at) * step)
        beside = gradients(values, x, "hard_sigmoid", weights)[0]["expand"]["bias"]
        np.testing.assert_allclose(beside, expected, rtol=1e-4, atol=1e-5)


def test_se_relu_at_its_kink():
    values, x = se_values()
    values["reduce"] = {"kernel": np.zeros((1, 1, 8, 8)), "bias": np.zeros(8)}
    values["expand"]["bias"] = np.zeros(8)
    weights = np.ones_like(x)

    def bias_gradient(bias):
        values["reduce"]["bias"] = np.full(8, bias)
        return np.asarray(gradients(values, x, "hard_sigmoid", weights)[0]["reduce"]["bias"])

    left, at, right = (bias_gradient(b) for b in (-1e-4, 0, 1e-4))
    by_hand = values["expand"]["kernel"][0, 0] @ x.sum((0, 1, 2)) / 6
    np.testing.assert_allclose(left, 0)
    np.testing.assert_allclose(right, by_hand, rtol=1e-4)
    assert np.all((np.minimum(left, right) <= at) & (at <= np.maximum(left, right)))


# Dropout, drop-path


def test_dropout_zeroes_its_share_and_scales_the_rest():
    """With an identity for logits, what is dropped between pooling and logits can be seen."""
    spec = NET.replace(blocks=NET.blocks[:1], head=None, num_classes=64)
    spec = spec.replace(last=ConvSpec(kernel=1, out=64, act="swish"))
    variables = reference_net.random_variables(functional.shapes(spec))
    logits = {"kernel": np.eye(64, dtype=np.float32)[None, None], "bias": np.zeros(64, np.float32)}
    variables["params"]["logits"] = logits
    images = random_images(spec, batch=64)
    keys = jax.random.split(jax.random.key(0), 2)
    whole, _ = apply(spec, variables, images, train=True)
    with_dropout = spec.replace(dropout=0.2)
    one, again, other = (
        np.asarray(apply(with_dropout, variables, images, train=True, key=key)[0])
        for key in (keys[0], keys[0], keys[1])
    )
    np.testing.assert_array_equal(one, again)
    dropped = one == 0
    np.testing.assert_allclose(one[~dropped], np.asarray(whole)[~dropped] / 0.8, rtol=1e-4)
    # 4096 draws: five deviations are 3 percent.
    assert np.mean(dropped) == pytest.approx(0.2, abs=0.03)
    # Another key drops others: the two agree where chance has it.
    assert np.mean(dropped & (other == 0)) == pytest.approx(0.04, abs=0.016)
    # Neither whole examples nor whole channels.
    assert dropped.mean(axis=0).min() > 0 and dropped.mean(axis=1).min() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drop_path_zeroes_whole_examples(dtype):
    x = jnp.ones((2000, 2, 1, 3), dtype)
    y = drop_path(x, 0.25, jax.random.key(0))
    assert y.dtype == x.dtype
    y = np.float32(y)
    kept = y[:, 0, 0, 0] != 0
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1, :1], y.shape))
    np.testing.assert_allclose(y[kept], 4 / 3, rtol=1e-2 if dtype == "bfloat16" else 1e-6)
    assert np.mean(kept) == pytest.approx(0.75, abs=0.05)  # five deviations
    same, other = (drop_path(x, 0.25, jax.random.key(k)) for k in (0, 1))
    np.testing.assert_array_equal(y, np.float32(same))
    assert not np.array_equal(y, np.float32(other))


def test_drop_path_rises_from_zero_to_its_rate_with_depth():
    block = BlockSpec(kernel=3, expansion=16, out=8, act="relu")
    spec = NET.replace(blocks=(block,) * 5, drop_path=0.2)
    model = nnx.eval_shape(lambda: MobileNet(spec, Compute()))
    rates = [getattr(model, f"block{i}").drop_path_rate for i in range(1, 6)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])


def block_of_ones(*, shortcut: bool, rate: float) -> InvertedResidual:
    """A block that computes one everywhere: its kernels are zero, the last bias is one."""
    block = BlockSpec(kernel=3, expansion=16, out=8, act="relu")
    module = InvertedResidual(
        block,
        8,
        expand=True,
        shortcut=shortcut,
        drop_path_rate=rate,
        spec=NET,
        compute=Compute(),
    )
    module.project.bn.bias[...] = jnp.ones(8)
    return module


def test_shortcut_adds_the_input():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4, 4, 8)), jnp.float32)
    for train in (False, True):
        added = block_of_ones(shortcut=True, rate=0.0)(x, train, None)
        np.testing.assert_allclose(added, x + 1, rtol=1e-6)
        alone = block_of_ones(shortcut=False, rate=0.0)(x, train, None)
        np.testing.assert_allclose(alone, np.ones(x.shape), rtol=1e-6)


def test_drop_path_spares_the_shortcut():
    """Example by example, the block adds two or nothing at rate one half; without shortcut there
    is nothing to drop, and nothing is dropped in evaluation."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((32, 2, 2, 8)), jnp.float32)
    key = jax.random.key(3)
    change = np.asarray(block_of_ones(shortcut=True, rate=0.5)(x, True, key) - x)
    by_example = change[:, 0, 0, 0].round(5)
    np.testing.assert_allclose(change, np.broadcast_to(change[:, :1, :1, :1], x.shape), atol=1e-5)
    assert set(by_example) == {0, 2} and 8 <= np.sum(by_example == 2) <= 24
    np.testing.assert_allclose(
        block_of_ones(shortcut=True, rate=0.5)(x, False, key), x + 1, rtol=1e-6
    )
    np.testing.assert_allclose(
        block_of_ones(shortcut=False, rate=0.5)(x, True, key), np.ones(x.shape)
    )


def test_blocks_draw_their_own_paths():
    """Two blocks that drop the same examples would halve what drop-path regularises."""
    block = BlockSpec(kernel=3, expansion=16, out=8, act="relu")
    spec = NET.replace(blocks=(block,) * 3, drop_path=0.5)
    keys = {}

    class Spy(InvertedResidual):
        def __call__(self, x, train, key):
            keys[id(self)] = np.asarray(jax.random.key_data(key)).tobytes()
            return x

    model = MobileNet(spec, Compute())
    for i in (1, 2, 3):
        getattr(model, f"block{i}").__class__ = Spy
    model(jnp.zeros((1, 32, 32, 3)), train=True, key=jax.random.key(0))
    assert len(set(keys.values())) == 3
