"""What several tests ask of a run folder."""

import jax
import numpy as np
import tiny_config  # noqa: F401 (registers the network of the runs)

from mbv3_jax.run.checkpoint import Checkpoints
from mbv3_jax.run.folder import read_config
from mbv3_jax.run.metrics import read_metrics
from mbv3_jax.train.experiment import make_experiment


def checkpoint_steps(run):
    """The steps of the complete checkpoints of a run."""
    return Checkpoints(run, read_only=True).steps()


def assert_same_end(run, other):
    """Two runs ended with the same bits: weights, statistics, optimizer, average, position."""
    experiment = make_experiment(read_config(run), run)
    last = experiment.data.total_steps
    ends = [
        Checkpoints(r, read_only=True).restore(last, experiment.abstract_state())
        for r in (run, other)
    ]
    leaves = [jax.tree_util.tree_leaves_with_path(state) for state, _ in ends]
    for (path, a), (_, b) in zip(*leaves, strict=True):
        where = jax.tree_util.keystr(path)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), where
    assert ends[0][1] == ends[1][1]


def assert_same_records(run, other):
    """Two runs have the same records, each step once, but for how fast they were."""
    records = [
        [{k: v for k, v in r.items() if k != "images_per_second"} for r in read_metrics(folder)]
        for folder in (run, other)
    ]
    assert records[0] == records[1]
    keys = [(r["step"], r["kind"]) for r in records[0]]
    assert len(keys) == len(set(keys)) and keys
