"""The executor for SLURM: the script as text, and on a real cluster of one node on loopback."""

import json
import os
import shutil
import subprocess
import threading
import time

import pytest
import slurm_cluster
from sweep_tools import jobs_of, named, recorded, stand_in, states, sweep_file

from mbv3_jax.cli import sweep as cli
from mbv3_jax.sweep.combinators import seeds
from mbv3_jax.sweep.executors import base, slurm


def test_the_script_is_an_array_with_a_case_for_each_trial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executor = slurm.make(
        tmp_path / "jobs",
        None,
        partition="gpu",
        time="1:00:00",
        nodes=2,
        tasks_per_node=4,
        gpus_per_task=1,
        limit=3,
        grace=60,
        setup="module load cuda",
        sbatch="--qos=low --constraint=a100",
    )
    text = executor.script(jobs_of(tmp_path, seeds(5)), name="sweep")
    directives = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "--job-name=sweep",
        "--array=0-4%3",
        "--partition=gpu",
        "--time=1:00:00",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-task=1",
        "--qos=low",
        "--constraint=a100",
        "--signal=B:USR1@60",
        "--requeue",
        "--open-mode=append",
        f"--output={tmp_path}/jobs/slurm-%A_%a.out",
    ]
    assert text.count(") log=") == 5
    assert "\nmodule load cuda\n" in text
    assert f"4) log={tmp_path}/jobs/seed4.log\n" in text
    assert f"--config.seed=4 --workdir={tmp_path}/seed4) ;;" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(tmp_path):
    text = slurm.make(tmp_path, None).script(jobs_of(tmp_path, seeds(2)), name="sweep")
    done = subprocess.run(
        ["shellcheck", "--shell=bash", "-"], input=text, text=True, capture_output=True
    )
    assert done.stdout == "" and done.returncode == 0


def test_without_slurm_it_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    file = sweep_file(tmp_path, "seeds(1)")
    arguments = [f"--sweep={file}", f"--workdir={tmp_path}/sweep", "--executor=slurm"]
    assert cli.main(arguments) == 2
    assert capfd.readouterr().err.splitlines()[0] == (
        "error: the program 'sbatch' is not installed here; run the sweep where SLURM's commands "
        "are, on a login node"
    )
    assert not (tmp_path / "sweep").exists()
    assert cli.main([*arguments, "--dry-run"]) == 0


def test_a_controller_that_is_away_changes_nothing(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert slurm.make(tmp_path, None).poll({"a": "7_0"}) == {}
    squeue.write_text('#!/bin/sh\necho "8_0|RUNNING|None"\n')
    executor = slurm.make(tmp_path, None)
    assert executor.poll({"a": "7_0", "b": "8_0"}) == {"b": base.Status("running")}
    # Once more, in case the file was late; then the job has left without a word.
    assert executor.poll({"a": "7_0"})["a"].reason.startswith("SLURM ended the job: cancelled, ")
    (tmp_path / "a.log.exit").write_text("7_0 1\n")
    assert executor.poll({"a": "7_0"}) == {"a": base.Status("ended", 1)}


@pytest.fixture(scope="module")
def slurm_here():
    """Starts a cluster; its commands work while this lasts."""
    if missing := slurm_cluster.missing():
        text = f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
        if os.environ.get("MBV3_REQUIRE_SLURM"):
            pytest.fail(text)
        pytest.skip(text)
    with slurm_cluster.cluster() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def sweep(slurm_here, tmp_path, monkeypatch):
    """sweep(trials, *flags) -> exit code, with a stand-in for main.py."""
    stand_in(tmp_path, monkeypatch)
    folder = tmp_path / "sweep"

    def run(trials, *flags):
        file = sweep_file(tmp_path, trials)
        return cli.main([f"--sweep={file}", f"--workdir={folder}", "--executor=slurm", *flags])

    yield run
    subprocess.run(["scancel", "--me"], check=True)  # of a test that failed


def when(path, *command):
    """Starts a thread that runs a command once there is something in a file."""

    def wait():
        deadline = time.monotonic() + 120
        while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        subprocess.run([part() if callable(part) else part for part in command], check=True)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def handle(folder, name):
    return lambda: recorded(folder)["trials"][name]["handle"]


def log(folder, name):
    return (folder / "jobs" / f"{name}.log").read_text()


def test_an_array_with_every_way_to_end(tmp_path, sweep):
    folder = tmp_path / "sweep"
    # The announcement of the time limit, which comes to the batch shell; "saves" asks by itself.
    thread = when(
        folder / "slow" / "ready", "scancel", "--batch", "--signal=USR1", handle(folder, "slow")
    )
    assert sweep(named("fine", "fails", "refused", "saves", "slow")) == 1
    thread.join()
    assert states(folder) == {
        "fine": "finished",
        "fails": "failed",
        "refused": "failed",
        "saves": "finished",
        "slow": "finished",
    }
    entries = recorded(folder)["trials"]
    assert [entries[name]["failures"] for name in entries] == [0, 2, 1, 0, 0]
    assert entries["fails"]["error"] == "error: the loss of step 7 is nan"
    for name in ("saves", "slow"):
        text = log(folder, name)
        assert text.count("saved; requeueing") == 1
        assert [line[-1] for line in text.splitlines() if ", restarts: " in line] == ["0", "1"]
    assert len(list((folder / "jobs").glob("array-*.sbatch"))) == 2  # the retry is one of its own


def test_watching_ends_and_begins_again(tmp_path, sweep, capfd):
    folder, trials = tmp_path / "sweep", named("slow")
    thread = when(folder / "slow" / "ready", "kill", "-INT", str(os.getpid()))
    assert sweep(trials) == 130
    thread.join()
    assert "keep running; run the same command again to watch them" in capfd.readouterr().err
    assert states(folder)["slow"] in ("queued", "running")
    # SLURM announces a preemption to the trial's processes; its handle stays the same.
    subprocess.run(["scancel", "--signal=TERM", handle(folder, "slow")()], check=True)
    assert sweep(trials) == 0
    assert states(folder) == {"slow": "finished"}
    assert log(folder, "slow").count("saved; requeueing") == 1
    assert len(list((folder / "jobs").glob("array-*.sbatch"))) == 1


def test_what_is_cancelled_saves_and_is_not_requeued(tmp_path, sweep, capfd):
    folder, trials = tmp_path / "sweep", named("slow")
    thread = when(folder / "slow" / "ready", "scancel", handle(folder, "slow"))
    assert sweep(trials) == 75
    thread.join()
    assert states(folder) == {"slow": "interrupted"}
    assert "saved\n" in log(folder, "slow") and "requeueing" not in log(folder, "slow")
    (folder / "slow" / "checkpoints" / "6").rmdir()
    (folder / "slow" / "checkpoints").rmdir()  # so that it is slow again
    (folder / "slow" / "ready").unlink()
    thread = when(folder / "slow" / "ready", "kill", "-INT", str(os.getpid()))
    assert sweep(trials) == 130
    thread.join()
    assert sweep(trials, "--cancel") == 0
    assert states(folder) == {"slow": "interrupted"}
    assert sweep(trials) == 0
    assert states(folder) == {"slow": "finished"}


def test_processes_of_a_trial_are_tasks_of_one_step(tmp_path, sweep):
    assert sweep(named("a"), "--executor.tasks_per_node=2") == 0
    seen = json.loads((tmp_path / "sweep" / "a" / "seen.json").read_text())
    assert seen["SLURM_NTASKS"] == "2"


def test_sbatch_s_own_words_are_passed_on(tmp_path, sweep, capfd):
    assert sweep(named("a"), "--executor.partition=none") == 1
    assert "invalid partition specified: none" in capfd.readouterr().err
    assert states(tmp_path / "sweep") == {"a": "waiting"}


@pytest.mark.slow
def test_real_trials(slurm_here, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm.Slurm, "interval", 0.5)
    folder = tmp_path / "sweep"
    file = sweep_file(tmp_path, "seeds(2)")
    assert cli.main([f"--sweep={file}", f"--workdir={folder}", "--executor=slurm"]) == 0
    assert states(folder) == {"seed0": "finished", "seed1": "finished"}
    (group,) = recorded(folder)["groups"].values()
    assert group["runs"] == 2 and 0 <= group["top1_mean"] <= 1
    assert [(row["steps"], row["eval.count"]) for row in recorded(folder)["results"]] == [
        (24, 50),
        (24, 50),
    ]


@pytest.mark.slow
def test_a_real_trial_of_two_processes_is_pre_empted(slurm_here, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm.Slurm, "interval", 0.5)
    folder = tmp_path / "sweep"
    monkeypatch.delenv("XLA_FLAGS")  # one device for each process
    overrides = [f"--config.{name}_steps=120" for name in ("total", "eval_every")]
    overrides += ["--config.checkpoint_every_steps=60"]
    file = sweep_file(tmp_path, named("two"))
    thread = when(
        folder / "two" / "metrics.jsonl", "scancel", "--signal=TERM", handle(folder, "two")
    )
    flags = [f"--sweep={file}", f"--workdir={folder}", "--executor=slurm"]
    assert cli.main([*flags, "--executor.tasks_per_node=2", *overrides]) == 0
    thread.join()
    text = log(folder, "two")
    # JAX has found the two processes, and both have left at the same step.
    assert "process 0 of 2: " in text and "process 1 of 2: " in text
    assert text.count("saved; requeueing") == 1
    assert "resuming from step " in text
    (row,) = recorded(folder)["results"]
    assert (row["steps"], row["eval.count"]) == (120, 50)
    assert recorded(folder)["trials"]["two"]["failures"] == 0
