"""Images that are higher or wider than a square: training, all commands, files and costs."""

import json

import jax
import numpy as np
import pytest
from paths import TINY
from PIL import Image

from mbv3_jax import __main__
from mbv3_jax.arch import cost
from mbv3_jax.arch.build import build
from mbv3_jax.data.decode import central_box
from mbv3_jax.export import metadata
from mbv3_jax.latency import pieces
from mbv3_jax.latency.cost_model import work
from mbv3_jax.nn import functional
from mbv3_jax.report.search_report import stages
from mbv3_jax.run.model import load_model
from mbv3_jax.search.objective import COUNTS, Costs
from mbv3_jax.search.presets import preset
from mbv3_jax.train import loop
from mbv3_jax.train.inference import Inference

HEIGHT, WIDTH = 32, 54  # of which a half is odd: the paddings of rows and columns differ
WIDE = f"--config.net.resolution=({HEIGHT}, {WIDTH})"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of which one half is light: the class is the only thing that flipping keeps."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for name in ("above", "below"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(90, 30, (48, 90, 3))
                pixels[slice(0, 24) if name == "above" else slice(24, 48)] += 90
                image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                image.save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(pictures, tiny_config, tmp_path_factory):
    fields = {
        "data.name": f"folder:{pictures}",
        "data.num_examples": None,
        "data.num_workers": 0,
        "net.num_classes": None,
        "augment.mixup_alpha": 0.2,
        "augment.erase_prob": 0.2,
        "total_steps": 16,
        "eval_every_steps": 16,
        "checkpoint_every_steps": 8,
        "schedule.warmup_steps": 0,
        "ema_decay": None,
        "save_predictions": True,
    }
    folder = tmp_path_factory.mktemp("runs") / "wide"
    config = tiny_config(*(f"--config.{k}={v}" for k, v in fields.items()), WIDE)
    loop.train(config, folder)
    return folder


def test_training_evaluation_and_resume(run, pictures, capsys):
    model = load_model(run)
    assert model.spec.resolution == (HEIGHT, WIDTH)
    summary = json.loads((run / "summary.json").read_text())
    capsys.readouterr()
    assert __main__.main(["eval", f"--run={run}", f"--data=folder:{pictures}"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["count"] == 12 and values["top1"] == summary["eval"]["top1"]
    with np.load(run / "predictions.npz") as saved:
        assert saved["thumbnails"].shape[1:] == (HEIGHT, WIDTH, 3)
    # What the folder holds are lists, and the same command is the same run.
    assert json.loads((run / "config.json").read_text())["net"]["resolution"] == [HEIGHT, WIDTH]
    page = run.with_suffix(".html")
    assert __main__.main(["report", str(run), f"--out={page}"]) == 0


def test_predictions_are_of_the_central_part(run, pictures, capsys):
    model, file = load_model(run), pictures / "val/above/0.png"
    ((_, view, _),) = Inference(run).embeddings([str(file)])
    box = central_box(90, 48, model.preprocessing.crop_fraction, "square", WIDTH / HEIGHT)
    shown = Image.open(file).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box)
    assert np.abs(view.astype(int) - np.asarray(shown, int)).max() <= 2
    assert __main__.main(["predict", f"--run={run}", "--json", str(file)]) == 0
    said = json.loads(capsys.readouterr().out)
    mean, std = (np.array(v) for v in (model.preprocessing.mean, model.preprocessing.std))
    images = ((view[None] / 255 - mean) / std).astype(np.float32)
    logits, _ = functional.apply(model.spec, model.variables, images)
    probabilities = {p["label"]: p["probability"] for p in said["predictions"]}
    for label, value in enumerate(jax.nn.softmax(logits)[0]):
        assert abs(probabilities[label] - value) < 1e-5


@pytest.mark.parametrize(
    ("kind", "values"),
    [("onnx", "float32"), ("onnx", "uint8"), ("stablehlo", "float32")]
    + [("tflite", values) for values in ("float32", "int8")],
)
def test_exports(run, tmp_path, capsys, kind, values):
    """The command compares what the file computes, in its own runtime, with the network."""
    for package in {"onnx": ("onnxruntime",), "tflite": ("litert_converter",)}.get(kind, ()):
        pytest.importorskip(package)
    out = tmp_path / f"x.{kind}"
    option = "--precision=int8" if values == "int8" else f"--input={values}"
    arguments = ["export", f"--run={run}", f"--format={kind}", f"--out={out}", option]
    assert __main__.main(arguments) == 0, capsys.readouterr().err
    told = metadata.read(out)
    channels_first = kind == "onnx" and values == "float32"
    shape = [1, 3, HEIGHT, WIDTH] if channels_first else [1, HEIGHT, WIDTH, 3]
    assert told["input"]["shape"] == shape
    assert told["preprocessing"]["resolution"] == [HEIGHT, WIDTH]


def test_costs_are_those_of_the_area():
    square, wide, high = (
        build("mobilenet_v3_small", resolution=r) for r in (224, (224, 448), (448, 224))
    )
    layers = [{c.name: c.madds for c in cost.layers(s)} for s in (square, wide, high)]
    assert layers[1] == layers[2]
    for name, madds in layers[0].items():
        pooled = "/se/" in name or name in ("head", "logits")
        assert layers[1][name] == madds * (1 if pooled else 2), name
    assert cost.params(square) == cost.params(wide)


def test_a_piece_of_a_wide_network_is_no_square():
    square, wide = (
        pieces.pieces(build("mobilenet_v3_small", resolution=r)) for r in (64, (64, 96))
    )
    assert {p.sizes for p in square} == {(p.size, p.size) for p in square}
    assert [p.sizes for p in wide[:2]] == [(64, 96), (32, 48)]
    assert wide[0].name == f"{square[0].name}-96"
    assert work(wide[0])["conv"] == pytest.approx(1.5 * work(square[0])["conv"])


def test_a_search_space_of_wide_networks():
    toy = preset("toy")
    wide = toy.replace(resolution=(32, 64))
    points = toy.sample(np.random.default_rng(0), 3)
    assert wide.encode(wide.to_spec(points[0])) == points[0]
    ratio = Costs(wide, COUNTS)(points)["madds"] / Costs(toy, COUNTS)(points)["madds"]
    assert np.all((ratio > 1.8) & (ratio < 2))
    assert stages(wide.to_spec(points[0]))[0]["size"] == "8 x 16"


@pytest.mark.parametrize("value", ["(32, 31)", "(32, 32, 32)", "'wide'", "(32.5, 40)", "()"])
def test_wrong_sizes(value, tmp_path, capsys):
    arguments = ["train", f"--config={TINY}", f"--workdir={tmp_path}/run"]
    assert __main__.main([*arguments, f"--config.net.resolution={value}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "net.resolution: got" in said
    assert "expected a whole number of at least 32, or (height, width)" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["224x", "x32", "32x32x32", "0x32", "wide"])
def test_wrong_sizes_on_the_command_line(text, capsys):
    with pytest.raises(SystemExit) as e:
        __main__.main(["import", "--weights=x.pth", "--out=y", f"--resolution={text}"])
    assert e.value.code == 2
    assert f"got '{text}', expected pixels as in 224, or height and" in capsys.readouterr().err
