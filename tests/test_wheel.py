"""The wheel: what is in it, and that it works from an empty folder without the repository."""

import email
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow

PARTS = ("mbv3_jax", "configs")
FILES = ("LICENSE", "README.md", "pyproject.toml", "requirements.txt", "setup.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy: setuptools leaves a folder build/ in the source."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, f"--wheel-dir={out}", str(source)], check=True, timeout=300)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """run(folder, *arguments) -> the finished command, with only the unpacked wheel on the path."""
    site = tmp_path_factory.mktemp("site")
    wheel.extractall(site)

    def command(folder, *arguments):
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
        return subprocess.run(
            [sys.executable, "-P", "-m", "mbv3_jax", *arguments],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(site), "COLUMNS": "300"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return command


def test_it_holds_the_package_and_the_configurations(wheel):
    expected = set()
    for name, prefix in (("mbv3_jax", ""), ("configs", "mbv3_jax/_shipped/")):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(prefix + path.relative_to(ROOT).as_posix())
    names = {name for name in wheel.namelist() if not name.startswith("mbv3_jax-")}
    assert names == expected
    assert "mbv3_jax/_shipped/configs/ablations/nonlinearity.py" in names
    assert {"mbv3_jax/interop/imagenet_classes.txt", "mbv3_jax/report/page.html.j2"} <= names


def test_its_metadata(wheel):
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    base = {line.replace('"', "'") for line in lines if not line.startswith("#")}
    required = metadata.get_all("Requires-Dist")
    assert {r.replace('"', "'") for r in required if "extra ==" not in r} == base
    extras = {"export", "weights", "search", "data", "peers", "test", "docs", "all"}
    extras |= {"coreml", "skypilot", "xpk", "wandb", "mlflow", "trackio"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert b"mbv3 = mbv3_jax.__main__:main" in wheel.read(f"{folder}/entry_points.txt")
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()


def test_names_are_found_from_an_empty_folder(run, tmp_path):
    done = run(tmp_path, "summary", "--config=large:imagenet")
    assert done.returncode == 0 and "5,483,032" in done.stdout, done.stderr
    done = run(tmp_path, "sweep", "--sweep=nonlinearity", "--dry-run", "--config.total_epochs=1")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0] == "v3", done.stderr
    assert lines[1].endswith(
        "-m mbv3_jax train --config=configs/small.py:clutter --config.total_epochs=1 "
        "'--config.seeds=(0, 1, 2)' --workdir=runs/sweeps/nonlinearity/v3"
    )
    done = run(tmp_path, "train", "--config=smal")
    assert done.returncode == 2 and "did you mean small?" in done.stderr
    assert not list(tmp_path.iterdir())


def test_advice_is_for_an_installed_package(run, tmp_path):
    sky = ["--executor=skypilot", "--executor.accelerators=A100:1", "--executor.bucket=gs://b"]
    done = run(tmp_path, "sweep", "--sweep=smoke", *sky)
    assert done.returncode == 2
    assert done.stderr.startswith("error: setup: got None, expected lines of shell that install")


def test_a_sweep_trains_and_is_reported(run, tmp_path):
    """A sweep file of the user's own, which imports the shipped configurations."""
    (tmp_path / "mine.py").write_text(
        "from configs import common\n"
        "def get_config():\n"
        "    config = common.default('mobilenet_v3_small')\n"
        "    config.net.update(width=0.35, resolution=32, num_classes=4)\n"
        "    config.data.update(name='synthetic', num_classes=4, num_examples=16)\n"
        "    config.update(batch_size=8, total_steps=2, eval_batch_size=8)\n"
        "    config.schedule.update(warmup_steps=0)\n"
        "    config.eval_every_steps = config.checkpoint_every_steps = 2\n"
        "    return config\n"
    )
    (tmp_path / "sweep.py").write_text(
        "from mbv3_jax.sweep.combinators import Sweep, seeds\n"
        "def get_sweep():\n    return Sweep('mine.py', seeds(1))\n"
    )
    done = run(tmp_path, "sweep", "--sweep=sweep.py", "--workdir=out")
    assert done.returncode == 0, done.stderr
    assert "seed0 finished 2/2" in done.stderr
    done = run(tmp_path, "report", "out", "--no-latency", "--out=report.html")
    assert done.returncode == 0 and (tmp_path / "report.html").stat().st_size > 1000, done.stderr
