import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from paths import ROOT

from mbv3_jax.nn import functional
from mbv3_jax.train import sharding
from mbv3_jax.train.experiment import make_experiment


@pytest.fixture(scope="module")
def curves(command):
    """What `device_counts.py` prints."""
    process = command(str(ROOT / "tests" / "support" / "device_counts.py"))
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("devices", ["2", "4", "8", "8 sharded"])
def test_any_number_of_devices_makes_the_curve_of_one(curves, devices):
    for step, (got, want) in enumerate(zip(curves[devices], curves["1"], strict=True)):
        for name in want:
            np.testing.assert_allclose(
                got[name], want[name], rtol=2e-4, atol=1e-6, err_msg=f"{name} of step {step + 1}"
            )
    losses = [m["loss"] for m in curves["1"]]
    assert max(losses) - min(losses) > 1e-3


def test_a_sharded_optimizer_takes_an_eighth_on_each_of_eight_devices(curves):
    held = curves["bytes"]
    assert held["1"] == held["8"]
    assert held["8"] / 8 <= held["8 sharded"] < held["8"] / 4  # some axes do not divide


def test_spread_cuts_the_longest_axis_that_divides():
    mesh = sharding.make_mesh(jax.devices()[:2])
    shapes = {
        "kernel": jax.ShapeDtypeStruct((1, 1, 16, 96), "float32"),
        "depthwise": jax.ShapeDtypeStruct((3, 3, 1, 96), "float32"),
        "odd": jax.ShapeDtypeStruct((3, 3, 3, 5), "float32"),
        "count": jax.ShapeDtypeStruct((), "int32"),
    }
    specs = {k: s.spec for k, s in sharding.spread(shapes, mesh).items()}
    assert specs["kernel"] == specs["depthwise"] == P(None, None, None, "data")
    assert specs["odd"] == specs["count"] == P()


def test_devices_stand_in_the_order_of_their_processes():
    class Device:
        def __init__(self, number, process):
            self.id, self.process_index = number, process

    # As on a TPU pod: the numbers go along the rows of a grid, a process has a square of it.
    devices = [Device(number, process) for number, process in enumerate([0, 0, 1, 1, 0, 0, 1, 1])]
    row = sharding.row(devices)
    assert [d.id for d in row] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_the_placed_state_of_a_sharded_run_restores_and_evaluates(tiny_config):
    sharded = make_experiment(tiny_config("--config.compute.shard_optimizer=True"))
    whole = make_experiment(tiny_config())
    state = sharded.create_state()
    for got, want in zip(
        jax.tree.leaves(state), jax.tree.leaves(sharded.abstract_state()), strict=True
    ):
        assert got.sharding == want.sharding
    parts = sharding.bytes_per_device(state.ema)
    assert parts < 0.6 * sharding.bytes_per_device(whole.create_state().ema)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables))
    assert sharded.evaluate(state.ema) == whole.evaluate(whole.create_state().ema)


def test_bytes_per_device_counts_what_is_there(tiny_spec):
    mesh = sharding.make_mesh(jax.devices()[:2])
    params = functional.shapes(tiny_spec)["params"]
    total = sum(x.size * 4 for x in jax.tree.leaves(params))
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)),
        params,
    )
    assert sharding.bytes_per_device(placed) == total
