"""A run that gets a signal saves and exits with 75, after Ctrl-C with 130; the same command ends
with the same bits."""

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
        (loop, 3, signal.SIGINT, 3),
        (evaluate, 2, signal.SIGINT, 12),
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

    before, by_ctrl_c = signal.getsignal(number), number == signal.SIGINT
    with monkeypatch.context() as patch:
        patch.setattr(module, "put_batch", put_batch)
        assert main(tmp_path) == (130 if by_ctrl_c else 75)
    assert len(calls) == call  # no step and no batch after it
    assert signal.getsignal(number) is before
    assert checkpoint_steps(tmp_path)[-1] == saved
    err = capfd.readouterr().err
    if by_ctrl_c:
        assert err.splitlines()[-2:] == [
            f"interrupted: saving step {saved}; Ctrl-C again leaves at once",
            "interrupted; run the same command again to resume from the last checkpoint in "
            f"{tmp_path}",
        ]
    else:
        assert err.splitlines()[-1] == (
            "preempted; run the same command again to resume from its last checkpoint, step "
            f"{saved}"
        )
    assert "Traceback" not in err
    assert main(tmp_path) == 0
    assert "note:" not in capfd.readouterr().err  # no record is missing
    assert_same_end(tmp_path, finished)
    assert_same_records(tmp_path, finished)


def test_a_second_ctrl_c_leaves_at_once(tmp_path, monkeypatch, capfd):
    original, calls = loop.put_batch, []

    def put_batch(*args, **how):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "put_batch", put_batch)
        assert main(tmp_path) == 130
    assert checkpoint_steps(tmp_path) == []
    assert "saving" not in capfd.readouterr().err


def test_before_anything_is_trained(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(train, "parse_config", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(tmp_path / "run") == 75
    assert capfd.readouterr().err == "preempted before anything was trained\n"
    assert not (tmp_path / "run").exists()
