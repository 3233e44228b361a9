"""Calibration, equalisation, bias correction: exact where they say so, better where they should."""

import functools

import jax
import numpy as np
import pytest

from mbv3_jax.arch import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec
from mbv3_jax.nn import fake_quant, functional
from mbv3_jax.nn.folded import apply_folded, fold
from mbv3_jax.quant import observers
from mbv3_jax.quant.post_training import Options, quantize, trained_int8
from mbv3_jax.quant.weight_corrections import correct_bias, equalize

NET = NetSpec(
    name="net",
    stem=ConvSpec(kernel=3, out=8, act="h_swish", stride=2),
    blocks=(
        BlockSpec(kernel=3, expansion=8, out=8, act="relu", se=SESpec()),
        BlockSpec(kernel=5, expansion=24, out=16, act="relu", stride=2),
        BlockSpec(kernel=3, expansion=32, out=16, act="h_swish"),
    ),
    last=ConvSpec(kernel=1, out=24, act="h_swish"),
    head=HeadSpec(out=20, act="h_swish"),
    resolution=32,
    num_classes=5,
    dropout=0.0,
)
run = jax.jit(functools.partial(apply_folded, NET))


@pytest.fixture(scope="module")
def variables():
    """Kernels of sensible size; depthwise channels of very unequal magnitudes."""
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(np.asarray, functional.init(NET, jax.random.key(0)))
    for i in range(1, 4):
        layer = drawn["params"][f"block{i}"]["depthwise"]["bn"]
        layer["scale"] = rng.uniform(0.1, 3, layer["scale"].shape).astype(np.float32)
        layer["bias"] = rng.normal(size=layer["bias"].shape).astype(np.float32)
    for name in ("head", "logits"):
        drawn["params"][name]["kernel"] = drawn["params"][name]["kernel"] * 20
    return drawn


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(1)
    return [rng.normal(size=(16, 32, 32, 3)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def folded(variables):
    return jax.tree.map(np.asarray, fold(NET, variables))


def test_min_max_is_what_occurs(folded, batches):
    low, high = observers.observe(NET, folded, batches, observer="min_max")
    names = fake_quant.tensors(NET)
    logits = np.concatenate([run(folded, b) for b in batches])
    np.testing.assert_allclose(
        [low[-1], high[-1]], [logits.min(), logits.max()], rtol=1e-3, atol=1e-5
    )
    assert (low[0], high[0]) == (np.min(batches), np.max(batches))
    i = names.index("stem/relu6")
    assert (low[i], high[i]) == (0, 6)


def test_percentile_and_mse_cut_outliers(folded, batches):
    spoilt = [b.copy() for b in batches]
    spoilt[0][0, 0, 0, 0] = 100.0
    _, all_of_it = observers.observe(NET, folded, spoilt, observer="min_max")
    _, most = observers.observe(NET, folded, spoilt, observer="percentile", percentile=99.9)
    _, best = observers.observe(NET, folded, spoilt, observer="mse")
    assert all_of_it[0] == 100
    # Bins are a 2048th of the range wide.
    assert abs(most[0] - np.quantile(np.stack(spoilt), 0.9995)) < 0.15
    assert 4 < best[0] < 100


def test_mse_is_the_least_of_what_can_be_cut():
    edges = np.linspace(-1, 7, observers.BINS + 1)
    counts = np.zeros(observers.BINS, np.int64)
    counts[: observers.BINS // 4] = 1000
    counts[-1] = 1

    def error(low, high):
        scale = (high - low) / 255
        zero = np.round(-128 - low / scale)
        x = (edges[:-1] + edges[1:]) / 2
        rounded = (np.clip(np.round(x / scale) + zero, -128, 127) - zero) * scale
        return np.sum(counts * (rounded - x) ** 2)

    low, high = observers._least_error(counts, edges)
    assert low == -1 and high < 7
    assert error(low, high) < 0.9 * error(-1, 7)


def test_equalisation_is_exact_and_evens_channels(folded, batches):
    equal, blocks = equalize(NET, folded)
    assert blocks == 2
    want = run(folded, batches[0])
    np.testing.assert_allclose(run(equal, batches[0]), want, atol=1e-4 * np.abs(want).max())
    magnitude = lambda k, axes: np.max(np.abs(k), axis=axes)  # noqa: E731
    block = equal["block2"]
    sizes = [
        magnitude(block["expand"]["conv"]["kernel"], (0, 1, 2)),
        magnitude(block["depthwise"]["conv"]["kernel"], (0, 1, 2)),
        magnitude(block["project"]["conv"]["kernel"], (0, 1, 3)),
    ]
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=1e-4)
    np.testing.assert_allclose(sizes[1], sizes[2], rtol=1e-4)
    for name in ("block3", "stem"):
        jax.tree.map(np.testing.assert_array_equal, equal[name], folded[name])


def test_bias_correction_takes_the_mean_shift_away(folded, batches):
    batches = [b + 1 for b in batches]  # of images of mean 0 there is next to no shift
    corrected = correct_bias(NET, folded, batches)

    def means(weights, **hooks):
        """Of each channel behind the stem's convolution."""
        found = {}
        images = np.concatenate(batches)
        apply_folded(NET, weights, images, on_activation=found.setdefault, **hooks)
        return np.mean(found["stem/pre"], axis=(0, 1, 2))

    def shift(weights):
        rounded = means(weights, on_weight=lambda name, k, axis: fake_quant.fake_weight(k, axis))
        return np.abs(rounded - means(folded)).max()

    assert shift(folded) > 1e-4
    assert shift(corrected) < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(observer="percentile", equalize=True),
        Options(observer="min_max", correct_bias=True),
    ],
    ids=str,
)
def test_int8_follows_float(variables, batches, folded, options):
    int8 = quantize(NET, variables, batches, options)
    want = np.asarray(run(folded, batches[0]))
    error = np.asarray(int8.simulate(batches[0])) - want
    assert np.square(error).mean() < 0.1 * np.square(want - want.mean(0)).mean()
    assert int8.how.startswith(f"32 calibration images, {options.observer}")
    assert set(int8.ranges()) == set(fake_quant.tensors(NET))


def test_what_was_trained_for_int8_needs_no_images(variables):
    with pytest.raises(ValueError, match="was not trained for int8"):
        trained_int8(NET, variables)


def test_refusals(folded):
    with pytest.raises(ValueError, match="observer: got 'max', expected one of 'min_max'"):
        Options(observer="max")
    with pytest.raises(ValueError, match="calibration: no images"):
        observers.observe(NET, folded, [])
    with pytest.raises(ValueError, match="percentile: got 30, expected above 50"):
        observers.observe(NET, folded, [], percentile=30)
    broken = [np.full((1, 32, 32, 3), np.nan, np.float32)]
    with pytest.raises(ValueError, match="the values of input are not finite"):
        observers.observe(NET, folded, broken)
