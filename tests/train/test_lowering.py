"""The whole training step lowers for the accelerators that this machine does not have."""

import jax
import pytest
from paths import ROOT

from mbv3_jax.run.config import parse_config
from mbv3_jax.train.experiment import make_experiment


@pytest.mark.slow
@pytest.mark.parametrize("network", ["small", "large", "v2", "mnasnet_a1"])
def test_the_step_lowers_for_tpu_and_cuda(network):
    overrides = ["--config.net.resolution=32", "--config.batch_size=8"]
    path = f"{ROOT / 'configs' / network}.py:synthetic"
    experiment = make_experiment(parse_config(path, overrides))
    batch = {
        "image": jax.ShapeDtypeStruct((8, 32, 32, 3), "uint8"),
        "label": jax.ShapeDtypeStruct((8,), "int32"),
    }
    state = experiment.abstract_state()
    exported = jax.export.export(experiment.train_step.func, platforms=("tpu", "cuda"))(
        jax.ShapeDtypeStruct((), "uint32"), None, state, batch
    )
    assert exported.platforms == ("tpu", "cuda")
    assert exported.nr_devices == len(jax.devices())
    # The state that comes out is the one that goes in, and that checkpoints hold: a run moves
    # between kinds of devices by restoring into the same shapes and types.
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    assert [(x.shape, x.dtype) for x in exported.out_avals[: len(shapes)]] == shapes
