"""Measuring, in the runtimes that are installed: what is reported, not how long it took."""

import json
import os

import numpy as np
import pytest

from mbv3_jax import __main__
from mbv3_jax.arch import build, spec_to_json
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.packages import installed
from mbv3_jax.export import tflite
from mbv3_jax.latency import measure, subjects
from mbv3_jax.latency.measure import Effort, Timing, machine, measure_files, ratios
from mbv3_jax.latency.subjects import random_model, write_file

QUICK = Effort(warmup_seconds=0, seconds=0.02, runs=12, turn_seconds=0.004)
PACKAGES = {
    "litert": ("litert_converter", "ai_edge_litert"),
    "onnxruntime": ("onnx", "onnxruntime"),
    "xla": ("jax",),
}


def require(runtime: str):
    if not (installed(*PACKAGES[runtime]) or os.environ.get("MBV3_REQUIRE_PEERS")):
        pytest.skip(f"{runtime} is not installed")


@pytest.fixture(scope="module")
def model(tiny_spec):
    return random_model(tiny_spec)


@pytest.mark.parametrize("runtime", measure.RUNTIMES)
def test_each_runtime_is_measured(runtime, model, tmp_path):
    require(runtime)
    path = write_file(tmp_path, model, runtime, "float32")
    (found,) = measure_files([(runtime, path)], effort=QUICK, profile=True)
    assert 0 < found.least <= found.low <= found.ms <= found.high
    assert found.mad >= 0 and found.runs >= QUICK.runs
    assert found.least <= min(found.turns)
    assert found.versions and (found.runtime, found.threads) == (runtime, 1)
    if runtime == "onnxruntime":
        profile = {row["op"]: row for row in found.profile}
        # Nodes are named by what they do; ONNX Runtime fuses some, and no convolution away.
        spec, blocks = model.spec, len(model.spec.blocks)
        squeezed = sum(block.se is not None for block in spec.blocks)
        expanded = sum(spec.has_expand(i) for i in range(blocks))
        convolutions = 3 + (spec.head is not None) + expanded + 2 * blocks + 2 * squeezed
        assert profile["Conv"]["count"] + profile["Gemm"]["count"] == convolutions
        assert [row["ms"] for row in found.profile] == sorted(
            (row["ms"] for row in found.profile), reverse=True
        )
    else:
        assert found.profile is None and "profiler" in measure.PROFILERS["litert"]


def test_int8_is_measured(model, tmp_path):
    require("litert")
    path = write_file(tmp_path, model, "litert", "int8")
    assert {op.dtype for op in tflite.operations(path.read_bytes())} == {"INT8"}
    (found,) = measure_files([("litert", path)], effort=QUICK)
    assert found.ms > 0


def test_models_take_turns(model, tmp_path):
    require("onnxruntime")
    small = write_file(tmp_path, model, "onnxruntime", "float32", "small")
    wide = build("mobilenet_v3_large", resolution=96, num_classes=10)
    large = write_file(tmp_path, random_model(wide), "onnxruntime", "float32", "large")
    timings = measure_files([("onnxruntime", small), ("onnxruntime", large)], effort=QUICK)
    assert len(timings[0].turns) == len(timings[1].turns)
    first, second = ratios(timings)
    assert (first.ratio, first.low, first.high, first.differs) == (1, 1, 1, False)
    assert second.low > 3 and second.differs  # over 100 times the multiply-adds


def timing(turns):
    rest = {"runs": 9, "runtime": "xla", "threads": 1, "versions": {}, "profile": None, "when": ""}
    return Timing(ms=1, low=1, high=1, mad=0, least=1, turns=tuple(turns), **rest)


def test_ratios_are_taken_turn_by_turn():
    drift = np.linspace(1, 9, 21)  # a machine that grows nine times slower
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(21)
    _, ratio, same = ratios([timing(drift), timing(2 * drift * noise), timing(drift * noise)])
    assert ratio.ratio == pytest.approx(2, rel=0.01) and ratio.differs
    assert ratio.high - ratio.low < 0.05
    assert same.low < 1 < same.high and not same.differs
    with pytest.raises(ValueError, match="one measurement"):
        ratios([timing(drift), timing(drift[:5])])


def test_what_cannot_run_is_said(tmp_path):
    require("onnxruntime")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"ONNX Runtime: cannot run .*broken\.onnx"):
        measure_files([("onnxruntime", broken)], effort=QUICK)


def test_precisions_that_there_are_not(model, tmp_path):
    for runtime in ("xla", "onnxruntime"):
        with pytest.raises(UsageError, match="int8"):
            write_file(tmp_path, model, runtime, "int8")
    assert not list(tmp_path.iterdir())


def test_sources(tmp_path, tiny_spec):
    file = tmp_path / "net.json"
    file.write_text(spec_to_json(tiny_spec))
    found = subjects.of_anything(str(file))
    assert (found.name, found.model.spec) == ("net", tiny_spec)
    onnx = tmp_path / "net.onnx"
    onnx.touch()
    assert subjects.of_anything(str(onnx)).runtime == "onnxruntime"
    with pytest.raises(UsageError, match="--runtime=onnxruntime, not of litert"):
        subjects.of_anything(str(onnx)).prepare(tmp_path, "litert", "float32")
    with pytest.raises(UsageError, match="no such file"):
        subjects.of_anything(str(tmp_path / "absent.tflite"))
    (tmp_path / "text").touch()
    with pytest.raises(UsageError, match=r"\.tflite or \.onnx"):
        subjects.of_anything(str(tmp_path / "text"))


def test_commands(tmp_path, tiny_spec, capsys):
    out, spec = tmp_path / "found.json", tmp_path / "net.json"
    arguments = ["--runtime=xla", "--seconds=0.02", "--runs=5", f"--out={out}"]
    assert (
        __main__.main(["latency", "run", "--config=tests/support/tiny_config.py", *arguments]) == 0
    )
    found = json.loads(out.read_text())
    assert found["unit"] == "ms" and found["machine"] == machine() and found["runs"] >= 5
    assert found["precision"] == "float32" and set(found["versions"]) == {"jax", "jaxlib"}
    assert f"{found['ms']:.3f}" in capsys.readouterr().out
    spec.write_text(spec_to_json(tiny_spec))
    assert __main__.main(["latency", "compare", str(spec), str(spec), *arguments]) == 0
    found = json.loads(out.read_text())["networks"]
    assert [row["name"] for row in found] == ["net", "net"]
    assert found[0]["ratio"]["ratio"] == 1 and found[1]["ratio"]["low"] > 0
    assert __main__.main(["latency", "run", "--runtime=xla", "--file=absent.onnx"]) == 2
    assert __main__.main(["latency", "compare", str(spec), "--sceonds=1"]) == 2
