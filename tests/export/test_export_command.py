"""export as a command: the file is the network, says what it is, and appears only when checked."""

import dataclasses
import importlib.util
import json
import os
import re
import sys
import zipfile

import jax
import numpy as np
import pytest

from mbv3_jax.export import check, formats, metadata, tflite
from mbv3_jax.nn import functional
from mbv3_jax.run.model import save_model
from mbv3_jax.train import loop

if not os.environ.get("MBV3_REQUIRE_PEERS"):
    for extra in ("litert_converter", "ai_edge_litert", "onnx", "onnxruntime"):
        if importlib.util.find_spec(extra) is None:
            pytest.skip(f"{extra} is not installed", allow_module_level=True)


@pytest.mark.parametrize("input_dtype", ["float32", "uint8"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("file_format", ["tflite", "onnx", "stablehlo"])
def test_the_file_is_the_network(
    do, imported, photographs, tmp_path, model, file_format, precision, input_dtype
):
    out = tmp_path / f"tiny.{file_format}"
    batch = 2 if file_format == "tflite" else "any"
    code, said, _ = do(
        f"--import={imported}",
        f"--format={file_format}",
        f"--precision={precision}",
        f"--input={input_dtype}",
        f"--batch={batch}",
        f"--out={out}",
        "--images",
        photographs,
    )
    assert code == 0
    assert "on 3 images given\n" in said
    assert "against the network: 100.00% of the top-1 classes agree" in said
    assert [p.name for p in tmp_path.iterdir()] == [out.name]

    # Once more by hand, on images that the command has not seen.
    images = np.random.default_rng(2).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    how = model.preprocessing
    x = ((images / 255 - np.array(how.mean)) / np.array(how.std)).astype(np.float32)
    wanted = np.asarray(functional.apply(model.spec, model.variables, x)[0])
    target = formats.Target(
        file_format=file_format,
        precision=precision,
        batch=None if batch == "any" else batch,
        input_dtype=input_dtype,
    )
    got = check.run_file(out.read_bytes(), target, images if input_dtype == "uint8" else x)
    largest = np.max(np.abs(wanted))
    assert largest > 0.5
    limit = {"float32": 1e-5, "float16": 1e-2}[precision]
    assert np.max(np.abs(got - wanted)) < limit * largest
    if precision == "float16":
        assert np.max(np.abs(got - wanted)) > 0

    entries = metadata.read(out)
    assert entries["classes"] == list(model.class_names)
    assert entries["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert entries["preprocessing"]["resolution"] == 32
    assert entries["origin"] == {"import": "tiny"}
    first = file_format == "onnx" and input_dtype == "float32"
    n = 2 if batch == 2 else "N"
    assert entries["input"]["shape"] == ([n, 3, 32, 32] if first else [n, 32, 32, 3])
    assert entries["input"]["dtype"] == input_dtype


@pytest.mark.parametrize(
    ("file_format", "wanted"),
    [
        (
            "tflite",
            {
                "CONV_2D": 10,
                "DEPTHWISE_CONV_2D": 2,
                "HARD_SWISH": 5,
                "MEAN": 2,
                "MUL": 1,
                "ADD": 1,
                "RESHAPE": 1,
            },
        ),
        (
            "onnx",
            {
                "Conv": 9,
                "Conv (depthwise)": 2,
                "Gemm": 1,
                "HardSwish": 5,
                "Relu": 3,
                "HardSigmoid": 1,
                "GlobalAveragePool": 2,
                "Flatten": 1,
                "Mul": 1,
                "Add": 1,
            },
        ),
    ],
)
def test_the_graph_has_nothing_but_the_layers(model, file_format, wanted):
    target = formats.Target(file_format=file_format)
    file = formats.write(model, target)
    assert formats.counts(file, file_format) == wanted
    assert check.defects(file, target, model) == []


def test_a_run_is_checked_on_its_evaluation_split(do, run, tmp_path):
    out = tmp_path / "a.onnx"
    code, said, _ = do(f"--run={run}", "--format=onnx", f"--out={out}", "--check=20")
    assert code == 0
    assert "checked in ONNX Runtime on 20 images of synthetic, " in said
    assert "top-1: network " in said
    entries = metadata.read(out)
    assert entries["origin"] == {"run": "run", "step": 8, "weights": "ema"}
    raw = tmp_path / "raw.onnx"
    code, *_ = do(
        f"--run={run}", "--format=onnx", f"--out={raw}", "--step=4", "--weights=raw", "--check=1"
    )
    assert code == 0
    assert metadata.read(raw)["origin"] == {"run": "run", "step": 4, "weights": "raw"}


@pytest.fixture(scope="module")
def quantized_run(tmp_path_factory, tiny_config):
    """Trained for int8 from the sixth step on."""
    folder = tmp_path_factory.mktemp("runs") / "qat"
    fields = {
        "total_steps": 8,
        "eval_every_steps": 8,
        "checkpoint_every_steps": 4,
        "schedule.warmup_steps": 1,
        "augment.rotate_degrees": 0.0,
        "quant.enabled": True,
        "quant.delay_steps": 6,
        "quant.freeze_steps": 6,
    }
    loop.train(tiny_config(*(f"--config.{k}={v}" for k, v in fields.items())), folder)
    return folder


def test_int8_of_a_run_after_training_and_of_one_trained_for_it(do, run, quantized_run, tmp_path):
    int8 = ("--format=tflite", "--precision=int8", "--batch=4", "--check=20")
    for folder, how in (
        (run, "40 calibration images, percentile 99.99, biases corrected"),
        (quantized_run, "training"),
    ):
        out = tmp_path / f"{folder.name}.tflite"
        options = ("--observer=percentile", "--calibration=40", "--correct-bias")
        code, said, _ = do(
            f"--run={folder}", *int8, f"--out={out}", *(options if folder == run else ())
        )
        assert code == 0
        assert f"ranges: {how}\n" in said
        assert "against the simulated int8: " in said
        entries = metadata.read(out)
        assert entries["quantization"] == how
        assert entries["input"]["dtype"] == "int8"
        assert tflite.counts(out.read_bytes())["DEPTHWISE_CONV_2D"] == 2
    code, _, said = do(f"--run={quantized_run}", *int8, f"--out={out}", "--observer=mse")
    assert (code, "trained for int8: there is nothing to calibrate" in said) == (2, True)
    code, _, said = do(f"--run={quantized_run}", *int8, f"--out={out}", "--step=4", "--weights=raw")
    assert (code, "quant.delay of 6 steps was not over" in said) == (2, True)


def test_int8_of_an_import_is_calibrated_on_images_that_are_named(
    do, imported, photographs, tmp_path
):
    int8 = (f"--import={imported}", "--format=tflite", "--precision=int8")
    code, _, said = do(*int8, f"--out={tmp_path}/a.tflite")
    assert (code, "needs images to calibrate on: --images=FOLDER" in said) == (2, True)
    code, said, _ = do(*int8, f"--out={tmp_path}/a.tflite", "--images", photographs)
    assert code == 0
    assert "ranges: 3 calibration images, mse\n" in said


def test_without_images_noise_is_said_to_be_noise(do, imported, tmp_path, model):
    out = tmp_path / "a.stablehlo"
    code, said, _ = do(f"--import={imported}", "--format=stablehlo", "--check=4", f"--out={out}")
    assert code == 0
    assert "on 4 images of noise" in said
    with zipfile.ZipFile(out) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(model.class_names)


def test_a_stablehlo_file_says_until_when_it_can_be_read(do, imported, tmp_path, monkeypatch):
    out = tmp_path / "a.stablehlo"

    def export(day):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(day * 86400))
        code, said, _ = do(
            f"--import={imported}", "--format=stablehlo", "--check=1", f"--out={out}"
        )
        assert code == 0
        made = metadata.read(out)["jax_export"]
        assert f"JAX promises to read it until {made['readable_until']}\n" in said
        return made

    first, second = export(0), export(1)  # the second takes the place of the first
    assert (first["exported"], second["exported"]) == ("1970-01-01", "1970-01-02")
    assert first["jax"] == jax.__version__


def test_one_stablehlo_for_all_devices(model):
    from mbv3_jax.export import formats
    from mbv3_jax.nn.folded import apply_folded, fold

    folded = jax.tree.map(np.asarray, fold(model.spec, model.variables))
    texts = {
        jax.export.deserialize(
            bytearray(
                formats.to_stablehlo(
                    lambda x: apply_folded(model.spec, folded, x), ("N", 32, 32, 3), platform=name
                )
            )
        ).mlir_module()
        for name in formats.PLATFORMS
    }
    assert len(texts) == 1


@pytest.fixture(scope="module")
def vanishing(model, tmp_path_factory):
    """A network whose last convolution is zero in float16, and not in float32."""
    variables = jax.tree.map(np.copy, model.variables)
    params = variables["params"]
    params["last"]["bn"]["scale"] *= 1e-10
    params["last"]["bn"]["bias"][:] = params["head"]["bias"][:] = 0
    variables["batch_stats"]["last"]["bn"]["mean"][:] = 0
    params["logits"]["bias"][:] = 0
    params["head"]["kernel"] *= 3e4
    params["logits"]["kernel"] *= 3e4
    folder = tmp_path_factory.mktemp("imports") / "small"
    save_model(folder, dataclasses.replace(model, variables=variables), origin={})
    return folder


def test_a_wrong_file_is_not_kept_and_the_earlier_one_is(do, vanishing, tmp_path):
    out = tmp_path / "a.onnx"
    out.write_text("of an earlier day")
    arguments = (f"--import={vanishing}", "--format=onnx", f"--out={out}", "--check=4")
    code, _, said = do(*arguments, "--precision=float16")
    assert code == 1
    assert "the exported file is wrong, and was not kept: its logits differ by up to" in said
    assert out.read_text() == "of an earlier day"
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    code, *_ = do(*arguments)
    assert code == 0
    assert metadata.read(out)["precision"] == "float32"


def test_weights_too_large_for_float16_are_named(model):
    variables = jax.tree.map(np.copy, model.variables)
    variables["params"]["logits"]["bias"][3] = 7e4
    changed = dataclasses.replace(model, variables=variables)
    for file_format in ("tflite", "onnx", "stablehlo"):
        with pytest.raises(ValueError, match=r"7e\+04 is too large for float16"):
            formats.write(changed, formats.Target(file_format=file_format, precision="float16"))


def test_a_full_disk_leaves_the_earlier_file(do, imported, tmp_path, small_files):
    out = tmp_path / "a.onnx"
    out.write_text("of an earlier day")
    with small_files(1000):
        code, _, said = do(f"--import={imported}", "--format=onnx", f"--out={out}", "--check=2")
    assert (code, "cannot write" in said) == (1, True)
    assert out.read_text() == "of an earlier day"
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--format=stablehlo", "--precision=int8"], 2, "--format=tflite does"),
        (["--format=onnx", "--precision=int8"], 2, "--format=tflite does"),
        (["--format=tflite", "--batch=any"], 2, "fixed batch"),
        (
            ["--format=tflite", "--observer=mse"],
            2,
            "--observer: has an effect only with --precision=int8",
        ),
        (
            ["--format=tflite", "--precision=int8", "--percentile=99"],
            2,
            "--percentile: has an effect only with --observer=percentile",
        ),
        (
            ["--format=tflite", "--precision=int8", "--observer=percentile", "--percentile=20"],
            2,
            "percentile: got 20.0, expected above 50",
        ),
        (["--format=tflite", "--input=int8"], 2, "--input=int8: .* only with --precision=int8"),
        (["--format=onnx", "--output=uint8"], 2, "--output=uint8: .* only with --precision=int8"),
        (["--format=tflite", "--resolution=any"], 2, "--resolution=any: for --format=onnx only"),
        (["--format=tflite", "--opset=18"], 2, "--opset: has an effect only with --format=onnx"),
        (["--format=onnx", "--opset=10"], 2, "--opset=10: expected 11 to 24"),
        (["--format=onnx", "--opset=25"], 2, "--opset=25: expected 11 to 24"),
        (
            ["--format=onnx", "--opset=13"],
            2,
            "--opset=13: the network needs HardSwish, which ONNX has since opset 14; give "
            "--opset=14 or more",
        ),
        (["--format=onnx", "--step=7"], 2, "no checkpoint of step 7"),
        (["--format=onnx", "--out=FOLDER/none/a.onnx"], 2, "no such folder"),
        (["--format=onnx", "--out=FOLDER/a.tflite"], 2, r"expected a name that ends in .onnx"),
        (["--format=onnx", "--out=FOLDER"], 2, "expected a name"),
        (["--format=onnx", "--images", "FOLDER"], 2, "--images: .*no image in this folder"),
        (["--format=onnx", "--run=FOLDER"], 2, "neither a run folder"),
        (["--format=onnx", "--config.seed=1"], 2, "unknown option --config.seed=1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    do, run, tmp_path, options, code, message
):
    options = [o.replace("FOLDER", str(tmp_path)) for o in options]
    for default in (f"--run={run}", f"--out={tmp_path}/a.{options[0].partition('=')[2]}"):
        if default.partition("=")[0] not in (o.partition("=")[0] for o in options):
            options.append(default)
    got, _, said = do(*options)
    assert got == code
    assert re.search(message, said), said
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(do, imported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as Python marks what cannot be imported
    code, _, said = do(f"--import={imported}", "--format=onnx", f"--out={tmp_path}/a.onnx")
    assert code == 2
    assert "ONNX needs onnx" in said
    assert "pip install -e '.[export]'" in said
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_have_no_metadata(tmp_path):
    from mbv3_jax.core.errors import RunError, UsageError

    (tmp_path / "a.tflite").write_text("none")
    with pytest.raises(RunError, match="no metadata"):
        metadata.read(tmp_path / "a.tflite")
    with pytest.raises(UsageError, match="No such file"):
        metadata.read(tmp_path / "b.tflite")


def test_metadata_is_json_that_others_read(do, imported, tmp_path, model):
    import onnx

    out = tmp_path / "a.onnx"
    assert do(f"--import={imported}", "--format=onnx", f"--out={out}", "--check=1")[0] == 0
    props = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert json.loads(props["classes"]) == list(model.class_names)
    assert json.loads(props["input"])["layout"] == "NCHW"
