"""Commands that are given something else than a file say so in one line, and do not wait."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from time_limit import time_limit

from mbv3_jax import __main__
from mbv3_jax.data.files import find_files
from mbv3_jax.data.source import NotFound, open_pair


def _image(path, side=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(path)


@pytest.fixture
def classes(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"):
        _image(tmp_path / name)
    return tmp_path


def test_check_names_what_is_no_image_file(classes, capsys):
    folder = classes / "train" / "a"
    os.mkfifo(folder / "z.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "above").symlink_to("..")  # must not be followed
    with time_limit(60):
        assert __main__.main(["data", "check", f"folder:{classes}"]) == 1
    said = capsys.readouterr().out
    for line in (
        f"cannot use {folder}/z.jpg: a FIFO, not a regular file",
        f"cannot use {folder}/zero.jpg: a device, not a regular file",
        f"cannot use {folder}/loop.jpg: Too many levels of symbolic links",
        f"cannot use {folder}/gone.jpg: a link to nowhere.jpg, which does not exist",
        "read 6 of them, 4 cannot be used",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("arguments", "advised"),
    [
        (["folder:{}"], "--on-error=skip"),
        (["folder:{}", "--split-fraction=2"], "--split-fraction"),
        (["folder:{}", "--split-fraction=0.1", "--eval-split=val"], "--eval-split"),
        (["digits", "--num-classes=2"], "--num-classes"),
        (["synthetic", "--num-classes=2", "--data-dir=x"], "--data-dir"),
        (["nothing"], "NAME: got 'nothing'"),
    ],
)
def test_check_advises_options_that_it_has(classes, capsys, arguments, advised):
    (classes / "train" / "a" / "notes.txt").write_text("no image")
    arguments = [a.format(classes) for a in arguments]
    assert __main__.main(["data", "check", *arguments]) == 2
    said = capsys.readouterr().err
    assert advised in said and "data." not in said
    if advised == "--on-error=skip":
        assert __main__.main(["data", "check", *arguments, advised]) == 1
        assert f"cannot use {classes}/train/a/notes.txt" in capsys.readouterr().out


def test_options_that_were_spelled_with_underscores(capsys):
    assert __main__.main(["data", "check", "synthetic", "--num_classes=2", "--num_examples=8"]) == 0
    capsys.readouterr()
    assert __main__.main(["data", "check", "digits", "--num_classes=2"]) == 2
    assert "--num-classes" in capsys.readouterr().err
    for action in ("prepare", "check"):
        with pytest.raises(SystemExit):
            __main__.main(["data", action, "--help"])
        listed = re.findall(r"^ +(--\w\S*)", capsys.readouterr().out, re.MULTILINE)
        assert "--data-dir" in listed and not [name for name in listed if "_" in name]


@pytest.fixture
def nested(tmp_path, monkeypatch):
    """The current folder, with 1,200 folders in each other, and an image in the last."""
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    _image(Path("1.png"))
    os.chdir(tmp_path)
    yield tmp_path / ("d/" * 1200)
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # too deep for Python's rmtree


def test_folders_may_be_nested_deeply(nested, tmp_path):
    assert find_files(["d"]) == ["d/" * 1200 + "1.png"]
    # A path of more than 4096 bytes cannot be opened by the system.
    os.chdir(nested)
    for _ in range(20):
        Path("e" * 200).mkdir()
        os.chdir("e" * 200)
    os.chdir(tmp_path)
    with pytest.raises(NotFound, match="cannot be read: File name too long"):
        find_files(["d"])


def test_the_files_of_a_folder_are_sorted_at_each_depth(tmp_path):
    for name in ("b/2.png", "b.png", "a/z.png", "a/b/1.png", "c.png"):
        _image(tmp_path / name)
    expected = ("a/b/1.png", "a/z.png", "b/2.png", "b.png", "c.png")
    assert find_files([str(tmp_path)]) == [f"{tmp_path}/{name}" for name in expected]


def test_a_class_folder_that_is_a_link_to_itself(classes):
    (classes / "train" / "self").symlink_to("self")
    train, _ = open_pair(f"folder:{classes}", resolution=32)
    assert train.class_names == ("a", "b")


COMMANDS = {
    "import": ["import", "--from=torchvision", "--network=mobilenet_v3_small", "--out=out"],
    "texts": ["latency", "import"],
    "csv": ["latency", "csv", "--machine=phone", "--out=out.json"],
    "table": ["search", "table"],
    "archive": ["search", "table", "accel_nasbench"],
    "data": ["data", "check"],
    "spec": ["latency", "run"],
}


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("import", "--weights={}", "w.pth"),
        ("texts", "{}", "timing.txt"),
        ("csv", "{}", "pieces.csv"),
        ("table", "{}", "table.json"),
        ("archive", "--archive={}", "archive.tar.gz"),
        ("spec", "--config=small --config.spec={}", "spec.json"),
    ],
)
def test_commands_refuse_a_fifo(tmp_path, monkeypatch, capsys, command, option, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(name)
    options = option.format(name).split()
    if command == "archive":
        options.append("--out=t.json")
    with time_limit(60):
        code = __main__.main([*COMMANDS[command], *options])
    said = capsys.readouterr().err
    assert code == (1 if command == "archive" else 2)
    assert name in said and "a FIFO, not a regular file" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "options", "field"),
    [
        ("data", ["folder:~no_such_user/x"], "NAME"),
        ("data", ["tfds/mnist", "--data-dir=~no_such_user"], "--data-dir"),
        ("spec", ["--config=small", "--config.spec=~no_such_user/spec.json"], "config.spec"),
    ],
)
def test_a_user_that_does_not_exist(capsys, command, options, field):
    assert __main__.main([*COMMANDS[command], *options]) == 2
    said = capsys.readouterr().err
    assert f"{field}: got ~no_such_user" in said and "no home folder ~no_such_user" in said
    assert len(said.splitlines()) == 1


def test_a_name_that_is_too_long(capsys):
    name = "n" * 300 + ".pth"
    assert __main__.main([*COMMANDS["import"], f"--weights={name}"]) == 2
    assert capsys.readouterr().err == f"error: {name}: File name too long\n"
