"""predict, embed, eval and plot as commands, on a run and on an import, with bad files among."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from paths import TINY
from PIL import Image

from mbv3_jax import __main__
from mbv3_jax.run.model import load_model, save_model
from mbv3_jax.train import loop
from mbv3_jax.train.reevaluate import label_map

LEVELS = {"dark": 60, "light": 190, "mid": 125}


def draw(path, level, rng):
    pixels = np.clip(rng.normal(level, 40, (40, 52, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 7)):
        for name, level in LEVELS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                draw(root / split / name / f"{i}.jpg", level, rng)
    return root


@pytest.fixture(scope="module")
def run(images, tmp_path_factory, tiny_config):
    """A run that has learnt something, with a crop and a normalisation of its own."""
    fields = {
        "data.name": f"folder:{images}",
        "data.num_examples": None,
        "data.num_workers": 0,
        "data.crop_fraction": 0.7,
        "data.interpolation": "bicubic",
        "net.num_classes": None,
        "augment.normalize": "torch",
        "augment.rotate_degrees": 0.0,
        "schedule.base_lr": 0.05,
        "total_steps": 40,
        "eval_every_steps": 40,
        "checkpoint_every_steps": 40,
        "ema_decay": None,
        "save_predictions": True,
    }
    run = tmp_path_factory.mktemp("runs") / "run"
    loop.train(tiny_config(*(f"--config.{k}={v}" for k, v in fields.items())), run)
    return run


@pytest.fixture(scope="module")
def imported(run):
    save_model(run.parent / "import", load_model(run), origin={"run": str(run)})
    return run.parent / "import"


@pytest.fixture
def do(capsys):
    """do(*arguments) -> (exit code, standard output, standard error) of a command."""

    def run(*arguments):
        code = __main__.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


def test_predict_equals_eval(do, run, imported, images):
    code, out, err = do("eval", "--run", run)
    evaluated = json.loads(out)
    assert code == 0 and evaluated["count"] == 21
    by_class = evaluated["per_class"]
    assert by_class["images"] == [7, 7, 7]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in err.splitlines()]
    for name, *numbers in zip(
        evaluated["class_names"], *(by_class[n] for n in ("precision", "recall", "f1")), strict=True
    ):
        assert [name, *(f"{number:.2%}" for number in numbers), "7"] in cells
    assert f"top-1 {evaluated['top1']:.2%}; balanced accuracy " in err
    assert evaluated["top1"] > 0.6  # by chance: 0.33
    for folder in (["--run", run], ["--import", imported]):
        code, out, err = do("predict", *folder, images / "val", "--json", "--batch", "5")
        lines = [json.loads(line) for line in out.splitlines()]
        assert code == 0 and len(lines) == 21
        right = [line["predictions"][0]["class"] in line["image"].split("/") for line in lines]
        assert sum(right) / 21 == evaluated["top1"]
        for line in lines:
            assert sum(p["probability"] for p in line["predictions"]) == pytest.approx(1, abs=1e-5)
        assert err.startswith("21 images in ")
        # Each prediction is that of the last evaluation, to rounding in another batch size.
        said = np.load(run / "predictions.npz")
        assert [line["image"] for line in lines] == said["path"].tolist()
        top = [line["predictions"][0] for line in lines]
        assert [p["label"] for p in top] == said["prediction"].tolist()
        np.testing.assert_allclose([p["probability"] for p in top], said["probability"], rtol=1e-4)


def test_eval_of_an_import_on_data_uses_its_preprocessing(do, run, imported, images, tmp_path):
    _, out, _ = do("eval", "--run", run)
    want = json.loads(out)
    code, out, _ = do("eval", "--import", imported, f"--data=folder:{images}", "--batch=8")
    got = json.loads(out)
    assert code == 0
    assert (got["split"], got["labels"], got["count"]) == ("val", "by name", 21)
    assert got["top1"] == want["top1"]
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)
    # Two of the classes, in a folder without splits: all images count, labels go by name.
    flat = tmp_path / "flat"
    for name in ("mid", "light"):
        (flat / name).mkdir(parents=True)
        for file in (images / "val" / name).iterdir():
            (flat / name / file.name).write_bytes(file.read_bytes())
    code, out, _ = do("eval", "--import", imported, f"--data=folder:{flat}")
    got = json.loads(out)
    said = np.load(run / "predictions.npz")
    chosen = said["label"] > 0
    assert (got["split"], got["count"]) == ("all", 14)
    right = said["label"][chosen] == said["prediction"][chosen]
    assert got["top1"] == pytest.approx(right.mean())
    # One image in each class, of which none could be held out: all are evaluated.
    for name in ("mid", "light"):
        (tmp_path / "few" / name).mkdir(parents=True)
        (flat / name / "0.jpg").rename(tmp_path / "few" / name / "0.jpg")
    code, out, err = do("eval", "--import", imported, f"--data=folder:{tmp_path / 'few'}")
    assert (code, json.loads(out)["count"], "without an image" in err) == (0, 2, False)
    # What is not read is said.
    nested = tmp_path / "nested"
    nested.mkdir()
    (tmp_path / "few").rename(nested / "Test")
    flat.rename(nested / "Train")
    (nested / "mid.png").write_bytes(b"")
    code, out, err = do("eval", "--import", imported, f"--data=folder:{nested}")
    assert (code, json.loads(out)["count"]) == (0, 2)
    assert f"note: {nested}: 1 image beside the splits not read" in err
    # A configuration gives data too, and may change the view.
    where = [f"--config.data.name=folder:{images}", "--config.data.num_examples=None"]
    options = ["--config.data.crop_fraction=0.3", "--config.eval_batch_size=4"]
    code, out, _ = do("eval", "--import", imported, f"--config={TINY}", *where, *options)
    assert code == 0 and json.loads(out)["loss"] != want["loss"]


def test_eval_at_another_resolution(do, run, imported, images):
    data = ["--data", f"folder:{images}"]
    found = {}
    for size in ("48", "64x48"):
        ways = [["--run", run], ["--run", run, *data], ["--import", imported, *data]]
        outputs = [do("eval", *way, f"--resolution={size}") for way in ways]
        first, *others = (json.loads(out) for _, out, _ in outputs)
        assert first["resolution"] == {"48": 48, "64x48": [64, 48]}[size]
        for other in others:
            assert other["loss"] == pytest.approx(first["loss"], rel=1e-5)
        found[size] = first["loss"]
    own = json.loads(do("eval", "--run", run)[1])
    assert "resolution" not in own
    assert len({own["loss"], *found.values()}) == 3
    for way in (["--run", run], ["--run", run, *data]):
        code, out, err = do("eval", *way, "--resolution=16")
        assert (code, out) == (2, "") and err.startswith("error: resolution: got 16, expected")


def test_a_table_a_list_and_bad_files_among_good_ones(do, run, images, tmp_path):
    bad, note = tmp_path / "bad.jpg", tmp_path / "list.txt"
    bad.write_bytes(b"no image")
    good = images / "val" / "dark" / "3.jpg"
    note.write_text(f"{good}\n\n{bad}\n{tmp_path / 'gone.png'}\n")
    for given in ([f"@{note}"], ["--list", note]):
        code, out, err = do("predict", "--run", run, *given)
        assert code == 1
        assert str(good) in out and "dark" in out and "light" in out
        lines = err.splitlines()
        assert lines[0].startswith(f"error: {bad}: cannot decode 8 bytes as an image: ")
        assert lines[1] == f"error: {tmp_path / 'gone.png'}: No such file or directory"
        assert lines[2].startswith("3 images in ") and lines[2].endswith(", 2 could not be read")
    # In a folder, what does not have the name of an image is left out, and counted.
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "photo.jfif").write_bytes(good.read_bytes())
    (tmp_path / "one" / "photo.cr2").write_bytes(b"raw")
    code, out, err = do("predict", "--run", run, tmp_path / "one")
    assert code == 0 and "photo.jfif" in out
    assert err.startswith(
        f"note: {tmp_path / 'one'}: 1 file left out, without the name of an image"
    )
    code, out, _ = do("predict", "--run", run, bad, good, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert lines[0]["image"] == str(bad) and "cannot decode" in lines[0]["error"]
    assert lines[1]["predictions"][0]["class"] == "dark"


def test_one_image_is_one_image(do, run, images, tmp_path):
    good = images / "val" / "dark" / "3.jpg"
    code, _, err = do("embed", "--run", run, good, f"--out={tmp_path / 'x.npz'}")
    assert code == 0
    assert re.fullmatch(
        r"1 image in [\d.]+ s, [\d.,]+ images/s \(compilation not counted\)\n"
        rf"1 embedding of \d+ values: {re.escape(str(tmp_path))}/x.npz\n",
        err,
    )
    code, _, err = do("predict", "--run", run, tmp_path / "gone.png")
    assert code == 1
    assert err.splitlines()[-1].startswith("1 image in ") and err.endswith(
        ", 1 could not be read\n"
    )


def test_a_folder_that_takes_no_file_is_found_before_the_work(do, run, images, monkeypatch):
    def refuse(self, mode="r", *arguments, **options):
        if "x" in mode:
            raise OSError(30, "Read-only file system", str(self))
        return opened(self, mode, *arguments, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", refuse)
    # The images do not exist, and nobody has looked.
    for command in (("embed", "--out=x.npz"), ("predict", "--save=x.png")):
        code, out, err = do(command[0], "--run", run, "gone.jpg", command[1])
        option, name = command[1].split("=")
        assert (code, out) == (2, "")
        assert err == f"error: {option}: cannot write {name}: Read-only file system\n"


def test_sheets_and_plots(do, run, images, tmp_path):
    files = [tmp_path / f"{name}.png" for name in ("sheet", "curves", "confusion")]
    code, _, err = do("predict", "--run", run, images / "val", f"--save={files[0]}")
    assert code == 0 and f"sheet: {files[0]}" in err
    for what, file in zip(("curves", "confusion"), files[1:], strict=True):
        code, out, _ = do("plot", "--run", run, f"--what={what}", f"--out={file}")
        assert code == 0 and out == f"{file}\n"
    for file in files:
        assert np.asarray(Image.open(file)).std() > 5  # something is drawn


def test_a_renamed_checkpoint_is_refused_by_all_that_use_it(do, run, images, tmp_path):
    moved, image = tmp_path / "run", images / "val" / "dark" / "0.jpg"
    shutil.copytree(run, moved)
    (moved / "checkpoints" / "40").rename(moved / "checkpoints" / "20")
    for command in (
        ("predict", image),
        ("embed", image, f"--out={tmp_path / 'x.npz'}"),
        ("eval",),
        ("eval", f"--data=folder:{images}"),
        ("export", "--format=stablehlo", f"--out={tmp_path / 'x.stablehlo'}"),
        ("export-weights", "--to=timm", f"--out={tmp_path / 'x.safetensors'}"),
        ("latency", "run"),
        ("search", "netadapt", "--target-madds=1e5", f"--out={tmp_path / 'x'}"),
    ):
        code, out, err = do(*command, "--run", moved)
        assert code == 1 and "20 holds the checkpoint of step 40: it was renamed" in err, (out, err)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_embeddings(do, imported, images, tmp_path):
    out, bad = tmp_path / "found.npz", tmp_path / "bad.jpg"
    neighbour = tmp_path / "found.tmp"
    neighbour.write_text("of the user")
    bad.write_bytes(b"")
    code, _, err = do("embed", "--import", imported, images / "val", bad, f"--out={out}")
    assert code == 1 and f"error: {bad}: " in err and "21 embeddings of 16 values" in err
    found, trained = np.load(out), load_model(imported)
    assert found["embedding"].shape == (21, 16)
    layer = trained.variables["params"]["logits"]
    logits = found["embedding"] @ layer["kernel"][0, 0] + layer["bias"]
    said = np.load(imported.parent / "run" / "predictions.npz")
    assert found["path"].tolist() == said["path"].tolist()
    np.testing.assert_array_equal(logits.argmax(1), said["prediction"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jpg", "found.npz", "found.tmp"]
    assert neighbour.read_text() == "of the user"


def test_wrong_commands_are_one_line_and_make_nothing(do, run, imported, images, tmp_path):
    empty, one = tmp_path / "empty", images / "val" / "dark" / "0.jpg"
    empty.mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "other" / name).mkdir(parents=True)
        (tmp_path / "other" / name / "0.jpg").write_bytes(one.read_bytes())
        (tmp_path / "other" / name / "1.jpg").write_bytes(one.read_bytes())
    from_run, from_import = ["--run", run], ["--import", imported]
    wrong = [
        (["predict", *from_run], "no image given: name files, folders, or a list as @FILE"),
        (["predict", *from_run, empty], f"{empty}: no image in this folder"),
        (["predict", *from_run, "@/nowhere"], "/nowhere: this list cannot be read: No such file"),
        (
            ["predict", *from_run, one, "--top=3"],
            "unknown option --top=3; see python -m mbv3_jax predict --help",
        ),
        (["predict", *from_run, one, "--batch=0"], "batch: got 0, expected a whole number of at"),
        (["predict", *from_run, one, "--save=/x/y.png"], "--save: /x: no such folder"),
        (["predict", *from_run, one, "--save=y.txt"], "--save: got y.txt, expected a name that en"),
        (["predict", "--run", empty, one], f"{empty} is neither a run folder"),
        (["predict", *from_run, one, "--step=best"], "keeps no best checkpoint"),
        (["predict", *from_import, one, "--step=3"], "is an import folder, which has one set of"),
        (
            ["predict", *from_run, one, "--step=5"],
            f"no checkpoint of step 5 in {run}/checkpoints; t",
        ),
        (["embed", *from_run, one, "--out=x.npz", "--step=5"], "there are: 40"),
        (
            ["eval", *from_run, "--step=5"],
            f"no checkpoint of step 5 in {run}/checkpoints; there ar",
        ),
        (["eval", *from_run, f"--data=folder:{images}", "--step=5"], "no checkpoint of step 5"),
        (["embed", *from_run, one, f"--out={one}/x.npz"], f"--out: {one}: no such folder"),
        (["embed", *from_run, one, "--out=x.csv"], "--out: got x.csv, expected a name that ends"),
        (["eval", *from_import], "eval --import needs data: --data=folder:PATH, or --config=FILE"),
        (
            ["eval", *from_import, f"--config={TINY}", "--config.net.width=2.0"],
            "--config.net.width=2.0: has no effect on an evaluation, which takes network and pr",
        ),
        (["eval", *from_import, "--data=folder:/nowhere"], "/nowhere: no such folder"),
        (["eval", *from_import, "--data=digits"], "the data has 10 classes, the network 3, which"),
        (
            ["eval", *from_import, f"--data=folder:{tmp_path / 'other'}"],
            "the data has 2 classes, the network 3, which has no class 'cat' (2 such)",
        ),
        (["plot", "--run", empty, "--what=mistakes", "--out=x.png"], "has no predictions.npz: a r"),
    ]
    for arguments, message in wrong:
        code, out, err = do(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "other"]


def test_classes_that_are_paired_by_order_are_named(do, imported, images, tmp_path):
    names = sorted(path.name for path in (images / "val").iterdir())
    for number, name in enumerate(names):
        shutil.copytree(images / "val" / name, tmp_path / "other" / f"n{number}")
    code, out, err = do("eval", "--import", imported, f"--data=folder:{tmp_path / 'other'}")
    pairs = ", ".join(f"n{number} with {name}" for number, name in enumerate(names))
    assert code == 0 and out
    assert f"paired by their order: {pairs}\n" in err


def test_labels_by_name_or_by_order():
    network = ("cat", "dog", "owl")
    assert label_map(("owl", "cat"), network)[0].tolist() == [2, 0]
    assert label_map(network, network) == (pytest.approx([0, 1, 2]), "by name")
    labels, how = label_map(("n01", "n02", "n03"), network)
    assert (labels.tolist(), how) == ([0, 1, 2], "by order")
    with pytest.raises(ValueError, match=r"which has no class 'cow' \(1 such\)"):
        label_map(("cat", "cow", "dog"), network)
    with pytest.raises(ValueError, match=r"several classes named 'crane'"):
        label_map(("crane",), ("crane", "crane"))


def test_a_network_that_computes_no_numbers(do, imported, images, tmp_path):
    model = load_model(imported)
    bias = model.variables["params"]["logits"]["bias"]
    bias[:] = np.nan
    save_model(tmp_path / "nan", model, origin={})
    file = images / "val" / "dark" / "0.jpg"
    code, out, said = do("predict", "--import", tmp_path / "nan", file)
    assert code == 1 and "nan" not in out
    assert f"{file}: the network's output is not a finite number" in said


def test_names_of_files_cannot_speak_to_the_terminal(do, imported, images, tmp_path):
    for name in ("\x1b[31mred.jpg", "line\nerror: x.jpg", "\udcff.jpg", "猫.jpg"):
        (tmp_path / name).write_bytes((images / "val" / "dark" / "0.jpg").read_bytes())
    (tmp_path / "\x1b[2J.jpg").write_text("no image")
    for form in ((), ("--json",)):
        code, out, said = do("predict", "--import", imported, *form, tmp_path)
        assert code == 1 and "猫" in out
        assert all(line.isprintable() for line in (out + said).splitlines())
        assert r"\x1b[2J.jpg: cannot decode 8 bytes" in said
        assert not any(line.startswith("error: x") for line in said.splitlines())
    found = {json.loads(line)["image"] for line in out.splitlines()}
    assert {str(path) for path in tmp_path.iterdir()} == found
    code, out, said = do("embed", "--import", imported, tmp_path, "--out", tmp_path / "\x1b.npz")
    assert (tmp_path / "\x1b.npz").is_file()
    assert all(line.isprintable() for line in (out + said).splitlines())
    code, out, said = do("predict", "--import", tmp_path / "\x1b[31m\n", tmp_path)
    assert code == 2 and r"\x1b[31m" in said and "\x1b" not in said
