"""Our files have no more operations than those that Keras and PyTorch export."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from paths import ROOT

from mbv3_jax.export import formats

NEEDED = ("litert_converter", "onnx", "onnxruntime", "keras", "tensorflow", "timm", "onnxscript")
if not os.environ.get("MBV3_REQUIRE_PEERS"):
    for package in NEEDED:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed", allow_module_level=True)


@pytest.mark.slow
def test_no_more_operations_than_keras_and_pytorch(tmp_path):
    command = "-m benchmarks.export --make --networks mobilenet_v3_small --folder"
    done = subprocess.run(
        [sys.executable, *command.split(), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    def operations(name, kind):
        file = tmp_path / f"mobilenet_v3_small.{name}.{kind}"
        return sum(formats.counts(file.read_bytes(), kind).values())

    assert operations("ours_tflite", "tflite") <= operations("keras_tflite", "tflite")
    ours = operations("ours_onnx", "onnx")
    assert ours <= operations("timm_onnx", "onnx")
    assert ours <= operations("timm_onnx_dynamo", "onnx")
