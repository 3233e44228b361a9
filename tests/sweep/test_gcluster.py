"""The executor for Cluster Toolkit: what it asks of gcluster, and the JobSet that comes of it.

gcluster itself asks the cluster even for a dry run; a stand-in checks the options as it does.
"""

import json
import os
import shlex
import sys

import pytest
from paths import ROOT
from sweep_tools import jobs_of, named, states, sweep_file

from mbv3_jax.cli import sweep
from mbv3_jax.core.errors import RunError
from mbv3_jax.sweep.combinators import product, seeds, trial
from mbv3_jax.sweep.executors import base, gcluster

OPTIONS = {"cluster": "c1", "compute_type": "v6e-16", "image": "gcr.io/p/mbv3:1"}
MOUNT = "gs://b;/data;rw"
# Reads the JobSets that the stand-in wrote, each with the status that a test gave it.
KUBECTL = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
if sys.argv[2:4] == ["get", "jobsets.jobset.x-k8s.io"]:
    print(json.dumps({"items": [json.loads(f.read_text()) for f in folder.glob("*.json")]}))
else:
    assert sys.argv[2:5] == ["delete", "jobsets.jobset.x-k8s.io", "--ignore-not-found"]
    [(folder / f"{name}.json").unlink(missing_ok=True) for name in sys.argv[5:]]
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The folder of JobSets of a cluster with stand-ins for gcluster and kubectl on the PATH."""
    folder, programs = tmp_path / "cluster", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    (programs / "kubectl.py").write_text(KUBECTL)
    stand_in = ROOT / "tests" / "support" / "stand_in_gcluster.py"
    commands = {
        "gcluster": [sys.executable, str(stand_in)],
        "kubectl": [sys.executable, str(programs / "kubectl.py"), str(folder)],
    }
    for name, command in commands.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("STAND_IN_CLUSTER", str(folder))
    return folder


@pytest.fixture
def job(tmp_path):
    trials = product(trial("h_swish@16", {"net.nonlinearity": "h_swish@16"}), seeds([2]))
    return jobs_of(tmp_path / "nonlinearity", trials)[0]


def make(tmp_path, **options):
    descriptions = tmp_path / "nonlinearity" / "jobs"
    return gcluster.make(descriptions, None, folder="/data/s", **OPTIONS | options)


def test_the_jobset_that_comes_of_it(tmp_path, cluster, job):
    executor = make(tmp_path, project="p", location="us-east5-a", slices=2, mount=MOUNT)
    name = executor.submit([job])[job.name]
    assert name.startswith("nonlinearity-h-sw") and len(name) <= 28
    jobset = json.loads((cluster / f"{name}.json").read_text())
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 1000
    assert jobset["spec"]["ttlSecondsAfterFinished"] == 24 * 3600
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    template = replicated["template"]["spec"]
    # The set fails for good on any code that is not listed; 75, and kills, restart it.
    (rule,) = template["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
    assert rule["onExitCodes"]["values"] == [75, 137, 143]
    pod = template["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    (container,) = pod["containers"]
    assert container["image"] == "gcr.io/p/mbv3:1"
    *shell, command = container["command"]
    assert shell == ["/bin/bash", "-c"]
    assert command == f"cd /app && exec {shlex.join(executor.command(job))}"
    assert command.endswith(" --config.seed=2 --workdir=/data/s/h_swish@16-seed2")
    # What was submitted can be read, and submitted again by hand; a second time is another job.
    script = (tmp_path / "nonlinearity" / "jobs" / f"{name}.sh").read_text()
    assert shlex.split(script) == ["gcluster", *executor.arguments(job, name)]
    assert executor.submit([job])[job.name] == f"{name[:-1]}2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": "urgent"}, "invalid value for --priority: urgent"),
        ({"mount": "gs://b:/data:rw"}, "invalid volume format: gs://b:/data:rw"),
        ({"gcluster": "--spot"}, "unknown flag: --spot"),
    ],
)
def test_what_gcluster_refuses_is_said(tmp_path, cluster, job, options, message):
    with pytest.raises(RunError, match=f"h_swish@16-seed2: .*gcluster failed: Error: {message}"):
        make(tmp_path, **options).submit([job])


def test_a_whole_sweep(tmp_path, cluster, monkeypatch, capfd):
    monkeypatch.setattr(gcluster.GCluster, "interval", 0.01)
    ends = {"a": {"type": "Completed"}, "b": {"type": "Failed", "message": "a pod left with 1"}}
    poll = gcluster.GCluster.poll

    def ended(self, handles):
        for name, condition in ends.items():
            path = cluster / f"{handles[name]}.json"
            status = {"conditions": [{**condition, "status": "True"}]}
            path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status}))
        return poll(self, handles)

    monkeypatch.setattr(gcluster.GCluster, "poll", ended)
    arguments = [f"--sweep={sweep_file(tmp_path, named('a', 'b'))}", f"--workdir={tmp_path}/sweep"]
    arguments += ["--executor=gcluster", "--executor.folder=/data", "--max-failures=1"]
    arguments += [f"--executor.{name}={value}" for name, value in OPTIONS.items()]
    assert sweep.main(arguments) == 1
    assert "a pod left with 1" in capfd.readouterr().err
    assert states(tmp_path / "sweep")["b"] == "failed"


def test_cancelled_jobs_are_gone(tmp_path, cluster, job):
    executor = make(tmp_path)
    handles = executor.submit([job])
    assert executor.poll(handles) == {job.name: base.Status("running")}
    executor.cancel(handles)
    assert executor.poll(handles)[job.name].reason == "the JobSet is no longer on the cluster"


def test_without_gcluster_it_says_so(tmp_path, monkeypatch, job):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Exception, match="the program 'gcluster' is not installed here; see https"):
        make(tmp_path).submit([job])


def test_a_program_that_asks_gets_no_answer(monkeypatch):
    """Nobody would see its question."""
    reads, writes = os.pipe()
    before = os.dup(0)
    os.write(writes, b"yes\n")
    os.dup2(reads, 0)
    try:
        with pytest.raises(RunError, match="EOFError"):
            base.run([sys.executable, "-c", "input('Continue? ')"], what="a")
    finally:
        os.dup2(before, 0)
        for number in (reads, writes, before):
            os.close(number)
