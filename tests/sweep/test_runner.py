"""Whole sweeps with a stand-in for main.py, and the command line around them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from paths import ROOT, TINY
from sweep_tools import jobs_of, named, recorded, stand_in, states, sweep_file

from mbv3_jax.cli import sweep as cli
from mbv3_jax.cli.sweep import default_workdir
from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.metrics import read_metrics
from mbv3_jax.sweep import state
from mbv3_jax.sweep.combinators import trial


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """sweep(trials, *flags) -> the exit code of launch/sweep.py in tmp_path/sweep."""
    stand_in(tmp_path, monkeypatch)
    folder = tmp_path / "sweep"

    def run(trials, *flags):
        return cli.main([f"--sweep={sweep_file(tmp_path, trials)}", f"--workdir={folder}", *flags])

    return run


def test_finished_trials_are_skipped(tmp_path, sweep, capfd):
    folder = tmp_path / "sweep"
    trials = 'product(chain(trial("a"), trial("b")), seeds(2))'
    assert sweep(trials, "--executor.jobs=2") == 0
    assert set(states(folder).values()) == {"finished"}
    assert "mean" in capfd.readouterr().err
    assert recorded(folder)["groups"]["a"]["top1_mean"] == pytest.approx(0.55)
    assert len((folder / "results.csv").read_text().splitlines()) == 5
    for job in ("a-seed0", "a-seed1"):
        (folder / job / "seen.json").unlink()
    (folder / "b-seed0" / "summary.json").unlink()  # as if it had not ended
    (folder / "b-seed0" / "seen.json").unlink()
    assert sweep(trials) == 0
    assert not (folder / "a-seed0" / "seen.json").exists()
    assert (folder / "b-seed0" / "seen.json").exists()


def test_failures_are_retried_up_to_a_limit_that_is_kept(tmp_path, sweep, capfd):
    folder, trials = tmp_path / "sweep", named("fails", "refused", "fine")
    assert sweep(trials, "--max-failures=3") == 1
    assert states(folder) == {"fails": "failed", "refused": "failed", "fine": "finished"}
    entries = recorded(folder)["trials"]
    assert entries["fails"]["failures"] == 3 and entries["fails"]["code"] == 1
    assert entries["refused"]["failures"] == 1  # the same would be refused again
    assert entries["fails"]["error"] == "error: the loss of step 7 is nan"
    assert f"some trials have failed; their logs: {folder}/jobs" in capfd.readouterr().err
    assert sweep(trials, "--max-failures=3") == 1
    assert recorded(folder)["trials"]["fails"]["failures"] == 3
    assert recorded(folder)["trials"]["refused"]["failures"] == 2
    assert "fails failed 6/" in (err := capfd.readouterr().err)
    assert "--max-failures=4 tries again: error: the loss of step 7 is nan" in err
    assert sweep(trials, "--max-failures=4") == 1
    assert recorded(folder)["trials"]["fails"]["failures"] == 4


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)]
)
def test_stopped_and_started_again(tmp_path, sweep, number, code):
    folder, trials = tmp_path / "sweep", named("slow", "later")
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)  # nohup may have started the tests

    def stop():
        deadline = time.monotonic() + 60
        while not (folder / "slow" / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    assert sweep(trials) == code
    thread.join()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert states(folder) == {"slow": "interrupted", "later": "waiting"}
    assert recorded(folder)["trials"]["slow"]["failures"] == 0
    assert (folder / "slow" / "checkpoints" / "6").is_dir()
    assert sweep(trials) == 0
    assert set(states(folder).values()) == {"finished"}


def test_a_sweep_that_cannot_write_leaves_no_trial_behind(tmp_path, sweep, capfd, monkeypatch):
    folder = tmp_path / "sweep"
    original = state.Record.save

    def save(self, **more):
        if (folder / "slow" / "ready").exists():
            raise OSError(28, "No space left on device")
        original(self, **more)

    monkeypatch.setattr(state.Record, "save", save)
    assert sweep(named("slow", "fine"), "--executor.jobs=2") == 1
    assert "error: stopped in " in (err := capfd.readouterr().err)
    assert "No space left on device; run the same command again to resume" in err
    with state.claim(folder):  # no trial holds it any more
        pass


def test_some_of_the_seeds(tmp_path, sweep, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sweep("seeds(3)", "--dry-run", "--seeds=2,0") == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0::2] == ["seed0", "seed2"] and err.startswith("2 trials; ")
    assert sweep("seeds(3)", "--dry-run", "--seeds=5") == 2
    assert (
        "error: --seeds: got 5, but the seeds of this sweep are 0, 1, 2" in capfd.readouterr().err
    )
    with pytest.raises(SystemExit):
        sweep("seeds(3)", "--dry-run", "--seeds=all")
    assert "got 'all', expected whole numbers with commas" in capfd.readouterr().err
    assert default_workdir("ablations/stem", [0]) == Path("runs/sweeps/stem-seeds=0")


def test_a_dry_run_starts_nothing(tmp_path, sweep, capfd):
    assert sweep("seeds(2)", "--dry-run", "--config.total_steps=9") == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0::2] == ["seed0", "seed1"]
    for number, line in enumerate(lines[1::2]):
        assert line.endswith(
            f"main.py --config={TINY} --config.total_steps=9 --config.seed={number} "
            f"--workdir={tmp_path}/sweep/seed{number}"
        )
    assert err == "2 trials; nothing was started\n"
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.nope=1", "2 of 2 trials are wrong, none was started:"),
        ("--verbose", "unknown option --verbose; --help lists the options, and fields of all"),
        ("--executor.jobs=x", "--executor.jobs: got 'x', expected a value of type int"),
        ("--executor.jobs", "--executor.jobs: expected --executor.NAME=VALUE"),
        ("--executor.nodes=2", "--executor: 'local' has no option nodes; its options: cores, gp"),
        ("--executor.cores=999", "cores: 999 is not among those that this process may use"),
        ("--max-failures=0", "--max-failures: got 0, expected at least 1"),
        ("--executor=xpk", "--executor: 'xpk' needs cluster, folder, image, tpu_type"),
    ],
)
def test_a_wrong_command_leaves_nothing(tmp_path, sweep, capfd, flag, message):
    assert sweep("seeds(2)", flag) == 2
    assert capfd.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "sweep").exists()


def test_folders_that_cannot_be_used(tmp_path, sweep, capfd):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    assert sweep("seeds(1)") == 2
    assert "is not a sweep's folder (it holds thesis.tex)" in capfd.readouterr().err
    assert cli.main([f"--sweep={sweep_file(tmp_path, 'seeds(1)')}", "--workdir=/dev/null/a"]) == 2
    assert "cannot write to /dev/null/a: Not a directory" in capfd.readouterr().err
    assert cli.main([f"--sweep={sweep_file(tmp_path, 'seeds(1)')}", "--workdir=runs/a[1]"]) == 2
    assert "checkpoints cannot be read from a path with [ in it" in capfd.readouterr().err
    assert cli.main([f"--sweep={sweep_file(tmp_path, 'seeds(1)')}", "--workdir=runs/a\\b"]) == 2
    assert r"runs/a\b: checkpoints cannot be read from a path with \ in" in capfd.readouterr().err


def test_one_sweep_command_at_a_time(tmp_path, sweep, capfd):
    folder = tmp_path / "sweep"
    with state.claim(folder):
        assert sweep("seeds(1)") == 2
    assert f"{folder}: a sweep is running there" in capfd.readouterr().err
    # Also while a trial lives whose sweep command was killed.
    with state.claim(folder) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    try:
        with pytest.raises(UsageError, match="or trials of one that was killed still are"):
            state.claim(folder).__enter__()
    finally:
        child.kill()
        child.wait()
    with state.claim(folder):
        pass


def test_another_executor_waits_for_the_jobs_of_the_first(tmp_path, sweep, capfd):
    folder = tmp_path / "sweep"
    entries = state.Record(folder, jobs_of(folder, trial("a")), sweep="s", executor="slurm")
    entries["a"].handle = "17_0"
    entries.save()
    assert sweep(named("a")) == 2
    assert "1 trials, a among them, still run by --executor=slurm" in capfd.readouterr().err


def test_a_record_of_an_older_version_is_read(tmp_path, sweep):
    folder = tmp_path / "sweep"
    assert sweep(named("fails"), "--max-failures=1") == 1
    stored = recorded(folder)
    assert stored.pop("format") == state.FORMAT_VERSION
    (folder / "sweep.json").write_text(json.dumps(stored))
    assert sweep(named("fails"), "--max-failures=2") == 1
    assert recorded(folder)["trials"]["fails"]["failures"] == 2  # one of them from before


def test_a_record_of_a_newer_version_is_refused_and_kept(tmp_path, sweep, capfd):
    folder = tmp_path / "sweep"
    assert sweep(named("a")) == 0
    (folder / "sweep.json").write_text('{"format": 99, "trials": {"a": {"mood": "good"}}}')
    capfd.readouterr()
    assert sweep(named("a")) == 2
    assert capfd.readouterr().err == (
        f"error: {folder}/sweep.json was written by a newer version of mbv3_jax, in format 99; "
        f"this one reads formats up to {state.FORMAT_VERSION}\n"
    )
    assert "mood" in (folder / "sweep.json").read_text()


def test_a_damaged_record_is_one_line(tmp_path, sweep, capfd):
    assert sweep(named("a")) == 0
    (tmp_path / "sweep" / "sweep.json").write_text('{"trials": ')
    capfd.readouterr()
    assert sweep(named("a")) == 2
    assert "sweep.json is damaged" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("sweep_argument", "folder"),
    [
        ("configs/ablations/stem.py", "runs/sweeps/stem"),
        ("configs/ablations/stem.py:folder=/a b", "runs/sweeps/stem-folder=-a-b"),
        ("stem", "runs/sweeps/stem"),
        ("ablations/stem:imagenet", "runs/sweeps/stem-imagenet"),
    ],
)
def test_default_folder(sweep_argument, folder):
    assert str(cli.default_workdir(sweep_argument)) == folder


@pytest.mark.slow
def test_real_trials_interrupted_and_resumed(tmp_path):
    file = sweep_file(tmp_path, "seeds(1)")
    folder = tmp_path / "sweep"
    arguments = [sys.executable, "launch/sweep.py", f"--sweep={file}", f"--workdir={folder}"]
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while (
        not read_metrics(folder / "seed0")
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    if process.returncode != 0:  # else it was faster
        assert process.returncode == 130
        assert states(folder) == {"seed0": "interrupted"}
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "seed0 finished 24/24 10.00%" in done.stderr
    (row,) = recorded(folder)["results"]
    assert (row["trial"], row["steps"], row["eval.count"]) == ("seed0", 24, 50)
    assert (folder / "results.csv").read_text().startswith("trial,group,seed,config.seed,eval.")
