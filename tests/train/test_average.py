import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.train.state import (
    average_decay,
    average_start,
    init_average,
    mean_decay,
    update_average,
)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1),
        (1, 2 / 11),
        (90, 0.91),
        (89_980, 89_981 / 89_990),
        (89_990, 0.9999),
        (10**6, 0.9999),
    ],
)
def test_ramp(step, expected):
    assert expected <= 0.9999
    # Held to 1 - decay, which is what the average uses.
    np.testing.assert_allclose(1 - average_decay(0.9999, step), 1 - expected, rtol=1e-3)
    np.testing.assert_allclose(1 - average_decay(0.9999, jnp.int32(step)), 1 - expected, rtol=1e-3)


def test_a_small_decay_caps_the_ramp():
    assert average_decay(0.0, 5) == 0.0
    assert average_decay(0.15, 0) == np.float32(0.1)
    assert average_decay(0.15, 1) == np.float32(0.15)


def test_update_covers_parameters_and_statistics_alike():
    old = {"params": {"bn": {"scale": jnp.ones(2)}}, "batch_stats": {"bn": {"mean": jnp.zeros(2)}}}
    new = {
        "params": {"bn": {"scale": jnp.full(2, 3.0)}},
        "batch_stats": {"bn": {"mean": jnp.array([1.0, -2.0])}},
    }
    got = update_average(old, new, 0.75)
    np.testing.assert_array_equal(got["params"]["bn"]["scale"], [1.5, 1.5])
    np.testing.assert_array_equal(got["batch_stats"]["bn"]["mean"], [0.25, -0.5])


def test_trajectory_with_the_ramp():
    values = np.sin(np.arange(20.0))
    average = jnp.float32(5.0)
    expected = 5.0
    step = jax.jit(lambda e, v, t: update_average(e, v, average_decay(0.5, t)))
    for t, value in enumerate(values):
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
        average = step(average, jnp.float32(value), t)
        np.testing.assert_allclose(average, expected, rtol=2e-5, atol=1e-6)


def test_the_average_is_float32_and_rests_once_it_has_arrived():
    new = jnp.asarray([0.1, -3.0], jnp.bfloat16)
    start = init_average({"w": new})
    assert start["w"].dtype == jnp.float32
    got = update_average(start, {"w": new}, average_decay(0.9999, 100_000))
    assert got["w"].dtype == jnp.float32
    np.testing.assert_array_equal(got["w"], start["w"])


def test_init_copies():
    tree = {"w": jnp.arange(3.0)}
    copy = init_average(tree)
    assert copy["w"].unsafe_buffer_pointer() != tree["w"].unsafe_buffer_pointer()
    tree["w"].delete()
    np.testing.assert_array_equal(copy["w"], [0, 1, 2])


def test_the_mean_of_the_last_updates():
    values = np.cos(np.arange(20.0)).astype(np.float32)
    start = average_start(2.5, total_steps=20, steps_per_epoch=4)
    assert start == 10
    average = jnp.float32(5.0)
    step = jax.jit(lambda e, v, t: update_average(e, v, mean_decay(start, t)))
    for t, value in enumerate(values):
        average = step(average, value, t)
        expected = values[start : t + 1].mean() if t >= start else value
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
    assert average_start(None, 20, 4) is None
    assert average_start(0.01, 20, 4) == 19
    with pytest.raises(ValueError, match=r"^average_epochs: got 6, but the run has only 5 epochs"):
        average_start(6, 20, 4)


def test_bad_input():
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"^ema.decay: got "):
            average_decay(decay, 0)
    with pytest.raises(ValueError):
        update_average({"a": jnp.ones(1)}, {"b": jnp.ones(1)}, 0.5)
