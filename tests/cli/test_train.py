import os
import signal
from pathlib import Path

import pytest
from paths import TINY
from run_checks import checkpoint_steps

from mbv3_jax.cli import train
from mbv3_jax.run.checkpoint import Checkpoints
from mbv3_jax.run.config import config_to_json, parse_config


def main(*arguments):
    return train.main([f"--config={TINY}", *arguments])


@pytest.mark.parametrize(
    ("config", "folder"),
    [
        ("configs/small.py", "runs/small"),
        ("configs/small.py:imagenet", "runs/small-imagenet"),
        ("/a/b/large.py:imagenet,recipe=slim", "runs/large-imagenet-recipe=slim"),
        ("configs/small.py:../../etc", "runs/small-..-..-etc"),
        ("configs/search/small.py", "runs/search-small"),
        ("../somewhere/mine.py", "runs/mine"),
        ("small", "runs/small"),
        ("small:imagenet", "runs/small-imagenet"),
        ("search/small", "runs/search-small"),
    ],
)
def test_default_run_folder(config, folder):
    assert train.default_workdir(config) == Path(folder)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("ema.decay", "ema_decay"),
        ("num_workers", "data.num_workers"),
        ("data.batch_size", "batch_size"),
        ("net.widht", "net.width"),
        ("lr", "schedule.base_lr"),
        ("schedule.learning_rate", "schedule.base_lr"),
        ("epochs", "total_epochs"),
        ("optimizer.weight-decay", "optimizer.weight_decay"),
    ],
)
def test_a_field_that_is_none_is_answered_by_the_one_that_was_meant(tmp_path, capfd, wrong, right):
    assert main(f"--workdir={tmp_path / 'run'}", f"--config.{wrong}=1") == 2
    err = capfd.readouterr().err
    assert err.endswith(f"; did you mean --config.{right}?\n") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.nope=1", "--config.nope=1: config has no field 'nope'; its fields: accum_steps"),
        ("--config.seed=x", "--config.seed: got 'x', expected a value of type int"),
        ("--config.net.se=some", "config.net.se: got 'some', expected one of 'paper', 'none'"),
        ("--config.net.resolution=16", "config.net.resolution: got 16, expected a whole number"),
        ("--config.batch_size=9", "config: batch_size: got 9, which 2 devices do not divide"),
        ("--verbose", "unknown option --verbose; fields are set as --config.NAME=VALUE"),
        ("extra", "unknown option extra; fields are set as --config.NAME=VALUE"),
        ("--config=configs/none.py", "--config: no Python file 'configs/none.py'; the shipped on"),
        ("--config=smal", "--config: no configuration is named 'smal'; did you mean small? The s"),
        ("--config.net.se=:100:", "config.net.se: got ':100:', expected one of"),  # no emoji
        ("--workdir=runs/a[1]", "runs/a[1]: checkpoints cannot be read from a path with [ in it"),
        (
            "--workdir=runs/a\\b",
            "runs/a\\b: checkpoints cannot be read from a path with \\ in it, w",
        ),
        ("--workdir=gs://b/run", "gs:/b/run: checkpoints cannot be read from a bucket; gs:// sta"),
        ("--workdir=/dev/null/run", "cannot write to /dev/null/run: Not a directory; choose ano"),
    ],
)
def test_a_wrong_command_is_one_line_and_leaves_nothing(tmp_path, capfd, flag, message):
    run = tmp_path / "run"
    assert main(f"--workdir={run}", flag) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not run.exists()


def test_without_a_configuration(capfd):
    with pytest.raises(SystemExit) as caught:
        train.main([])
    assert caught.value.code == 2
    expected = "error: the following arguments are required: --config; see python -m mbv3_jax train"
    assert capfd.readouterr().err == f"{expected} --help\n"


def test_a_misspelled_option_is_named(capfd):
    with pytest.raises(SystemExit) as caught:
        train.main(["--confg=small", "--config.seed=1"])
    assert caught.value.code == 2
    err = capfd.readouterr().err
    assert "--confg is unknown, did you mean --config?" in err
    assert "--config.seed" not in err


def test_ctrl_c_before_the_first_checkpoint(tmp_path, capfd, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(train._PROGRAMS, "train", interrupted)
    assert main(f"--workdir={tmp_path}") == 130
    err = capfd.readouterr().err
    assert err == "interrupted; no checkpoint was saved yet; run the same command again\n"


def test_ctrl_c_and_the_same_command_again(tmp_path, capfd, monkeypatch):
    run = tmp_path / "my run"

    def save(self, *args):
        os.kill(os.getpid(), signal.SIGINT)
        original(self, *args)  # an exception in here would leave Orbax's threads waiting

    original = Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        assert main(f"--workdir={run}") == 130
    err = capfd.readouterr().err
    assert err.endswith(
        f"interrupted; run the same command again to resume from the last checkpoint in {run}\n"
    )
    assert "Traceback" not in err
    assert checkpoint_steps(run) == [6]
    assert main(f"--workdir={run}") == 0
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "data: synthetic, 50 training images of 10 classes, 5 each"
    assert lines[1] == "held out: 50 test images; always answering class0 would be right for 10.0%"
    assert lines[2].startswith("network: ") and " million MAdds" in lines[2]
    assert lines[3].startswith("training: 24 steps of 8 images, 3.84 epochs, on ")
    assert lines[4:6] == [f"run folder: {run}", f"resuming from step 6 in {run}"]
    assert "step 12: held-out top-1 10.00%, loss 2.3026" in lines
    assert lines[-5].startswith("done: 24 steps, 3.8 epochs, ")
    assert lines[-4] == "top-1 10.00% on all 50 test images (ema weights)"
    assert lines[-3] == f"run folder: {run}"
    assert lines[-2].startswith(f"next: python -m mbv3_jax plot --run='{run}' --out=")


def test_a_failed_run_is_one_line(tmp_path, capfd):
    (tmp_path / "checkpoints").write_text("in the way")
    (tmp_path / "config.json").write_text(config_to_json(parse_config(TINY)))
    assert main(f"--workdir={tmp_path}") == 1
    err = capfd.readouterr().err
    assert err.startswith(f"error: cannot use {tmp_path}/checkpoints: ")
    assert err.count("\n") == 1
