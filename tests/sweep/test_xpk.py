"""The executor for xpk: what it asks for, and the manifest that the real xpk makes of it.

The real one runs where MBV3_XPK or the PATH has it (the extra `xpk`).
"""

import json
import os
import shutil
import subprocess

import pytest
import yaml
from sweep_tools import jobs_of, sweep_file

from mbv3_jax.cli import sweep
from mbv3_jax.core.errors import RunError
from mbv3_jax.sweep.combinators import product, seeds, trial
from mbv3_jax.sweep.executors import base, xpk

XPK = os.environ.get("MBV3_XPK") or shutil.which("xpk")
OPTIONS = {"cluster": "c1", "tpu_type": "v5litepod-16", "image": "gcr.io/p/mbv3:1"}


@pytest.fixture
def executor(tmp_path):
    return xpk.make(tmp_path / "nonlinearity" / "jobs", None, folder="/data/s", **OPTIONS)


@pytest.fixture
def job(tmp_path):
    trials = product(trial("h_swish@16", {"net.nonlinearity": "h_swish@16"}), seeds([2]))
    return jobs_of(tmp_path / "nonlinearity", trials)[0]


def test_what_is_asked_of_xpk(executor, job):
    manifest = executor.manifest(job)
    arguments = executor.arguments(job, manifest)
    assert arguments[:2] == ["workload", "create"]
    options = dict(a.removeprefix("--").split("=", 1) for a in arguments[2:])
    assert options["restart-on-exit-codes"] == "75" and int(options["max-restarts"]) >= 100
    assert options["workload"] == manifest.stem
    assert len(manifest.stem) < 40 and manifest.stem.startswith("nonlinearity-h-swish-16-seed")
    assert options["command"].startswith("cd /app && exec python main.py --config=")
    assert options["command"].endswith(" --config.seed=2 --workdir=/data/s/h_swish@16-seed2")
    manifest.touch()  # a second submission is another workload
    assert executor.manifest(job).stem == manifest.stem[:-1] + "2"


def test_names_are_those_of_kubernetes(tmp_path):
    names = ("a@1", "a.1", "A-1", "a-1", "x" * 60)
    folders = (tmp_path / "s", tmp_path / "other" / "s", tmp_path / "1", tmp_path / "@")
    labels = [
        base.label(jobs_of(folder, trial(name))[0], 35) for folder in folders for name in names
    ]
    assert len(set(labels)) == len(names) * len(folders)
    for text in labels:
        assert len(text) <= 35 and text[0].isalpha() and text[-1].isalnum()
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize(
    ("spec", "status", "expected"),
    [
        ({"suspend": True}, {}, base.Status("queued", reason="waits for capacity in the cluster")),
        ({"suspend": False}, {"restarts": 2}, base.Status("running")),
        ({}, {"conditions": [{"type": "Completed", "status": "True"}]}, base.Status("ended", 0)),
        (
            {},
            {"conditions": [{"type": "Failed", "status": "True", "message": "a pod left with 1"}]},
            base.Status("ended", None, "a pod left with 1"),
        ),
    ],
)
def test_states_are_those_of_the_jobset(tmp_path, monkeypatch, executor, spec, status, expected):
    item = {"metadata": {"name": "w-1"}, "spec": spec, "status": status}
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps({"items": [item]}))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\n[ "$2" = jobsets.jobset.x-k8s.io ] && cat {answer}\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert executor.poll({"a": "w-1"}) == {"a": expected}
    assert executor.poll({"a": "w-2"})["a"].reason == "the JobSet is no longer on the cluster"
    answer.write_text('{"items": 5}')
    with pytest.raises(RunError, match="the output of kubectl: items: got 5, expected a list"):
        executor.poll({"a": "w-1"})
    kubectl.write_text("#!/bin/sh\nexit 1\n")
    assert executor.poll({"a": "w-1"}) == {}


def test_without_xpk_it_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    flags = [f"--executor.{name}={value}" for name, value in OPTIONS.items()]
    code = sweep.main(
        [
            f"--sweep={sweep_file(tmp_path, 'seeds(1)')}",
            f"--workdir={tmp_path}/sweep",
            "--executor=xpk",
            "--executor.folder=/data",
            *flags,
        ]
    )
    assert code == 2
    assert capfd.readouterr().err.splitlines()[0] == (
        "error: the program 'xpk' is not installed here; pip install -e '.[xpk]', "
        "in an environment of its own"
    )


@pytest.mark.skipif(not XPK, reason="xpk is not installed (the extra `xpk`)")
def test_the_manifest_that_xpk_writes(tmp_path, monkeypatch, executor, job):
    monkeypatch.setenv("HOME", str(tmp_path))
    manifest = executor.manifest(job)
    offline = ["--project=p", "--zone=us-central2-b", "--dry-run", "--skip-validation", "--quiet"]
    done = subprocess.run(
        [XPK, *executor.arguments(job, manifest), *offline], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobset = yaml.safe_load(manifest.read_text())
    assert jobset["kind"] == "JobSet"
    assert jobset["metadata"]["name"] == manifest.stem
    assert "kueue.x-k8s.io/queue-name" in jobset["metadata"]["labels"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 1000
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert template["parallelism"] == template["completions"] == 4  # 16 chips, 4 a machine
    (rule,) = template["podFailurePolicy"]["rules"]
    # The set fails for good on any code that is not listed; 75, and kills, restart it.
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
    codes = rule["onExitCodes"]["values"]
    assert 75 in codes and 137 in codes and 143 in codes
    assert not {1, 2} & set(codes)
    pod = template["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    assert selector["cloud.google.com/gke-tpu-topology"] == "4x4"
    (container,) = pod["containers"]
    assert container["image"] == "gcr.io/p/mbv3:1"
    assert f"({' '.join(['cd /app && exec', *executor.command(job)])})" in container["command"][2]
