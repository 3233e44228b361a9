import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.train import schedules


def make(name, **changes):
    settings = {"base_lr": 0.1, "total_steps": 1000, "steps_per_epoch": 10}
    return schedules.make_schedule(name, **{**settings, **changes})


def values(schedule, steps):
    return np.asarray(schedule(jnp.asarray(steps, jnp.int32)))


def test_constant():
    np.testing.assert_allclose(values(make("constant"), [0, 1, 10**6]), 0.1, rtol=1e-6)


def test_linear_warmup_before_at_and_after_its_end():
    got = values(make("constant", warmup_steps=4), [0, 1, 3, 4, 5])
    np.testing.assert_allclose(got, [0, 0.025, 0.075, 0.1, 0.1], rtol=1e-6)


def test_exponential_multiplies_by_099_at_every_stair():
    schedule = make("exponential")  # the default is the paper's: x 0.99 every 3 epochs
    got = values(schedule, [0, 29, 30, 59, 60, 90, 299, 300, 30_000])
    expected = 0.1 * 0.99 ** np.array([0, 0, 1, 1, 2, 3, 9, 10, 1000])
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    np.testing.assert_allclose(got[:3], [0.1, 0.1, 0.099], rtol=1e-6)


def test_exponential_counts_from_step_0_or_from_the_end_of_warmup():
    options = {"decay_epochs": 2, "decay_rate": 0.5, "warmup_steps": 25}
    steps = [10, 19, 20, 24, 25, 39, 40, 44, 45, 64, 65]
    start = values(make("exponential", **options), steps)
    # slim: the first stair, at step 20, already caps the warm-up, which stood at 0.076.
    expected = [0.04, 0.05 + 0.026, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0125, 0.0125]
    np.testing.assert_allclose(start, expected, rtol=1e-6)
    end = values(make("exponential", decay_from="warmup_end", **options), steps)
    expected = [0.04, 0.076, 0.08, 0.096, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.025]
    np.testing.assert_allclose(end, expected, rtol=1e-6)


def test_stairs_of_imagenet_recipes_fall_on_the_step():
    # slim: 192 images x 8 chips, 3 epochs are 2502.28 steps; timm: 1024 images, 2.4 epochs.
    for batch, epochs, rate, period in [(1536, 3, 0.99, 2502), (1024, 2.4, 0.973, 3003)]:
        schedule = make(
            "exponential",
            steps_per_epoch=1_281_167 / batch,
            decay_epochs=epochs,
            decay_rate=rate,
            base_lr=1.0,
        )
        for n in (1, 2, 7, 99):
            before, at = values(schedule, [n * period - 1, n * period])
            np.testing.assert_allclose([before, at], [rate ** (n - 1), rate**n], rtol=1e-5)


def test_cosine():
    schedule = make("cosine", total_steps=100)
    got = values(schedule, [0, 25, 50, 99, 100, 101, 5000])
    last = 0.05 * (1 + math.cos(math.pi * 0.99))
    expected = [0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, last, 0, 0, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-8)


def test_cosine_to_a_final_factor_with_both_origins():
    options = {"total_steps": 120, "warmup_steps": 20, "final_lr_factor": 0.1}
    end = values(make("cosine", decay_from="warmup_end", **options), [10, 19, 20, 70, 120, 121])
    np.testing.assert_allclose(end, [0.05, 0.095, 0.1, 0.055, 0.01, 0.01], rtol=1e-5)
    start = values(make("cosine", **options), [10, 20, 60, 120, 121])
    at_20 = 0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi / 6))
    np.testing.assert_allclose(start, [0.05, at_20, 0.055, 0.01, 0.01], rtol=1e-5)


def test_step_boundaries():
    schedule = make("step", boundary_epochs=[3, 6.55], warmup_steps=5)
    got = values(schedule, [0, 5, 29, 30, 31, 65, 66, 67])  # 6.55 epochs: step 65.5, nearest 66
    expected = [0, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    half = make("step", boundary_epochs=(1,), factor=0.5)
    np.testing.assert_allclose(values(half, [9, 10]), [0.1, 0.05], rtol=1e-6)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_python_and_traced_steps_agree_and_warmup_fills_the_run(name):
    options = {"boundary_epochs": [1]} if name == "step" else {}
    schedule = make(name, total_steps=20, warmup_steps=20, **options)
    eager, traced = schedule(15), jax.jit(schedule)(jnp.int32(15))
    assert eager.shape == traced.shape == ()
    assert eager.dtype == traced.dtype == jnp.float32
    np.testing.assert_allclose(eager, traced, rtol=1e-6)
    assert np.isfinite(values(schedule, [0, 19, 20, 21])).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "cosin"},
            "schedule.name: got 'cosin', expected one of 'constant'",
        ),
        ({"name": "constant", "decay_rate": 0.9}, "'constant' has no option decay_rate"),
        ({"final_lr_facto": 0.1}, "no option final_lr_facto; .* decay_from, final_lr_factor"),
        ({"name": "step"}, "'step' needs boundary_epochs"),
        ({"name": "step", "boundary_epochs": [3, 2]}, "boundary_epochs: got .*rising"),
        ({"name": "step", "boundary_epochs": [3, 3]}, "boundary_epochs: got .*rising"),
        ({"name": "step", "boundary_epochs": 3}, "boundary_epochs: got 3, expected a list"),
        ({"name": "step", "boundary_epochs": "36"}, "boundary_epochs: got '36', expected a list"),
        ({"name": "step", "boundary_epochs": [0, 1]}, "boundary_epochs: got 0"),
        ({"name": "exponential", "decay_rate": 1.5}, "schedule.decay_rate: got 1.5"),
        ({"name": "exponential", "decay_epochs": 0}, "schedule.decay_epochs: got 0"),
        ({"decay_from": "end"}, "schedule.decay_from: got 'end', .*'start', 'warmup_end'"),
        ({"final_lr_factor": -1}, "schedule.final_lr_factor: got -1"),
        ({"base_lr": -0.1}, "schedule.base_lr: got -0.1"),
        ({"total_steps": 0}, "schedule.total_steps: got 0"),
        ({"warmup_steps": -1}, "schedule.warmup_steps: got -1"),
        ({"warmup_steps": 1001}, "schedule.warmup_steps: got 1001, expected at most the 1000"),
        ({"steps_per_epoch": 0}, "schedule.steps_per_epoch: got 0"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**{"name": "cosine", **changes})
