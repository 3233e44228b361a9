"""Whole runs on a folder of images: class names, broken files, other numbers of workers."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from mbv3_jax.cli import train as cli
from mbv3_jax.core.errors import Preempted, RunError
from mbv3_jax.train import loop
from mbv3_jax.train.loop import train
from mbv3_jax.train.recorder import Recorder
from mbv3_jax.train.reevaluate import reevaluate


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 12), ("val", 5)):
        for name, level in (("dark", 60), ("light", 190)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((40, 44, 3), level + i, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def configured(images, tiny_config):
    def make(*overrides: str):
        return tiny_config(
            f"--config.data.name=folder:{images}",
            "--config.data.num_examples=None",
            "--config.net.num_classes=None",
            "--config.data.num_workers=0",
            "--config.total_steps=6",
            "--config.schedule.warmup_steps=0",
            "--config.eval_every_steps=3",
            "--config.checkpoint_every_steps=3",
            *(f"--config.{o}" for o in overrides),
        )

    return make


def test_a_run_keeps_the_class_names(configured, tmp_path):
    summary = train(configured(), tmp_path)
    assert summary["eval"]["count"] == 10
    assert "unreadable" not in summary["eval"] and "skipped" not in summary
    assert json.loads((tmp_path / "classes.json").read_text()) == ["dark", "light"]
    assert json.loads((tmp_path / "spec.json").read_text())["num_classes"] == 2
    # The same run, though another number of processes reads: it has ended, nothing is done again.
    again = train(configured("data.num_workers=2", "data.on_error=skip"), tmp_path)
    assert again == summary
    assert reevaluate(tmp_path)["top1"] == summary["eval"]["top1"]


def test_a_file_that_was_removed_has_to_be_put_back(configured, images, tmp_path, monkeypatch):
    whole_run = train(configured(), tmp_path / "whole")
    run, gone = tmp_path / "run", images / "train" / "dark" / "3.png"
    content = gone.read_bytes()

    def save(recorder, step, state):
        original(recorder, step, state)
        raise Preempted

    def remove(*arguments):
        gone.unlink()  # when the folder has been listed, and nothing has been read
        return compile_experiment(*arguments)

    original, compile_experiment = Recorder.save, loop.compile_experiment
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(Recorder, "save", save)
        train(configured(), run)
    try:
        with monkeypatch.context() as patch, pytest.raises(RunError) as caught:
            patch.setattr(loop, "compile_experiment", remove)
            train(configured(), run)
        assert str(caught.value) == (
            f"{gone}: No such file or directory. Once that is fixed, run the same command again to "
            "resume from its last checkpoint, step 3; with --config.data.on_error=skip a damaged "
            "file is left out and counted, but one that was removed has to be put back"
        )
        for overrides in ((), ("data.on_error=skip",)):
            with pytest.raises(RunError) as caught:
                train(configured(*overrides), run)
            assert re.fullmatch(
                r"the data is not what step 3 was trained on: fingerprint 'folder/train/24/\w+', "
                r"now 'folder/train/23/\w+'. Restore the examples that were there, under the names "
                "that they had, or choose another --workdir",
                str(caught.value),
            )
    finally:
        gone.write_bytes(content)
    assert train(configured(), run)["eval"] == whole_run["eval"]


def test_other_held_out_files_are_mentioned_at_resume(configured, images, tmp_path, capsys):
    for _ in range(2):
        train(configured(), tmp_path)
        (tmp_path / "summary.json").unlink()
    assert "note:" not in capsys.readouterr().err
    added = images / "val" / "dark" / "9.png"
    shutil.copyfile(images / "val" / "dark" / "0.png", added)
    try:
        assert train(configured(), tmp_path)["eval"]["count"] == 11
    finally:
        added.unlink()
    said = capsys.readouterr().err
    assert "note: the held-out data is not what step 6 was evaluated on: 'folder/val/10/" in said


def test_broken_files(configured, images, tmp_path):
    broken = [images / "train" / "dark" / "3.png", images / "val" / "light" / "0.png"]
    whole = [path.read_bytes() for path in broken]
    try:
        for path, content in zip(broken, whole, strict=True):
            path.write_bytes(content[: len(content) // 2])
        with pytest.raises(RunError) as caught:
            train(configured(), tmp_path)
        assert any(str(path) in str(caught.value) for path in broken)
        assert "data.on_error=skip" in str(caught.value)
        assert "\n" not in str(caught.value)

        summary = train(configured("data.on_error=skip"), tmp_path)  # resumes the same run
        assert (summary["eval"]["count"], summary["eval"]["unreadable"]) == (9, 1)
        assert reevaluate(tmp_path)["unreadable"] == 1
        assert "on 9 of 10 (1 could not be read) val images" in cli._report(summary, tmp_path)
        whole_run = train(configured("data.on_error=skip"), tmp_path / "whole")
        assert whole_run["skipped"] == 2  # in 6 steps of 8, two epochs of 24
    finally:
        for path, content in zip(broken, whole, strict=True):
            path.write_bytes(content)


def test_images_that_are_not_read_are_mentioned(configured, images, tmp_path, capsys):
    shutil.copytree(images / "val", images / "raw")
    try:
        train(configured("total_steps=1"), tmp_path)
    finally:
        shutil.rmtree(images / "raw")
    assert f"note: {images}/raw: 10 images not read" in " ".join(capsys.readouterr().err.split())
