"""Whole runs on a folder of images: class names, broken files, other numbers of workers."""

import json

import numpy as np
import pytest
from PIL import Image

from mbv3_jax.cli import train as cli
from mbv3_jax.core.errors import RunError
from mbv3_jax.train.inference import reevaluate
from mbv3_jax.train.loop import train


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
