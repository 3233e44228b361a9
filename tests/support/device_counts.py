"""Prints, as JSON, the curves of the tiny run on 1, 2, 4 and 8 virtual devices of one process.

{"1": [{"loss": ..., ...}, ...], ..., "8 sharded": [...], "bytes": {"8": ..., "8 sharded": ...}}
"""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
from paths import TINY

from mbv3_jax.run.config import parse_config
from mbv3_jax.train import experiment, sharding

STEPS = 6


def curve(devices, *overrides):
    """The metrics of the first steps, and the bytes of optimizer state and average a device."""
    row = sharding.make_mesh(jax.devices()[:devices])
    experiment.make_mesh = lambda: row
    made = experiment.make_experiment(parse_config(TINY, overrides))
    state, batches, metrics = made.create_state(), made.train_batches(0), []
    for _ in range(STEPS):
        state, values = made.train_step(state, sharding.put_batch(next(batches), row))
        metrics.append({k: float(v) for k, v in values.items()})
    batches.close()
    return metrics, sharding.bytes_per_device([state.opt_state, state.ema])


found = {str(n): curve(n, "--config.schedule.base_lr=0.1") for n in (1, 2, 4, 8)}
found["8 sharded"] = curve(
    8, "--config.schedule.base_lr=0.1", "--config.compute.shard_optimizer=True"
)
print(
    json.dumps(
        {k: v for k, (v, _) in found.items()} | {"bytes": {k: b for k, (_, b) in found.items()}}
    )
)
