"""Quantization-aware training in the whole loop: from a float run, resumed, on two devices."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from run_checks import assert_same_end, assert_same_records

from mbv3_jax.core.errors import Preempted, UsageError
from mbv3_jax.nn import functional
from mbv3_jax.quant.post_training import trained_int8
from mbv3_jax.run.model import load_model
from mbv3_jax.train import experiment, loop, sharding

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

# The delay ends in step 4, everything is frozen from step 10 on.
QUANT = ("enabled=True", "delay_steps=3", "freeze_steps=9", "range_decay=0.9")
SHORT = ("--config.total_steps=14", "--config.checkpoint_every_steps=4", "--config.seed=3")


@pytest.fixture(scope="module")
def qat(tiny_config):
    return lambda *more: tiny_config(*(f"--config.quant.{o}" for o in QUANT), *SHORT, *more)


@pytest.fixture(scope="module")
def float_run(tmp_path_factory, tiny_config):
    run = tmp_path_factory.mktemp("float") / "run"
    loop.train(tiny_config("--config.total_steps=6"), run)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, qat, float_run):
    run = tmp_path_factory.mktemp("qat") / "run"
    loop.train(qat(f"--config.init={float_run}"), run)
    return run


def test_from_a_float_run_to_ranges(finished, float_run):
    trained = load_model(finished)
    assert trained.spec.quant.delay_steps == 3 and trained.spec.quant.freeze_steps == 9
    state = trained.variables["batch_stats"]["quant"]
    assert np.all(state["high"] > state["low"])
    raw = load_model(finished, weights="raw").variables["batch_stats"]["quant"]
    assert (float(raw["steps"]), float(raw["on"])) == (14, 1)
    int8 = trained_int8(trained.spec, trained.variables)
    assert int8.spec == load_model(float_run).spec
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    want, _ = functional.apply(trained.spec, trained.variables, images)
    np.testing.assert_allclose(int8.simulate(images), want, atol=1e-6)
    begun = json.loads((finished / "init.json").read_text())
    assert begun["new"] == []


def test_a_float_run_may_start_from_it(finished, tiny_config):
    config = tiny_config(f"--config.init={finished}", "--config.total_steps=4")
    made = experiment.make_experiment(config)
    assert made.spec.quant is None
    functional.check(made.spec, made.create_state().variables)


def test_interrupted_it_ends_with_the_same_bits(finished, float_run, tmp_path, qat, monkeypatch):
    config, calls, original = qat(f"--config.init={float_run}"), [], loop.put_batch

    def put_batch(*args, **how):
        calls.append(1)
        if len(calls) == 7:  # between the delay and the freeze
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "put_batch", put_batch)
        with pytest.raises(Preempted, match="resume from its last checkpoint, step 7"):
            loop.train(config, tmp_path / "run")
    loop.train(config, tmp_path / "run")
    assert_same_end(finished, tmp_path / "run")
    assert_same_records(finished, tmp_path / "run")


def test_two_devices_give_the_numbers_of_one(qat, monkeypatch):
    def states(count):
        row = sharding.make_mesh(jax.devices()[:count])
        monkeypatch.setattr(experiment, "make_mesh", lambda: row)
        made = experiment.make_experiment(qat())
        state, batches, losses = made.create_state(), made.train_batches(0), []
        for _ in range(6):
            state, metrics = made.train_step(state, sharding.put_batch(next(batches), row))
            losses.append(float(metrics["loss"]))
        batches.close()
        return losses, jax.device_get(state.variables["batch_stats"]["quant"])

    one, two = states(1), states(2)
    np.testing.assert_allclose(one[0], two[0], rtol=2e-3)
    for key in ("steps", "on"):
        assert one[1][key] == two[1][key]
    np.testing.assert_allclose(one[1]["high"], two[1]["high"], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "quant.delay_steps=12",
            r"quant.delay_steps: got 12 \(12 steps\), but quant.freeze_steps=9 is only 9 steps",
        ),
        ("compute.dtype=bfloat16", r"compute.dtype: got 'bfloat16', expected one of 'float32'"),
        ("quant.range_decay=1.5", r"quant.range_decay: got 1.5, expected a number from 0"),
        ("quant.enabled=False", r"quant.delay_steps: got 3, but quant.enabled is False"),
        ("quant.delay_epochs=1", r"quant.delay: got quant.delay_steps=3, quant.delay_epochs=1.0"),
    ],
)
def test_wrong_options(qat, override, message):
    with pytest.raises(UsageError, match=message):
        experiment.make_experiment(qat(f"--config.{override}"))
