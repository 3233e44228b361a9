"""launch/tpu_pod.sh with a gcloud that only notes what it is asked."""

import os
import shutil
import subprocess

import pytest
from paths import ROOT

SCRIPT = str(ROOT / "launch" / "tpu_pod.sh")


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """launch(codes, *arguments) -> (process, calls of gcloud); a run ends with each in turn."""
    monkeypatch.setenv("MBV3_RESTART_SECONDS", "0")

    def run(codes, *arguments):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        gcloud = tmp_path / "gcloud"
        gcloud.write_text(
            f"""#!/bin/bash
printf '%s\\n' "$*" >>{tmp_path}/calls
case "$*" in
*main.py*)
  code=$(head -n 1 {tmp_path}/codes)
  sed -i 1d {tmp_path}/codes
  exit "$code" ;;
*scp*) tar -tzf "$5" main.py || exit 9 ;;
esac
"""
        )
        gcloud.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
@pytest.mark.parametrize(("codes", "runs"), [([0], 1), ([75, 75, 0], 3), ([75, 1], 2)])
def test_it_runs_on_all_workers_until_it_is_over(launch, codes, runs):
    done, calls = launch(codes, "pod", "us-central2-b", "--config=a.py", "--workdir=/mnt/a b")
    assert done.returncode == codes[-1], done.stderr
    commands = [line for line in calls if "main.py" in line]
    remote = r"cd mbv3_jax && exec .venv/bin/python main.py --config=a.py --workdir=/mnt/a\ b"
    one = f"compute tpus tpu-vm ssh pod --zone=us-central2-b --worker=all --command={remote}"
    assert commands == [one] * runs
    assert sum(" scp " in line for line in calls) == 1
    assert any("pip install --quiet -r requirements.txt" in line for line in calls)


def test_without_arguments_it_explains_itself(launch):
    done, calls = launch([], "pod")
    assert done.returncode == 2 and not calls
    assert done.stderr.startswith("One run on all workers of a TPU VM")
    assert "launch/tpu_pod.sh NAME ZONE --config=" in done.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_script():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.stdout == "" and done.returncode == 0
