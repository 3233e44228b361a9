"""The executor for SkyPilot: its task files, read as YAML and by SkyPilot's own parser.

The real one runs where MBV3_SKY_PYTHON names a Python that has it, or this one does
(the extra `skypilot`).
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml
from paths import ROOT
from sweep_tools import jobs_of, sweep_file

from mbv3_jax.cli import sweep
from mbv3_jax.core.errors import RunError
from mbv3_jax.sweep.combinators import trial
from mbv3_jax.sweep.executors import base, skypilot

HERE = sys.executable if importlib.util.find_spec("sky") else None
PYTHON = os.environ.get("MBV3_SKY_PYTHON") or HERE


@pytest.fixture
def task_file(tmp_path):
    """task_file(**options) -> the file written for a trial."""
    (job,) = jobs_of(tmp_path / "stem", trial("32-relu", {"net.stem_filters": 32}))

    def write(**options):
        options = {"accelerators": "tpu-v5litepod-8", "bucket": "gs://b"} | options
        return skypilot.make(tmp_path / "stem" / "jobs", None, **options).describe(job)

    return write


def test_the_task_file(task_file):
    path = task_file(infra="gcp")
    task = yaml.safe_load(path.read_text())
    assert task["name"] == path.stem
    assert path.stem.startswith("stem-32-relu-") and path.stem.endswith("-1")
    assert task["resources"] == {
        "accelerators": "tpu-v5litepod-8",
        "infra": "gcp",
        "use_spot": True,
        "job_recovery": {"recover_on_exit_codes": [75]},
    }
    assert task["workdir"] == str(ROOT) and task["num_nodes"] == 1
    assert task["file_mounts"] == {"/sweeps": {"source": "gs://b", "mode": "MOUNT"}}
    assert task["setup"] == 'pip install -r requirements.txt "jax[tpu]"'
    assert task["run"].startswith("exec python main.py --config=")
    assert task["run"].endswith("--config.net.stem_filters=32 --workdir=/sweeps/stem/32-relu")
    assert task_file().stem == path.stem[:-1] + "2"  # another submission, another job


def test_gpus_and_a_setup_of_one_s_own(task_file):
    task = yaml.safe_load(task_file(accelerators="A100:8", spot=False, nodes=2).read_text())
    assert "jax[cuda13]" in task["setup"]
    assert task["num_nodes"] == 2 and task["resources"]["use_spot"] is False
    assert "infra" not in task["resources"]
    assert yaml.safe_load(task_file(setup="uv sync").read_text())["setup"] == "uv sync"


@pytest.mark.parametrize(
    "name",
    ["tpu-v2-8", "tpu-v3-2048", "tpu-v4-384", "tpu-v5litepod-1", "tpu-v5p-12288", "tpu-v6e-256"],
)
def test_tpus_that_exist(name):
    assert skypilot.check_tpu_type("accelerators", name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu-v5litepod-2", "which does not exist; tpu-v5litepod-N has N 1, 4, 8, 16, 32, 64"),
        ("tpu-v4-192", "which does not exist; tpu-v4-N has N 8, 16, 32, 64, 128, 256, 384, 512 .."),
        ("tpu-v6e-512", "which does not exist; tpu-v6e-N has N 1, 4, 8"),
        ("tpu-v9-8", "expected one of tpu-v2-N, tpu-v3-N, tpu-v4-N, tpu-v5litepod-N, tpu-v5p-N"),
        ("TPU-v4-8", "expected one of tpu-v2-N"),
        ("tpu-v4-8:1", "which does not exist"),
        ("tpu", "expected one of tpu-v2-N"),
    ],
)
def test_tpus_that_do_not(tmp_path, capfd, name, message):
    arguments = [f"--sweep={sweep_file(tmp_path, 'seeds(1)')}", "--executor=skypilot", "--dry-run"]
    options = [f"--executor.accelerators={name}", "--executor.bucket=gs://b"]
    assert sweep.main([*arguments, *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: accelerators: got '{name}'") and message in err


def test_a_bucket_is_one(tmp_path):
    with pytest.raises(ValueError, match="bucket: got '/data', expected gs://NAME or s3://NAME"):
        skypilot.make(tmp_path, None, accelerators="A100:1", bucket="/data")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("PENDING", base.Status("queued", reason="PENDING")),
        ("RECOVERING", base.Status("queued", reason="RECOVERING")),
        ("RUNNING", base.Status("running")),
        ("SUCCEEDED", base.Status("ended", 0)),
        ("FAILED", base.Status("ended", None, "it said no")),
        ("CANCELLED", base.Status("stopped", None, "cancelled")),
    ],
)
def test_states_are_those_of_the_queue(tmp_path, monkeypatch, state, expected):
    row = {"job_id": 3, "job_name": "a-1", "status": state, "failure_reason": "it said no"}
    sky = tmp_path / "sky"
    sky.write_text(f"#!/bin/sh\necho '{json.dumps([row])}'\n")
    sky.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    executor = skypilot.make(tmp_path, None, accelerators="A100:1", bucket="s3://b")
    assert executor.poll({"a": "a-1"}) == {"a": expected}
    assert executor.poll({"a": "b-1"})["a"].state == "ended"
    sky.write_text("#!/bin/sh\necho '[3]'\n")
    with pytest.raises(RunError, match=r"the output of sky: \[0\]: got 3, expected an object"):
        executor.poll({"a": "a-1"})


def test_without_skypilot_it_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = [f"--sweep={sweep_file(tmp_path, 'seeds(1)')}", f"--workdir={tmp_path}/sweep"]
    options = ["--executor.accelerators=A100:1", "--executor.bucket=gs://b"]
    assert sweep.main([*arguments, "--executor=skypilot", *options]) == 2
    assert "the program 'sky' is not installed here; pip install -e '.[skypilot]', in an env" in (
        capfd.readouterr().err
    )


_PARSE = """
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(json.dumps({
    "name": task.name, "run": task.run, "setup": task.setup, "nodes": task.num_nodes,
    "accelerators": resources.accelerators, "spot": resources.use_spot,
    "recovery": resources.job_recovery,
}))
"""


@pytest.mark.skipif(not PYTHON, reason="SkyPilot is not installed (the extra `skypilot`)")
def test_skypilot_reads_it_as_it_is_meant(tmp_path, monkeypatch, task_file):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = task_file(infra="gcp", nodes=1)
    done = subprocess.run([PYTHON, "-c", _PARSE, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    written = yaml.safe_load(path.read_text())
    assert task["name"] == written["name"] and task["run"] == written["run"]
    assert (task["accelerators"], task["nodes"], task["spot"]) == ({"tpu-v5litepod-8": 1}, 1, True)
    assert task["recovery"]["recover_on_exit_codes"] == [75]
