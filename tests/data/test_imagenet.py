"""A miniature imagenet2012 from archives laid out like the official ones, by the real TFDS builder.

Needs TensorFlow, for the building alone: pip install -e '.[data]'. Everything after
it runs as it would without.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.miniature import imagenet_archives

ROOT = Path(__file__).resolve().parents[2]
# Two synsets, and the first true labels of the validation images, from TFDS's own list.
SYNSETS = {"n01440764": (160, 60, 60), "n15075141": (60, 60, 160)}
VALIDATION = ["n01751748", "n09193705", "n02105855", "n04263257", "n03125729"]
PER_CLASS = 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow") is None
        and os.environ.get("MBV3_REQUIRE_PEERS") != "1",
        reason="preparing ImageNet needs TensorFlow: pip install -e '.[data]'",
    ),
]


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    archives = tmp_path_factory.mktemp("archives")
    imagenet_archives(archives, SYNSETS, PER_CLASS, VALIDATION)
    root = tmp_path_factory.mktemp("tfds")
    command = ("-m", "mbv3_jax", "data", "prepare", "imagenet", f"--data-dir={root}")
    done = run(*command, f"--manual-dir={archives}")
    assert f"prepared: {root / 'imagenet2012'}" in done.stdout
    return root


def test_counts_and_labels(prepared):
    from mbv3_jax.data.source import open_pair

    train, evaluate = open_pair("imagenet", resolution=32, data_dir=str(prepared))
    assert (len(train), len(evaluate), train.num_classes) == (2 * PER_CLASS, 5, 1000)
    labels = [train.class_names[train[i]["label"]] for i in range(len(train))]
    assert sorted(labels) == sorted([*SYNSETS] * PER_CLASS)
    labels = [evaluate.class_names[evaluate[i]["label"]] for i in range(len(evaluate))]
    assert sorted(labels) == sorted(VALIDATION)


def test_check_command(prepared):
    out = run("-m", "mbv3_jax", "data", "check", "imagenet", f"--data-dir={prepared}").stdout
    assert "imagenet train: 32 images, 1000 classes" in out
    assert "imagenet validation: 5 images" in out
    assert out.count("0 cannot be used") == 2


def test_train_and_evaluate(prepared, tmp_path):
    overrides = {
        "data.data_dir": prepared,
        "net.resolution": 32,
        "net.width": 0.35,
        "batch_size": 8,
        "eval_batch_size": 8,
        "total_epochs": "None",
        "total_steps": 6,
        "data.num_workers": 1,
        "log_every_steps": 2,
    }
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    run("main.py", "--config=configs/small.py:imagenet", f"--workdir={tmp_path / 'run'}", *flags)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["split"]) == (6, "validation")
    assert summary["eval"]["count"] == 5
    names = json.loads((tmp_path / "run" / "classes.json").read_text())
    assert (len(names), names[0]) == (1000, "n01440764")
    out = run("-m", "mbv3_jax", "eval", f"--run={tmp_path / 'run'}").stdout
    assert json.loads(out)["count"] == 5
