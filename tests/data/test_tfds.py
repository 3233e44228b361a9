"""Prepared TFDS data sets, read and converted without TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.miniature import photograph, tfds_folder
from mbv3_jax import __main__
from mbv3_jax.data.source import BadExample, NotFound, open_pair

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"dusk": (60, 60, 150), "leaf": (60, 150, 60), "rose": (150, 60, 60)}


def examples(count: int, first: int) -> list:
    colours = list(COLOURS.values())
    return [(photograph(first + i, colours[i % 3]), i % 3) for i in range(count)]


SPLITS = {"train": examples(12, 0), "test": examples(6, 100)}


def make(root: Path, kind="array_record", splits=SPLITS, name="flowers") -> Path:
    return tfds_folder(root, name, splits, list(COLOURS), kind)


def opened(root, **options):
    return open_pair("tfds/flowers", resolution=16, data_dir=str(root), **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    make(root)
    return root


def test_examples(root):
    train, evaluate = opened(root)
    assert (train.split, len(train), evaluate.split, len(evaluate)) == ("train", 12, "test", 6)
    assert train.class_names == ("dusk", "leaf", "rose")
    for i in range(12):
        example = train[i]
        mean = example["image"].mean((0, 1))
        assert np.abs(mean - list(COLOURS.values())[example["label"]]).max() < 12
    assert sorted(train[i]["label"] for i in range(12)) == [0] * 4 + [1] * 4 + [2] * 4


def test_slices_and_fractions(root):
    train, evaluate = opened(root, train_split="train[:9]", eval_split="train[9:]")
    assert (len(train), len(evaluate)) == (9, 3)
    train, evaluate = opened(root, split_fraction=0.25)
    assert (len(train), len(evaluate)) == (9, 3)
    seen = {source.read(i)[0] for source in (train, evaluate) for i in range(len(source))}
    assert len(seen) == 12


def test_where_it_is_looked_for(root, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert len(open_pair("tfds/flowers", resolution=16)[0]) == 12
    assert len(open_pair("tfds/flowers:1.0.0", resolution=16)[0]) == 12
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(NotFound, match=rf"no prepared flowers in {tmp_path} \(TFDS_DATA_DIR\)"):
        open_pair("tfds/flowers", resolution=16)


def test_tensorflow_is_never_imported(root, tmp_path):
    """Not here, nor in a worker process: a stand-in writes down that it was."""
    fake = tmp_path / "tensorflow"
    fake.mkdir()
    (fake / "__init__.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w').close()\nraise ImportError('not here')\n"
    )
    script = f"""
import sys
from mbv3_jax.data import loader
from mbv3_jax.data.source import open_pair
if __name__ == "__main__":
    pair = open_pair("tfds/flowers", resolution=16, data_dir={str(root)!r})
    for workers in (0, 1):
        batches = loader.eval_batches(pair[0], batch_size=4, num_workers=workers)
        assert sum(int(b["mask"].sum()) for b in batches) == 12
        batches.close()
    assert "tensorflow" not in sys.modules
"""
    (tmp_path / "script.py").write_text(script)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, str(tmp_path / "script.py")], env=environment, check=True)
    assert not (tmp_path / "imported").exists()


def test_a_tfrecord_copy_is_named_and_converted(tmp_path, capsys):
    folder = make(tmp_path, "tfrecord")
    with pytest.raises(NotFound) as caught:
        opened(tmp_path)
    assert f"{folder} is tfrecord" in str(caught.value)
    assert "data prepare tfds/flowers" in str(caught.value)
    arguments = ["data", "prepare", "tfds/flowers", f"--data-dir={tmp_path}"]
    assert __main__.main(arguments) == 0
    assert f"prepared: {folder}" in capsys.readouterr().out
    train, _ = opened(tmp_path)
    images = {train.read(i)[0] for i in range(12)}
    assert images == {image for image, _ in SPLITS["train"]}
    assert json.loads((folder / "dataset_info.json").read_text())["fileFormat"] == "tfrecord"
    assert __main__.main(arguments) == 0
    assert "prepared already" in capsys.readouterr().out


def test_a_cut_off_tfrecord(tmp_path, capsys):
    folder = make(tmp_path, "tfrecord")
    path = folder / "flowers-train.tfrecord-00001-of-00002"
    path.write_bytes(path.read_bytes()[:-10])
    assert __main__.main(["data", "prepare", "tfds/flowers", f"--data-dir={tmp_path}"]) == 2
    assert f"{path}: cut off in the middle of a record" in capsys.readouterr().err
    assert not list(folder.glob("*train.array_record-00001*"))
    assert not list(folder.glob(".*"))
    path.unlink()
    assert __main__.main(["data", "prepare", "tfds/flowers", f"--data-dir={tmp_path}"]) == 2
    assert f"{path}: No such file" in capsys.readouterr().err


def test_a_conversion_touches_no_other_file(tmp_path, capsys):
    folder = make(tmp_path, "tfrecord")
    target = "flowers-train.array_record-00000-of-00002"
    names = ("dataset_info.unfinished", "dataset_info.tmp", f"{target}.unfinished")
    mine = [folder / name for name in names]
    for path in mine:
        path.write_text("mine")
    left = folder / f".{target}.0a1b2c3d.tmp"
    left.write_text("of a conversion that was killed, or of one that runs")
    assert __main__.main(["data", "prepare", "tfds/flowers", f"--data-dir={tmp_path}"]) == 0
    assert f"{left}: left by a conversion that was killed; remove it" in capsys.readouterr().out
    assert {path.read_text() for path in mine} == {"mine"}
    assert list(folder.glob(".*")) == [left]


def test_check(root, tmp_path, capsys):
    assert __main__.main(["data", "check", "tfds/flowers", f"--data-dir={root}"]) == 0
    out = capsys.readouterr().out
    assert "tfds/flowers train: 12 images, 3 classes" in out
    assert f"{root}/flowers/1.0.0, split test, example 5" in out
    splits = {"train": SPLITS["train"], "test": [*SPLITS["test"], (b"no image", 1)]}
    make(tmp_path, splits=splits)
    assert __main__.main(["data", "check", "tfds/flowers", f"--data-dir={tmp_path}"]) == 1
    out = capsys.readouterr().out
    assert f"cannot use {tmp_path}/flowers/1.0.0, split test, example" in out
    assert "read 7 of them, 1 cannot be used" in out


def test_labels_out_of_range(tmp_path):
    make(tmp_path, splits={"train": [*examples(4, 0), (photograph(9, (1, 1, 1)), -1)]})
    train, _ = opened(tmp_path, eval_split="train")
    with pytest.raises(BadExample, match=r"split train, example \d: label -1, expected 0 to 2"):
        train.batch(range(5))


def test_what_is_missing(tmp_path):
    folder = make(tmp_path, splits={"train": SPLITS["train"]})
    with pytest.raises(NotFound, match=r"has no split to evaluate on \(validation or test\), only"):
        opened(tmp_path)
    with pytest.raises(NotFound, match=r"has no split 'testing', only: train"):
        opened(tmp_path, eval_split="testing")
    shard = folder / "flowers-train.array_record-00001-of-00002"
    shard.unlink()
    with pytest.raises(NotFound, match=f"{shard}: missing"):
        opened(tmp_path, split_fraction=0.5)
    with pytest.raises(
        ValueError, match=r"data.name: got 'tfds/', expected one of 'clutter', 'digits'"
    ):
        open_pair("tfds/", resolution=16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "imagenet"], "give --manual-dir, the folder with ILSVRC2012_img_train.tar"),
        (["prepare", "imagenet", "--manual-dir=."], "ILSVRC2012_img_train.tar: no such file"),
        (["prepare", "digits"], "got 'digits', expected imagenet or tfds/NAME"),
        (["check", "tfds/none"], "no prepared none in "),
        (["check", "folder:/not/there"], "/not/there: no such folder"),
    ],
)
def test_wrong_commands(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert __main__.main(["data", *arguments]) == 2
    assert message in capsys.readouterr().err
