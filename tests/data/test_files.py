import os

import numpy as np
import pytest
from PIL import Image
from time_limit import time_limit

from mbv3_jax.data import files, loader
from mbv3_jax.data.decode import decode_view
from mbv3_jax.data.source import NotFound


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/deep/1.JPG", "a.png", "b/.hidden.png", "b/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.fromarray(np.full((20, 30, 3), len(name), np.uint8)).save(path)
    (tmp_path / "list.txt").write_text("a.png\n\n  gone.png  \nb/\n@odd.png\n")
    return tmp_path


def test_files_folders_and_lists(folder):
    assert files.find_files(["b", "a.png"]) == ["b/2.png", "b/deep/1.JPG", "a.png"]
    listed = ["a.png", "gone.png", "b/2.png", "b/deep/1.JPG", "@odd.png"]
    assert files.find_files(["@list.txt"]) == files.find_files([], ["list.txt"]) == listed
    assert files.find_files([str(folder / "b")])[0] == str(folder / "b" / "2.png")
    # A file that is named one by one is not judged by its name.
    assert files.find_files(["b/notes.txt"]) == ["b/notes.txt"]


def test_what_cannot_be_found_is_named(folder):
    (folder / "empty").mkdir()
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    for paths, message in (
        ([], "no image given: name files, folders, or a list as @FILE"),
        (["a.png", "empty"], "empty: no image in this folder"),
        (["@gone"], "gone: this list cannot be read: No such file or directory"),
        (["@binary"], "binary: this list cannot be read: not a text file"),
    ):
        with pytest.raises(NotFound, match=message):
            files.find_files(paths)


def test_a_fifo_among_images_is_not_waited_for(folder):
    os.mkfifo("b/z.jpg")
    source, said = files.Files(files.find_files(["b"]), 32, {}), []
    with time_limit(60):
        batches = loader.eval_batches(source, batch_size=4, on_error="skip", on_skip=said.append)
        (batch,) = batches
        batches.close()
    assert said == ["skipped b/z.jpg: a FIFO, not a regular file"]
    assert batch["mask"].tolist() == [1, 1, 0, 0]


def test_they_are_read_as_evaluation_reads_them(folder):
    crop = {"crop_fraction": 0.5, "interpolation": "bicubic"}
    source = files.Files(["a.png", "gone.png", "b/2.png"], 32, crop)
    said = []
    batches = loader.eval_batches(source, batch_size=2, on_error="skip", on_skip=said.append)
    first, second = batches
    batches.close()
    assert said == ["skipped gone.png: No such file or directory"]
    assert first["mask"].tolist() == [1, 0] and second["mask"].tolist() == [1, 0]
    want = decode_view((folder / "a.png").read_bytes(), resolution=32, **crop)
    np.testing.assert_array_equal(first["image"][0], want)
