import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

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


def test_a_cooldown_ends_the_cosine_earlier_and_keeps_its_last_rate():
    options = {"final_lr_factor": 0.1, "warmup_steps": 20, "decay_from": "warmup_end"}
    shorter = make("cosine", total_steps=100, **options)
    schedule = make("cosine", total_steps=150, cooldown_epochs=5, **options)  # of 10 steps
    steps = [0, 10, 20, 60, 99]
    np.testing.assert_allclose(values(schedule, steps), values(shorter, steps), rtol=1e-6)
    np.testing.assert_allclose(values(schedule, [100, 120, 149]), 0.01, rtol=1e-6)
    for cooldown, final, message in [
        (13, 0.1, r"cooldown_epochs: got 13, expected less than the 13 epochs of the decay"),
        (1, 0.0, r"cooldown_epochs: got 1, expected a schedule.final_lr_factor above 0"),
        (-1, 0.1, r"^schedule.cooldown_epochs: got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            changes = options | {"cooldown_epochs": cooldown, "final_lr_factor": final}
            make("cosine", total_steps=150, **changes)


def test_noise_is_one_truncated_normal_factor_an_epoch_of_its_part_of_the_run():
    plain = make("exponential", total_steps=40_000)
    noisy = make("exponential", total_steps=40_000, noise=(0.25, 0.75), seed=3)
    steps = np.arange(40_000)
    factors = values(noisy, steps) / np.maximum(values(plain, steps), 1e-30)
    by_epoch = factors.reshape(4000, 10)
    np.testing.assert_allclose(by_epoch, np.repeat(by_epoch[:, :1], 10, axis=1), rtol=1e-5)
    of_epochs = by_epoch[:, 0].astype(np.float64)
    np.testing.assert_array_equal(of_epochs[[0, 999, 3000, 3999]], 1)
    drawn = of_epochs[1000:3000] - 1
    # What timm draws: a normal number, again until it is below the limit.
    law = scipy.stats.truncnorm(-0.67, 0.67)
    assert scipy.stats.kstest(drawn, law.cdf).pvalue > 0.01
    assert np.abs(drawn).max() <= 0.67 and len(np.unique(drawn)) > 1900


def test_noise_depends_on_the_seed_and_the_epoch_alone():
    def factors(steps, **changes):
        schedule = jax.jit(make("constant", base_lr=1.0, noise=(0, 1), **changes))
        return np.asarray([schedule(jnp.int32(step)) for step in steps])

    np.testing.assert_array_equal(factors([500, 7]), factors([7, 500])[::-1])
    assert (factors([500, 7], seed=1) != factors([500, 7])).all()
    narrow = factors(range(0, 1000, 10), noise_std=0.1, noise_limit=0.2)
    assert narrow.min() >= 0.8 and narrow.max() <= 1.2 and 0.06 < narrow.std() < 0.11
    twice = make("constant", base_lr=1.0, total_steps=2000, noise=(0, 1))
    np.testing.assert_array_equal(factors([500]), values(twice, [500]))


def test_noise_begins_and_ends_with_whole_epochs():
    # 10 epochs of 3.3 steps, of which the last step fills up the last batch.
    noisy = make("constant", base_lr=1.0, total_steps=34, steps_per_epoch=3.3, noise=(0.5, 0.9))
    steps = np.arange(34)
    epochs = (steps / 3.3).astype(int)
    np.testing.assert_array_equal(values(noisy, steps) != 1, (epochs >= 5) & (epochs < 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": (0.5,)}, r"^schedule.noise: got \(0.5,\), expected two parts"),
        ({"noise": (0.9, 0.4)}, r"^schedule.noise: got \(0.9, 0.4\), expected the smaller"),
        ({"noise": (0, 2)}, r"^schedule.noise: got 2"),
        ({"noise_std": 1.0}, r"^schedule.noise_std: got 1.0, but schedule.noise is None"),
        ({"noise": (0, 1), "noise_limit": 0}, r"^schedule.noise_limit: got 0"),
    ],
)
def test_wrong_noise(options, message):
    with pytest.raises(ValueError, match=message):
        make("constant", **options)
