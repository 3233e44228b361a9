"""A preempted run saves and exits with 75; the same command ends with the same bits."""

import os
import signal

import pytest
from paths import TINY
from run_checks import assert_same_end, assert_same_records, checkpoint_steps

from mbv3_jax.cli import train
from mbv3_jax.train import evaluate, loop


def main(run):
    return train.main([f"--config={TINY}", f"--workdir={run}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main(run) == 0
    return run


@pytest.mark.parametrize(
    ("module", "call", "number", "saved"),
    [
        (loop, 8, signal.SIGTERM, 8),  # between two records: the next averages the same steps
        (loop, 3, signal.SIGUSR1, 3),
        (evaluate, 2, signal.SIGTERM, 12),  # in the evaluation after step 12, which comes again
        (evaluate, 6, signal.SIGTERM, 24),  # in the last one
    ],
)
def test_the_same_command_again_ends_with_the_same_bits(
    finished, tmp_path, monkeypatch, capfd, module, call, number, saved
):
    original, calls = module.put_batch, []

    def put_batch(*args, **how):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **how)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(module, "put_batch", put_batch)
        assert main(tmp_path) == 75
    assert len(calls) == call  # no step and no batch after it
    assert signal.getsignal(number) is before
    assert checkpoint_steps(tmp_path)[-1] == saved
    err = capfd.readouterr().err
    assert err.splitlines()[-1] == (
        f"preempted; run the same command again to resume from its last checkpoint, step {saved}"
    )
    assert "Traceback" not in err
    assert main(tmp_path) == 0
    assert "note:" not in capfd.readouterr().err  # no record is missing
    assert_same_end(tmp_path, finished)
    assert_same_records(tmp_path, finished)


def test_before_anything_is_trained(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(train, "parse_config", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(tmp_path / "run") == 75
    assert capfd.readouterr().err == "preempted before anything was trained\n"
    assert not (tmp_path / "run").exists()
