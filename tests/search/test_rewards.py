import numpy as np
import pytest

from mbv3_jax.arch import build, cost
from mbv3_jax.search.objective import COUNTS, PUBLISHED, Reward

ACCURACY = np.array([0.7, 0.75, 0.6])
LATENCY = {"latency_ms": np.array([80.0, 160.0, 40.0])}


@pytest.mark.parametrize(
    ("form", "exponent", "want"),
    [
        ("soft", -0.07, [0.7, 0.75 * 2**-0.07, 0.6 * 0.5**-0.07]),
        ("soft", -0.15, [0.7, 0.75 * 2**-0.15, 0.6 * 0.5**-0.15]),
        ("hard", -1.0, [0.7, 0.375, 0.6]),
        ("absolute", -0.07, [0.7, 0.75 - 0.07, 0.6 - 0.035]),
    ],
)
def test_forms(form, exponent, want):
    reward = Reward(targets={"latency_ms": 80}, form=form, exponent=exponent)
    np.testing.assert_allclose(reward(ACCURACY, LATENCY), want, rtol=1e-12)
    assert (form, exponent) in PUBLISHED.values()


def test_a_mix_of_costs():
    costs = LATENCY | {"madds": np.array([1e6, 1e6, 4e6])}
    targets = {"latency_ms": 80.0, "madds": 2e6}
    even = Reward(targets=targets)
    np.testing.assert_allclose(even.relative(costs), [0.75, 1.25, 1.25])
    one = Reward(targets=targets, weights={"latency_ms": 3, "madds": 1})
    np.testing.assert_allclose(one.relative(costs), [0.875, 1.625, 0.875])
    np.testing.assert_allclose(one(ACCURACY, costs)[1], 0.75 - 0.07 * 0.625)


def test_costs_are_counted_from_specs():
    spec = build("mobilenet_v3_small")
    assert COUNTS["madds"](spec) == cost.madds(spec)
    assert COUNTS["params"](spec) == 2_542_856


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"form": "mean"}, "reward.form: got 'mean', expected one of 'soft', 'hard', 'absolute'"),
        ({"exponent": 0.07}, "reward.exponent: got 0.07"),
        ({"targets": {}}, "reward.targets"),
        ({"targets": {"madds": 0}}, "reward.targets"),
        ({"weights": {"params": 1}}, r"reward.weights: got \['params'\], expected \['madds'\]"),
        ({"weights": {"madds": 0}}, "reward.weights"),
    ],
)
def test_what_cannot_be_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Reward(**{"targets": {"madds": 1e6}, **fields})
