"""export as a command: types of images and logits, opsets, and images of every size."""

import importlib.util
import os

import numpy as np
import pytest

from mbv3_jax.export import formats, metadata, tflite
from mbv3_jax.nn import functional

if not os.environ.get("MBV3_REQUIRE_PEERS"):
    for extra in ("litert_converter", "ai_edge_litert", "onnx", "onnxruntime"):
        if importlib.util.find_spec(extra) is None:
            pytest.skip(f"{extra} is not installed", allow_module_level=True)


def test_int8_by_flag_of_every_type_outside(do, run, tmp_path):
    for given, taken, out_flag, returned in (
        ((), "int8", (), "int8"),
        (("--input=uint8",), "uint8", ("--output=uint8",), "uint8"),
        (("--input=float32",), "float32", ("--output=float32",), "float32"),
    ):
        out = tmp_path / f"{taken}.tflite"
        code, said, _ = do(
            f"--run={run}",
            "--format=tflite",
            "--precision=int8",
            "--check=20",
            "--calibration=40",
            f"--out={out}",
            *given,
            *out_flag,
        )
        assert code == 0
        assert "against the network: " in said and "against the simulated int8: " in said
        entries = metadata.read(out)
        assert (entries["input"]["dtype"], entries["output"]["dtype"]) == (taken, returned)
        assert entries["input"]["values"].startswith("RGB 0 to 255") == (taken == "uint8")
        assert ("zero_point" in entries["output"]["values"]) == (returned != "float32")
        counts = tflite.counts(out.read_bytes())
        assert counts["DEPTHWISE_CONV_2D"] == 2 + (taken == "uint8")


def test_onnx_of_any_size_and_opset(do, imported, photographs, tmp_path, model):
    import onnx
    import onnxruntime

    how = model.preprocessing
    for opset, input_dtype, precision in (
        (14, "float32", "float32"),
        (17, "uint8", "float32"),
        (21, "float32", "float16"),
        (24, "uint8", "float32"),
    ):
        out = tmp_path / f"{opset}.onnx"
        code, said, _ = do(
            f"--import={imported}",
            "--format=onnx",
            f"--opset={opset}",
            f"--input={input_dtype}",
            f"--precision={precision}",
            "--resolution=any",
            "--batch=any",
            f"--out={out}",
            "--images",
            photographs,
        )
        assert code == 0
        # The images are 32x32: a part of them, and two of them side by side.
        for size in ("25x28", "32x63"):
            assert f"against the network at {size} pixels: 100.00% of the top-1 classes" in said
        assert [(o.domain, o.version) for o in onnx.load(out).opset_import] == [("", opset)]
        shape = metadata.read(out)["input"]["shape"]
        assert shape == (["N", "H", "W", 3] if input_dtype == "uint8" else ["N", 3, "H", "W"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(out, options, providers=["CPUExecutionProvider"])
        for height, width in ((32, 32), (33, 70), (1, 1), (64, 17)):
            images = np.random.default_rng(3).integers(0, 256, (2, height, width, 3), np.uint8)
            x = ((images / 255 - np.array(how.mean)) / np.array(how.std)).astype(np.float32)
            wanted = np.asarray(functional.apply(model.spec, model.variables, x)[0])
            given = images if input_dtype == "uint8" else x.transpose(0, 3, 1, 2)
            got = session.run(None, {"images": given})[0]
            limit = {"float32": 1e-5, "float16": 1e-2}[precision]
            assert np.max(np.abs(got - wanted)) < limit * np.max(np.abs(wanted))


def test_onnx_of_one_size_refuses_others(do, imported, tmp_path):
    import onnxruntime

    out = tmp_path / "a.onnx"
    assert do(f"--import={imported}", "--format=onnx", f"--out={out}", "--check=1")[0] == 0
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="Expected: 32"):
        session.run(None, {"images": np.zeros((1, 3, 33, 32), np.float32)})


def test_a_wrong_padding_shows_at_another_size_only(do, imported, tmp_path, monkeypatch):
    right = formats.onnx._Writer.activated

    def wrong(writer, conv, x):
        writer.any_size = False  # pads as for 32 pixels
        return right(writer, conv, x)

    monkeypatch.setattr(formats.onnx._Writer, "activated", wrong)
    arguments = (f"--import={imported}", "--format=onnx", f"--out={tmp_path}/a.onnx", "--check=4")
    assert do(*arguments)[0] == 0
    code, _, said = do(*arguments, "--resolution=any")
    assert (code, "its logits differ by up to" in said) == (1, True)
