import jax
import numpy as np
import optax
import pytest

from mbv3_jax.arch import build
from mbv3_jax.nn import functional
from mbv3_jax.train import schedules
from mbv3_jax.train.finetune import frozen_stages, rate_factors, scale_rates, stages
from mbv3_jax.train.optimizers import make_optimizer

SMALL = build("mobilenet_v3_small")
V2 = build("mobilenet_v2")


def test_stages():
    blocks = [f"block{i}" for i in range(1, 12)]
    assert stages(SMALL) == ("stem", *blocks, "last", "head", "logits")
    assert stages(V2)[-2:] == ("last", "logits")
    assert set(stages(SMALL)) == set(functional.shapes(SMALL)["params"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("stem", ("stem",)),
        ("stem-block2", ("stem", "block1", "block2")),
        ("head, 2-3,stem", ("stem", "block2", "block3", "head")),
        ("11-head", ("block11", "last", "head")),
    ],
)
def test_frozen_stages(text, names):
    assert frozen_stages(SMALL, text) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block12", r"finetune.frozen: got 'block12', expected one of 'stem', 'block1'"),
        ("0", r"got 'block0', expected one of"),
        ("3-stem", r"got '3-stem', where stem comes before 3"),
        ("stem-", r"got '', expected one of"),
        ("stem-logits", r"got 'stem-logits', which leaves no stage to train"),
    ],
)
def test_frozen_stages_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        frozen_stages(SMALL, text)


PARAMS = {
    "stem": {"conv": {"kernel": np.ones(3, np.float32)}},
    "block1": {"conv": {"kernel": np.ones(2, np.float32)}, "bn": {"scale": np.ones(2, np.float32)}},
    "logits": {"kernel": np.ones(4, np.float32), "bias": np.ones(1, np.float32)},
}


def test_factors():
    factors = rate_factors(
        PARAMS, backbone=0.1, patterns=[("block1/bn/.*", 0.5), (".*/kernel", 2)], frozen=("stem",)
    )
    assert factors == {
        "stem": {"conv": {"kernel": 0.0}},
        "block1": {"conv": {"kernel": 2.0}, "bn": {"scale": 0.5}},
        "logits": {"kernel": 2.0, "bias": 1.0},
    }
    assert rate_factors(PARAMS, backbone=0.1)["stem"]["conv"]["kernel"] == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": -1}, r"backbone_lr_factor: got -1, expected a number at least 0"),
        ({"patterns": [("stem", 1)]}, r"'stem' matches no parameter; .* like stem/conv/kernel"),
        ({"patterns": [("(", 1)]}, r"lr_factors: got '\(': "),
        ({"patterns": [("stem/.*", -1)]}, r"lr_factors: got -1, expected a number at least 0"),
        ({"patterns": ["stem"]}, r"lr_factors: got 'stem', expected pairs"),
    ],
)
def test_factors_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        rate_factors(PARAMS, **options)


@pytest.mark.parametrize("name", ["rmsprop_tf", "sgd", "adamw", "lamb"])
def test_a_factor_is_that_of_the_learning_rate_and_zero_stops_weight_decay(name):
    """Where all other things are equal: each group trains as if alone at its own rate."""

    def trained(rate, params, factors=None):
        schedule = schedules.make_schedule(
            "constant", base_lr=rate, total_steps=9, steps_per_epoch=1
        )
        tx = make_optimizer(name, schedule, weight_decay=0.1)
        if factors:
            tx = scale_rates(tx, lambda _: factors)
        state = tx.init(params)
        for step in range(4):
            gradients = jax.tree.map(lambda x, s=step: np.sin(x + s).astype(np.float32), params)
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params

    def nest(**values):
        return {name: {"kernel": np.float32(v)} for name, v in values.items()}

    factors = {"a": {"kernel": 0.0}, "b": {"kernel": 1.0}, "c": {"kernel": 0.25}}
    got = trained(0.1, nest(a=[1, 2], b=[3, 4], c=[5, 6]), factors)
    np.testing.assert_array_equal(got["a"]["kernel"], [1, 2])
    np.testing.assert_allclose(
        got["b"]["kernel"], trained(0.1, nest(b=[3, 4]))["b"]["kernel"], rtol=1e-6
    )
    np.testing.assert_allclose(
        got["c"]["kernel"], trained(0.025, nest(c=[5, 6]))["c"]["kernel"], rtol=1e-5
    )
