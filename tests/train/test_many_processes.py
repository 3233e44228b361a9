"""Runs of two processes on this machine, with gloo between them, and runs that move."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT, TINY
from processes import run
from run_checks import checkpoint_steps

from mbv3_jax.run.metrics import read_metrics

SHARDED = "--config.compute.shard_optimizer=True"


@pytest.fixture(scope="module")
def lone(tmp_path_factory):
    """A run of one process with one device that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "lone"
    assert [code for code, _ in run(1, f"--workdir={folder}")] == [0]
    return folder


def assert_same_curve(folder, other):
    """The same records at the same steps, to float32 rounding."""
    ours, theirs = read_metrics(folder), read_metrics(other)
    assert [(r["step"], r["kind"]) for r in ours] == [(r["step"], r["kind"]) for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in a.keys() - {"step", "kind", "images_per_second"}:
            np.testing.assert_allclose(
                a[name], b[name], rtol=2e-4, atol=1e-6, err_msg=f"{name} of step {a['step']}"
            )


def test_two_processes_make_the_curve_of_one(lone, tmp_path):
    folder = tmp_path / "two"
    (code, first), (other_code, second) = run(2, f"--workdir={folder}")
    assert (code, other_code) == (0, 0)
    assert "top-1 10.00% on all 50 test images (ema weights)" in first
    assert second.strip() == ""  # the first alone prints
    assert_same_curve(folder, lone)
    assert checkpoint_steps(folder) == [12, 18, 24]
    evaluations = [r["count"] for r in read_metrics(folder) if r["kind"] == "eval"]
    assert evaluations == [50, 50]  # the second process has none of the last batch


@pytest.mark.slow
def test_a_run_moves_between_processes_and_devices(lone, tmp_path):
    folder = tmp_path / "moving"
    workdir = f"--workdir={folder}"
    # The request reaches one process only; both stop, at the same step.
    moved = [
        run(1, workdir, signals=["SIGTERM@step5"]),
        run(2, workdir, signals=["never", "SIGUSR1@step4"]),
        run(1, workdir, SHARDED, signals=["SIGTERM@step3"], devices=8),
    ]
    newest = checkpoint_steps(folder)[-1]
    (folder / "checkpoints" / str(newest) / "position" / "metadata").unlink()
    moved.append(run(2, workdir, SHARDED, devices=2))  # both go on from the one before it
    assert f"it is now {folder}/damaged/{newest}\n" in moved[-1][0][1]
    codes = [[code for code, _ in processes] for processes in moved]
    assert codes == [[75], [75, 75], [75], [0, 0]]
    assert "preempted; run the same command again to resume from its last" in moved[0][0][1]
    assert_same_curve(folder, lone)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_does_not_keep_the_other_waiting(tmp_path, victim):
    signals = ["never", "never"]
    signals[victim] = "SIGKILL@step8"
    results = run(2, f"--workdir={tmp_path / 'run'}", signals=signals, patience=20)
    assert results[victim][0] == -signal.SIGKILL
    code, err = results[1 - victim]
    assert code == 75, err
    assert f"process {1 - victim} of 2: " in err
    assert "resume from the last checkpoint" in err
    assert checkpoint_steps(tmp_path / "run") in ([], [6])


def test_a_process_that_hangs_does_not_keep_the_other_waiting(tmp_path):
    signals = ["never", "SIGSTOP@step8"]
    (code, err), (stopped, _) = run(
        2, f"--workdir={tmp_path / 'run'}", signals=signals, patience=8, ends=[0]
    )
    assert code == 75, err
    # Both limits are of the same length: either is met first.
    stalled = "no step or batch ended within the limit (--patience 8 s); not there yet: process 1"
    silent = "process 1 has been silent for 8 s"
    assert any(f"error: process 0 of 2: {reason}" in err for reason in (stalled, silent)), err
    assert "; run the same command again to resume from the last check" in err
    assert stopped == -signal.SIGKILL  # by the end of this test


def test_a_process_whose_peers_never_come_says_so(tmp_path):
    flags = ["--coordinator=127.0.0.1:9", "--num-processes=2", "--process-id=1", "--patience=2"]
    ((code, err),) = run(1, f"--workdir={tmp_path / 'run'}", *flags)
    assert code == 75, err
    said = (
        "error: the processes did not meet at 127.0.0.1:9 within --patience 2 s; some did not come"
    )
    assert said in err and "stack trace" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "want", "said"),
    [("SIGTERM", 75, "preempted"), ("SIGUSR1", 75, "preempted"), ("SIGINT", 130, "interrupted")],
)
def test_a_signal_while_the_processes_meet_is_answered_at_once(tmp_path, name, want, said):
    flags = ["--coordinator=127.0.0.1:9", "--num-processes=2", "--process-id=1"]
    where, signals = f"--workdir={tmp_path / 'run'}", [f"{name}@meeting"]
    ((code, err),) = run(1, where, *flags, signals=signals, patience=300, timeout=150)
    assert code == want, err
    assert err.strip().splitlines()[-1].startswith(f"{said} before the processes had met")
    assert "trace" not in err.lower() and "error" not in err.lower()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_preempted_alone_ends_all_at_once(tmp_path, victim):
    """The first one has the service that JAX's exit, and its alarms, are about."""
    signals = ["never", "never"]
    signals[victim] = "SIGTERM@met"
    results = run(2, f"--workdir={tmp_path / 'run'}", signals=signals, patience=300)
    assert [code for code, _ in results] == [75, 75]
    said = "preempted before anything was trained"
    assert results[victim][1].strip() == f"process {victim} of 2: {said}"
    assert results[1 - victim][1].strip() == (
        f"error: process {1 - victim} of 2: process {victim} ended: {said}; run the same command "
        "again to resume from the last checkpoint, if there is one"
    )


@pytest.mark.parametrize("start", ['run_path("main.py"', 'run_module("mbv3_jax", alter_sys=True'])
def test_a_signal_while_python_imports_waits_too(tmp_path, start):
    command = [sys.executable, "-c", IMPORTS.replace("START(", f"{start}, ")]
    command += ["train"] if "module" in start else []
    command += [f"--config={TINY}", f"--workdir={tmp_path / 'run'}"]
    environ = {"GLIBC_TUNABLES": "", **os.environ}  # it starts only once
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert done.stderr.strip() == "preempted before anything was trained"


# Sends the signal at the first import that takes time.
IMPORTS = """
import os
import runpy
import signal
import sys


class Signals:
    def find_spec(self, name, *_):
        if name in ("mbv3_jax.arch", "mbv3_jax.cli"):
            os.kill(os.getpid(), signal.SIGTERM)


sys.meta_path.insert(0, Signals())
runpy.START(run_name="__main__")
"""


def test_a_signal_while_a_process_starts_waits_until_it_can_be_answered(tmp_path):
    """main.py starts itself again, which would take it back to the default: to die with 143."""
    environ = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", RAISES, f"--config={TINY}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert done.stderr.strip() == "preempted before anything was trained"


# Sends the signal as the process starts again, as nobody could from outside.
RAISES = """
import os
import runpy
import signal
import sys

execv = os.execv

def signalled(path, arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    execv(path, [sys.executable, "main.py", *sys.argv[1:]])

os.execv = signalled
runpy.run_path("main.py", run_name="__main__")
"""


def test_what_one_process_finds_wrong_ends_all(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    (code, first), (other_code, second) = run(2, f"--workdir={tmp_path}")
    assert (code, other_code) == (2, 2)
    assert f"error: process 0 of 2: {tmp_path} is not a run folder (it holds thesis.tex" in first
    assert f"error: process 1 of 2: {tmp_path} is not a run folder (it holds thesis.tex" in second
