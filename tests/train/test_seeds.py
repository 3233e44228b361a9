"""Several seeds in one process: each as its run alone, to float32 rounding."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from run_checks import assert_same_end, assert_same_records, checkpoint_steps

from mbv3_jax.core.errors import Preempted, RunError, UsageError
from mbv3_jax.run.checkpoint import Checkpoints
from mbv3_jax.run.folder import read_config
from mbv3_jax.run.metrics import read_metrics
from mbv3_jax.train import loop
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.reevaluate import reevaluate

SHORT = (
    "--config.total_steps=12",
    "--config.eval_every_steps=8",
    "--config.checkpoint_every_steps=4",
    "--config.schedule.base_lr=0.1",
)
BOTH = (*SHORT, "--config.seeds=(0, 3000000000)")


@pytest.fixture(scope="module")
def both(tmp_path_factory, tiny_config):
    """The folder and the summary of two seeds at once."""
    folder = tmp_path_factory.mktemp("seeds") / "both"
    return folder, loop.train(tiny_config(*BOTH), folder)


def test_each_is_its_run_alone(both, tiny_config, tmp_path):
    folder, _ = both
    for seed in (0, 3_000_000_000):
        ours, alone = folder / f"seed{seed}", tmp_path / str(seed)
        loop.train(tiny_config(*SHORT, f"--config.seed={seed}"), alone)
        assert (ours / "config.json").read_text() == (alone / "config.json").read_text()
        for a, b in zip(read_metrics(ours), read_metrics(alone), strict=True):
            assert (a["step"], a["kind"]) == (b["step"], b["kind"])
            for name in a.keys() - {"kind", "images_per_second"}:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)
        experiment = make_experiment(read_config(ours))
        (state, position), (other, same_position) = (
            Checkpoints(f, read_only=True).restore(12, experiment.abstract_state())
            for f in (ours, alone)
        )
        assert position == same_position
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, other)


def test_the_summary_has_mean_and_deviation(both):
    folder, summary = both
    assert json.loads((folder / "summary.json").read_text()) == summary
    values = [reevaluate(folder / f"seed{s}") for s in summary["seeds"]]
    for name in ("loss", "top1"):
        got = summary["eval"][name]
        assert got["values"] == [v[name] for v in values]
        assert got["mean"] == pytest.approx(np.mean(got["values"]))
        assert got["std"] == pytest.approx(np.std(got["values"], ddof=1))
    assert summary["eval"]["loss"]["std"] > 0
    assert (summary["count"], summary["steps"], summary["weights"]) == (50, 12, "ema")


def test_the_same_command_again_gives_the_result(both, tiny_config, monkeypatch):
    folder, summary = both
    monkeypatch.setattr(loop, "Recorder", None)
    assert loop.train(tiny_config(*BOTH), folder) == summary


def test_stopped_at_any_step_it_ends_with_the_same_bits(both, tiny_config, tmp_path, monkeypatch):
    original, calls = loop.put_batch, []

    def put_batch(*args, **how):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "put_batch", put_batch)
        with pytest.raises(Preempted, match="resume from its last checkpoint, step 6"):
            loop.train(tiny_config(*BOTH), tmp_path)
    names = [f"seed{s}" for s in (0, 3_000_000_000)]
    assert [checkpoint_steps(tmp_path / name) for name in names] == [[4, 6], [4, 6]]
    shutil.rmtree(tmp_path / names[1] / "checkpoints" / "6")  # as if killed between the two
    loop.train(tiny_config(*BOTH), tmp_path)
    for name in names:
        assert_same_end(tmp_path / name, both[0] / name)
        assert_same_records(tmp_path / name, both[0] / name)


def test_one_seed_that_is_not_finite_is_named(tiny_config, tmp_path, monkeypatch):
    original = loop.put_batch

    def put_batch(batch, mesh, *, axis):
        label = batch["label"].copy()
        label[1] = -1  # of the second seed
        return original({**batch, "label": label}, mesh, axis=axis)

    monkeypatch.setattr(loop, "put_batch", put_batch)
    with pytest.raises(RunError, match="the loss of step 1 of seed 3000000000 is nan"):
        loop.train(tiny_config(*BOTH), tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.seeds=(1, 1)"], r"seeds: got \(1, 1\), expected different whole numbers"),
        (["--config.seeds=()"], r"seeds: got \(\), expected different whole numbers"),
        (["--config.seeds=(0, -1)"], "seeds: got -1, expected a whole number from 0 to 4294967295"),
        (["--config.seeds=(0, 4294967296)"], r"seeds: got 4294967296, expected a whole"),
        (["--config.seeds=(0, 1)", "--config.seed=2"], r"seed: got 2, but seeds is given too"),
        (
            ["--config.seeds=(0, 1)", "--config.compute.shard_optimizer=True"],
            "compute.shard_optimizer: got True, expected False with seeds",
        ),
    ],
)
def test_seeds_that_do_not_fit(tiny_config, tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        loop.train(tiny_config(*flags), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_ended_by_itself_is_left_alone(both, tiny_config, tmp_path):
    shutil.copytree(both[0] / "seed0", tmp_path / "seed0")
    (tmp_path / "config.json").write_text((both[0] / "config.json").read_text())
    with pytest.raises(UsageError, match="seed0 finished and the others did not"):
        loop.train(tiny_config(*BOTH), tmp_path)
    assert checkpoint_steps(tmp_path / "seed0") == checkpoint_steps(both[0] / "seed0")


def test_seeds_together_have_no_noise_on_the_learning_rate(tiny_config):
    flags = "--config.schedule.noise=(0.4, 0.9)", "--config.seeds=(0, 5)"
    with pytest.raises(UsageError, match=r"schedule.noise: got \(0.4, 0.9\), but seeds trained"):
        make_experiment(tiny_config(*flags))
