"""Classes of which nothing is held out, and data with nothing to evaluate on."""

import re

import numpy as np
import pytest
from PIL import Image

from mbv3_jax.cli.main import main
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.data.source import Source, open_pair, source
from mbv3_jax.train.evaluate import evaluate
from mbv3_jax.train.loop import train


@pytest.fixture
def fill(tmp_path):
    def make(**counts):
        for name, count in counts.items():
            folder = tmp_path / "data" / name.replace("__", "/")
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"{i}.png")
        return f"folder:{tmp_path / 'data'}"

    return make


LONELY = (
    "nothing to evaluate on, its split held_out is empty; 2 of 2 classes without an image to "
    "evaluate on: cat, dog; of a class with one image none can be held out"
)


def test_one_image_in_each_class_is_refused_before_anything_is_trained(
    fill, tiny_config, tmp_path, capsys
):
    name = fill(cat=1, dog=1)
    overrides = ("data.num_examples=None", "net.num_classes=None", f"data.name={name}")
    with pytest.raises(UsageError, match=re.escape(f"config: {name}: {LONELY}")):
        train(tiny_config(*(f"--config.{o}" for o in overrides)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert main(["data", "check", name]) == 2
    assert LONELY in "".join(capsys.readouterr().err.splitlines())
    train_on, held_out = open_pair(name, resolution=8, may_be_empty=True)  # to evaluate on both
    assert (len(train_on), len(held_out)) == (2, 0)


def test_classes_without_held_out_images_are_named(fill, capsys):
    name = fill(cat=1, dog=4, owl=1)
    assert open_pair(name, resolution=8)[1].notes == (
        "2 of 3 classes without an image to evaluate on: cat, owl; of a class with one image none "
        "can be held out",
    )
    assert main(["data", "check", name]) == 0
    assert "note: 2 of 3 classes without an image to evaluate on: cat" in capsys.readouterr().out


def test_classes_that_a_split_lacks_are_named(fill):
    name = fill(train__cat=1, train__dog=1, train__owl=1, test__cat=1, test__owl=1)
    assert open_pair(name, resolution=8)[1].notes == (
        "1 of 3 classes without an image to evaluate on: dog",
    )


def test_classes_without_training_images_are_named(fill):
    name = fill(train__cat=1, train__dog=0, train__owl=1, val__cat=1, val__dog=2, val__owl=1)
    held_out = open_pair(name, resolution=8, on_error="skip")[1]
    assert held_out.notes == ("1 of 3 classes without an image to train on: dog",)


def test_any_source_needs_examples(monkeypatch):
    from mbv3_jax.data import source as module

    monkeypatch.setattr(module, "_REGISTRY", dict(module._REGISTRY))

    @source("hollow", splits=("train", "test"), default_recipe="modest")
    class Hollow(Source):
        name, class_names, fingerprint = "hollow", ("a", "b"), "none"

        def __init__(self, split, resolution):
            self.split, self.resolution = split, resolution

        def __len__(self):
            return 0

        def batch(self, indices, views=None):
            raise IndexError

    with pytest.raises(ValueError, match=r"^hollow: nothing to train on, its split train is empty"):
        open_pair("hollow", resolution=8)


def test_no_readable_image_is_no_division_by_zero():
    totals = {"count": 0.0, "unreadable": 3.0, "loss": 0.0, "top1": 0.0}
    batches = [{"image": np.zeros((1, 8, 8, 3), np.uint8)}]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as caught:
        patch.setattr("mbv3_jax.train.evaluate.put_batch", lambda batch, mesh: batch)
        evaluate(lambda *_: totals, {}, batches, mesh=None, expected=3)
    assert str(caught.value) == "none of 3 images to evaluate on could be read"
