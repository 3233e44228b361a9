"""A network of one channel on grey pictures: training, all commands, and a start from colours."""

import json

import jax
import numpy as np
import pytest
from paths import TINY
from PIL import Image

from mbv3_jax import __main__
from mbv3_jax.core.errors import UsageError
from mbv3_jax.export import metadata
from mbv3_jax.nn import functional
from mbv3_jax.report.pictures import image_sheet
from mbv3_jax.run.model import Model, Preprocessing, load_model, save_model
from mbv3_jax.train import loop
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.inference import Inference
from mbv3_jax.train.plan import read_plan
from mbv3_jax.train.reevaluate import evaluate_on

GREY = "--config.net.in_channels=1"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for name, level in (("dark", 60), ("light", 190)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(level, 40, (40, 52)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def configured(pictures, tiny_config):
    fields = {
        "data.name": f"folder:{pictures}",
        "data.num_examples": None,
        "data.num_workers": 0,
        "net.num_classes": None,
        "augment.normalize": "torch",
        "augment.rotate_degrees": 0.0,
        "total_steps": 16,
        "eval_every_steps": 16,
        "checkpoint_every_steps": 8,
        "schedule.warmup_steps": 0,
        "ema_decay": None,
        "save_predictions": True,
    }
    given = [f"--config.{k}={v}" for k, v in fields.items()]
    return lambda *more: tiny_config(*given, *more)


@pytest.fixture(scope="module")
def run(configured, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "grey"
    loop.train(configured(GREY, "--config.augment.contrast=0.2"), folder)
    return folder


@pytest.fixture(scope="module")
def made(tiny_spec):
    """made(folder, **fields) writes an import folder of a network with these fields."""
    return lambda folder, **fields: _write(folder, tiny_spec.replace(**fields))


def _write(folder, spec):
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.2, 1.0, x.shape).astype(np.float32), functional.shapes(spec)
    )
    variables["params"] = jax.tree_util.tree_map_with_path(
        lambda path, x: x - 0.6 if path[-1].key == "kernel" else x, variables["params"]
    )
    names = tuple(f"class{i}" for i in range(spec.num_classes - 1))
    model = Model(
        spec=spec,
        variables=variables,
        preprocessing=Preprocessing(),
        class_names=("dark", *names),
    )
    save_model(folder, model, origin={})


def test_training_and_evaluation(run, pictures, capsys):
    model = load_model(run)
    assert model.spec.in_channels == 1
    assert model.variables["params"]["stem"]["conv"]["kernel"].shape == (3, 3, 1, 8)
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.458971,), (0.225609,))
    summary = json.loads((run / "summary.json").read_text())
    capsys.readouterr()
    for data in ([], [f"--data=folder:{pictures}"]):
        assert __main__.main(["eval", f"--run={run}", *data]) == 0
        values = json.loads(capsys.readouterr().out)
        assert values["count"] == 12 and values["top1"] == summary["eval"]["top1"]
    with np.load(run / "predictions.npz") as saved:
        assert saved["thumbnails"].shape[1:] == (32, 32, 1)


def test_predict_and_embed(run, pictures, tmp_path, capsys):
    model, file = load_model(run), pictures / "val/light/0.png"
    colour = tmp_path / "colour.png"
    Image.open(file).convert("RGB").save(colour)
    sheet, out = tmp_path / "sheet.png", tmp_path / "e.npz"
    arguments = ["predict", f"--run={run}", "--json", f"--save={sheet}", str(file), str(colour)]
    assert __main__.main(arguments) == 0 and sheet.is_file()
    grey, repeated = map(json.loads, capsys.readouterr().out.splitlines())
    assert grey["predictions"] == repeated["predictions"]
    ((_, view, _),) = Inference(run).embeddings([str(file)])
    images = (view[None] / np.float32(255) - 0.458971) / np.float32(0.225609)
    logits, _ = functional.apply(model.spec, model.variables, images)
    probabilities = {p["label"]: p["probability"] for p in grey["predictions"]}
    for label, value in enumerate(jax.nn.softmax(logits)[0]):
        assert abs(probabilities[label] - value) < 1e-5
    assert __main__.main(["embed", f"--run={run}", f"--out={out}", str(file)]) == 0
    with np.load(out) as saved:
        embedding = functional.embed(model.spec, model.variables, images)
        np.testing.assert_allclose(saved["embedding"], embedding, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "values"),
    [("onnx", "float32"), ("onnx", "uint8"), ("stablehlo", "float32")]
    + [("tflite", values) for values in ("float32", "uint8", "int8")],
)
def test_exports(run, tmp_path, capsys, kind, values):
    for package in {"onnx": ("onnxruntime",), "tflite": ("litert_converter",)}.get(kind, ()):
        pytest.importorskip(package)
    out = tmp_path / f"x.{kind}"
    option = "--precision=int8" if values == "int8" else f"--input={values}"
    arguments = ["export", f"--run={run}", f"--format={kind}", f"--out={out}", option]
    assert __main__.main(arguments) == 0, capsys.readouterr().err
    told = metadata.read(out)["input"]
    channels_first = kind == "onnx" and values == "float32"
    assert told["shape"] == ([1, 1, 32, 32] if channels_first else [1, 32, 32, 1])
    assert told["values"].startswith("grey")


def test_a_start_from_colours_sums_the_stem(configured, made, run, tmp_path):
    in_colour = tmp_path / "colour"
    made(in_colour, num_classes=2)
    init = [f"--config.init={in_colour}", "--config.augment.normalize=inception"]
    plan = read_plan(configured(*init, GREY))
    start, source = plan.warm_start, load_model(in_colour)
    assert (plan.spec.in_channels, plan.preprocessing.mean) == (1, (0.5,))
    taken = start.variables(plan.spec)
    grey = np.random.default_rng(2).normal(size=(2, 32, 32, 1)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        ours, _ = functional.apply(plan.spec, taken, grey)
        theirs, _ = functional.apply(source.spec, source.variables, np.repeat(grey, 3, axis=3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    message = start.record(plan.spec, ("dark", "light"))["message"]
    assert message.endswith("; its stem is summed over the colours, for grey images")
    # The run keeps it: another start of the same run reads its own record.
    config = configured(*init, GREY, "--config.total_steps=2", "--config.eval_every_steps=2")
    loop.train(config, tmp_path / "run")
    assert load_model(tmp_path / "run").preprocessing.std == (0.5,)
    # Of as many channels it is taken as it is, with or without saying so.
    for said in ([], [GREY]):
        start = read_plan(configured(f"--config.init={run}", *said)).warm_start
        kernel = start.variables(start.spec)["params"]["stem"]["conv"]["kernel"]
        assert start.spec.in_channels == 1
        assert np.array_equal(kernel, load_model(run).variables["params"]["stem"]["conv"]["kernel"])
    with pytest.raises(UsageError, match=r"takes 1 channel; set .*in_channels=1$"):
        read_plan(configured(f"--config.init={run}", "--config.net.in_channels=2"))
    with pytest.raises(UsageError, match=r"takes 3 channels; .*in_channels=3 or 1, for grey"):
        read_plan(configured(*init, "--config.net.in_channels=2"))


def test_other_numbers_of_channels(tmp_path, tiny_config, pictures, made, capsys):
    """Only sources that have them take them: pictures are refused in one line."""
    five = "--config.net.in_channels=5"
    assert make_experiment(tiny_config(five)).plan.preprocessing.mean == (0.5,) * 5
    folder = tmp_path / "five"
    made(folder, in_channels=5, num_classes=10)
    with pytest.raises(UsageError, match="the data has 10 classes, the network 10, which has"):
        evaluate_on(folder, {"name": "synthetic"})
    for arguments in (
        ["predict", f"--import={folder}", str(pictures / "val/dark/0.png")],
        ["eval", f"--import={folder}", f"--data=folder:{pictures}"],
        ["train", f"--config={TINY}", f"--workdir={tmp_path / 'x'}", "--config.net.in_channels=2",
         f"--config.data.name=folder:{pictures}", "--config.data.num_examples=None"],
    ):  # fmt: skip
        assert __main__.main(arguments) == 2
        error = capsys.readouterr().err
        assert "image files are read in 1 channel (grey) or 3 (RGB)" in error
        assert error.count("\n") == 1
    views = [np.zeros((8, 8, channels), np.uint8) for channels in (1, 3, 5)]
    assert len(image_sheet(views, ["a"] * 3).axes) == 3
