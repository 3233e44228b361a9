"""Registering sources: complete entries, a file of your own, and no library loaded in vain."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT

from configs import recipes
from mbv3_jax.cli.train import main
from mbv3_jax.data import source as registry
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.loader import train_batches
from mbv3_jax.data.source import NotFound, Source, crop_for, find_entry, open_pair, source
from mbv3_jax.run.config import parse_config
from mbv3_jax.train.reevaluate import reevaluate

# A source and a configuration of the tiny network in one file, as a user would write them.
SQUARES = '''
"""Bright and dark squares."""

import numpy as np

from mbv3_jax.data.source import Source, source

BRIGHT = 200


def recipe(config):
    config.net.resolution = 64
    config.total_steps = 4
    return config


@source("squares", splits=("train", "test"), default_recipe=recipe, num_classes=2)
class Squares(Source):
    def __init__(self, split, resolution, *, num_examples=16):
        self.name, self.split, self.resolution = "squares", split, resolution
        self.class_names = ("dark", "bright")
        self.fingerprint = f"squares/{split}/{resolution}/{num_examples}"
        self._length = num_examples

    def __len__(self):
        return self._length

    def batch(self, indices, views=None):
        labels = np.asarray(indices, np.int32) % 2
        side = self.resolution
        level = np.where(labels, BRIGHT, BRIGHT // 4).astype(np.uint8)
        image = np.broadcast_to(level[:, None, None, None], (len(labels), side, side, 3))
        return {"image": np.ascontiguousarray(image), "label": labels}


def get_config(argument="squares"):
    import tiny_config

    config = tiny_config.get_config()
    config.update(batch_size=4, eval_batch_size=4, total_steps=6)
    config.net.num_classes = 2
    config.schedule.warmup_steps = 0
    config.eval_every_steps = config.checkpoint_every_steps = 6
    config.data.name = argument
    config.data.num_examples = None
    config.data.num_workers = 1
    return config
'''


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Forgets what a test registers."""
    registry.patterns()  # a built-in module registers its source only when it is first imported
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture
def squares(tmp_path):
    path = tmp_path / "squares.py"
    path.write_text(SQUARES)
    return path


@pytest.mark.slow
def test_a_config_file_that_defines_its_source_trains_on_it(squares, tmp_path):
    """As from a shell, where the worker processes of the loader know nothing of the file."""
    command = [sys.executable, str(ROOT / "main.py"), f"--config={squares}"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["eval"]["count"]) == (6, 16)
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["dark", "bright"]


@pytest.mark.slow
def test_a_run_that_names_the_file_can_be_evaluated_by_anyone(squares, tmp_path, capsys):
    run = tmp_path / "run"
    config = f"{squares}:{squares}:squares"
    assert main([f"--config={config}", f"--workdir={run}"]) == 0, capsys.readouterr().err
    del registry._REGISTRY["squares"]
    assert reevaluate(run)["count"] == 16
    assert find_entry("squares")[0].origin == str(squares)


def test_its_recipe_serves_the_configurations_of_the_package(squares):
    for name in (f"{squares}:squares", "squares"):  # the second time it has been imported
        config = parse_config(f"{ROOT / 'configs' / 'small.py'}:{name}")
        assert (config.data.name, config.total_steps) == (name, 4)
        assert (config.net.resolution, config.net.num_classes) == (64, 2)
    train, test = open_pair(f"{squares}:squares", resolution=8, num_examples=5)
    assert (train.split, test.split, len(train), len(test)) == ("train", "test", 5, 5)
    with pytest.raises(ValueError, match=r"data.eval_split: 'squares' has no such option"):
        open_pair("squares", resolution=8, eval_split="test")


def test_worker_processes_get_the_class_of_a_file_that_they_cannot_import(squares):
    train, _ = open_pair(f"{squares}:squares", resolution=8)
    batches = [
        list(train_batches(train, batch_size=8, seed=1, stop_step=3, num_workers=workers))
        for workers in (0, 1)
    ]
    for here, there in zip(*batches, strict=True):
        np.testing.assert_array_equal(here["image"], there["image"])
        np.testing.assert_array_equal(here["label"], there["label"])


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(NotFound, match=r"data.name: .*gone.py: no such Python file"):
        open_pair(f"{tmp_path}/gone.py:squares", resolution=8)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_like_this\n")
    with pytest.raises(ValueError, match=r"broken.py: ModuleNotFoundError: .*nothing_like_this"):
        open_pair(f"{broken}:squares", resolution=8)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"data.name: got 'circles', expected one of 'clutter'"):
        open_pair(f"{tmp_path}/empty.py:circles", resolution=8)


class Whole(Source):
    def __init__(self, split, resolution): ...

    def __len__(self):
        return 1

    def batch(self, indices, views=None): ...


class NoBatch(Source):
    def __init__(self, split, resolution): ...

    def __len__(self):
        return 1


class NoSplit(Whole):
    def __init__(self, resolution): ...


class AnyOption(Whole):
    def __init__(self, split, resolution, **options): ...


def _no_path(resolution): ...


TWO = ("train", "test")
INCOMPLETE = {
    "no recipe": ("a", {"splits": TWO, "default_recipe": ""}, Whole, "default_recipe: got ''"),
    "a recipe of no kind": ("a", {"splits": TWO, "default_recipe": 3}, Whole, "got 3, expected"),
    "no splits": ("a", {}, Whole, "splits: got None, expected the names of at least two"),
    "one split": ("a", {"splits": ("train",)}, Whole, "expected the names of at least two"),
    "the same split": ("a", {"splits": ("train",) * 2}, Whole, "the names of at least two"),
    "no method": ("a", {"splits": TWO}, NoBatch, "NoBatch does not define batch"),
    "no source": ("a", {"splits": TWO}, int, "int is not a subclass of Source"),
    "no split": ("a", {"splits": TWO}, NoSplit, r"expected \(split, resolution\) and then"),
    "any option": ("a", {"splits": TWO}, AnyOption, r"expected \(split, resolution\) and then"),
    "no argument": ("a:PATH", {}, _no_path, r"expected \(argument, resolution\) and then"),
    "a function with splits": ("a:PATH", {"splits": TWO}, _no_path, "splits are for a class"),
    "a wrong name": ("A b", {"splits": TWO}, Whole, "source 'A b': expected a lower-case name"),
    "built in": ("digits", {"splits": TWO}, Whole, "'digits' is the name of a built-in source"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_incomplete_entry_is_an_error_when_it_is_registered(case):
    pattern, options, opener, message = INCOMPLETE[case]
    with pytest.raises((ValueError, TypeError), match=message):
        source(pattern, **{"default_recipe": "modest", **options})(opener)
    with pytest.raises(TypeError, match="default_recipe"):
        source(pattern)
    if case != "built in":
        assert "a" not in registry._REGISTRY


def test_two_files_cannot_register_the_same_name(squares, tmp_path):
    open_pair(f"{squares}:squares", resolution=8)
    other = tmp_path / "other.py"
    other.write_text(SQUARES)
    with pytest.raises(ValueError, match=rf"{squares} has registered this name already"):
        open_pair(f"{other}:squares", resolution=8)


def test_options_that_are_needed_and_attributes_that_are_missing():
    @source("bare", splits=TWO, default_recipe="modest")
    class Bare(Whole):
        def __init__(self, split, resolution, *, palette):
            self.name, self.split, self.resolution = "bare", split, resolution

    with pytest.raises(ValueError, match=r"data.palette: got None, but 'bare' needs it"):
        open_pair("bare", resolution=8)
    with pytest.raises(ValueError, match="Bare does not set class_names, fingerprint"):
        open_pair("bare", resolution=8, palette="warm")
    with pytest.raises(ValueError, match=r"data.colour: 'bare' has no such option"):
        open_pair("bare", resolution=8, palette="warm", colour="red")


def test_the_built_in_entries_are_complete():
    names = [pattern.replace(":PATH", ":/x").replace("/NAME", "/x") for pattern in PATTERNS]
    entries = {pattern: find_entry(n)[0] for pattern, n in zip(PATTERNS, names, strict=True)}
    assert registry.patterns() == PATTERNS
    known = {*recipes.V3, *recipes.SMALL_TASKS, "modest"}
    assert {entry.default_recipe for entry in entries.values()} <= known
    crop = {"central": "square", "exif_rotate": False}
    assert set(registry.patterns("crop")) == {*OF_FILES, "imagenet", "tfds/NAME"}
    for pattern in OF_FILES:
        assert crop_for(pattern.replace("PATH", "/x"), crop) == crop
    assert crop_for("tfds/x", crop) == {"central": "square"}
    assert crop_for("digits", crop) == {}


OF_FILES = ("folder:PATH", "huggingface:PATH", "table:PATH", "webdataset:PATH")
PATTERNS = tuple(sorted((*OF_FILES, "clutter", "digits", "imagenet", "synthetic", "tfds/NAME")))


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("digits", {"PIL.Image", "etils", "tensorflow_datasets", "grain"}),
        ("clutter", {"PIL.Image", "etils", "sklearn", "grain"}),
    ],
)
def test_a_source_loads_only_its_own_libraries(name, others):
    script = (
        "import json, sys\n"
        "from mbv3_jax.data.source import open_pair\n"
        f"open_pair({name!r}, resolution=8)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert f"mbv3_jax.data.sources.{name}" in loaded
    assert not others & loaded
    assert not {m for m in loaded if m.startswith("mbv3_jax.data.sources.")} - {
        f"mbv3_jax.data.sources.{name}"
    }


def test_an_unknown_default_recipe_is_named(squares):
    squares.write_text(SQUARES.replace("default_recipe=recipe", "default_recipe='best'"))
    with pytest.raises(ValueError, match="default_recipe: got 'best', expected one of paper, "):
        recipes.choose("mobilenet_v3_small", f"{squares}:squares", recipes.V3)


def test_encoded_sources_take_a_crop():
    @source("album", default_recipe="modest")
    def open_album(resolution, *, crop):
        album = Album(crop)
        return album, album

    class Album(Encoded):
        name, split, resolution, class_names, fingerprint = "album", "all", 8, ("a",), "album"

        def __len__(self):
            return 1

        def where(self, index):
            return "album"

        def read(self, index):
            return b"", 0

    train, _ = open_pair("album", resolution=8, crop={"central": "stretch", "area": None})
    assert train._crop == {"central": "stretch"}
    config = recipes.choose("mobilenet_v3_small", "album,recipe=slim", recipes.V3)
    assert (config.data.name, config.total_epochs) == ("album", 600.0)
