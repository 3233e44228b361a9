import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from run_checks import checkpoint_steps

from mbv3_jax.arch.spec import spec_to_json
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import check_storable
from mbv3_jax.data.augment import make_preprocess
from mbv3_jax.nn import functional
from mbv3_jax.run.checkpoint import Checkpoints, write_arrays
from mbv3_jax.run.digests import write_digests
from mbv3_jax.run.folder import read_config
from mbv3_jax.run.model import (
    _FILES,
    Model,
    Preprocessing,
    load_model,
    preprocessing_of_config,
    save_model,
)
from mbv3_jax.train import loop
from mbv3_jax.train.experiment import make_experiment

NAMES = tuple(f"class {i}" for i in range(10))


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def tiny(tiny_spec):
    return Model(
        spec=tiny_spec.replace(padding="symmetric", bn_eps=1e-5),
        variables=functional.init(tiny_spec, jax.random.key(3)),
        preprocessing=Preprocessing(
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop_fraction=0.95,
            interpolation="bicubic",
            central="stretch",
        ),
        class_names=NAMES,
    )


@pytest.fixture
def folder(tmp_path, tiny):
    save_model(tmp_path / "import", tiny, origin={"from": "nowhere"})
    return tmp_path / "import"


def test_an_import_folder_gives_back_what_was_saved(tmp_path, tiny, folder):
    assert sorted(p.name for p in folder.iterdir()) == sorted([*_FILES, "format.json"])
    assert [p.name for p in tmp_path.iterdir()] == ["import"]
    assert json.loads((folder / "origin.json").read_text()) == {"from": "nowhere"}
    got = load_model(folder)
    assert_same(got.variables, jax.tree.map(np.asarray, tiny.variables))
    for field in ("spec", "preprocessing", "class_names"):
        assert getattr(got, field) == getattr(tiny, field)


def test_an_empty_folder_and_a_relative_path_will_do(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "import").mkdir(parents=True)
    where = type(tmp_path)("deep/import")
    save_model(where, tiny, origin={})
    assert load_model(where).class_names == NAMES


def test_what_is_there_is_never_replaced(tmp_path, tiny, folder):
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (folder, file):
        with pytest.raises(UsageError, match=r"exists already; give a folder that is new or em"):
            save_model(path, tiny, origin={})
    assert file.read_text() == "mine"
    with pytest.raises(UsageError, match=r"with \* in it, which Orbax takes for a pattern"):
        save_model(tmp_path / "a*", tiny, origin={})


def test_a_folder_may_have_any_name_that_is_stored_as_it_is(tmp_path, tiny):
    printable = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in "/\\*?[")
    name = f" {printable} %2F%5C \n\t\x01 日本 e\u0301 gs: "
    save_model(tmp_path / name, tiny, origin={})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert load_model(tmp_path / name).class_names == NAMES


@pytest.mark.parametrize("name", ["a\\b", "a\\", "a\udcffb", "gs:", "link"])
def test_a_folder_that_the_storage_would_take_for_another(tmp_path, tiny, folder, name):
    (tmp_path / "link").symlink_to("c\\d")
    before = sorted(tmp_path.iterdir())
    for path in (tmp_path / name, tmp_path / name / "import"):
        with pytest.raises(UsageError, match=r"checkpoints cannot be read from a ") as caught:
            save_model(path, tiny, origin={})
        str(caught.value).encode()  # can be printed
        assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "c\\d").mkdir()
    shutil.copytree(folder, tmp_path / name / "import")
    with pytest.raises(UsageError, match=r"checkpoints cannot be read from a .*; rename it"):
        load_model(tmp_path / name / "import")


def test_the_root_of_a_bucket_is_no_folder():
    with pytest.raises(UsageError, match=r"^/s3/x: .* from /s3, which Orbax takes for s3://; go"):
        check_storable(Path("/s3/x"), "go")
    assert str(epath.Path("/s3/x")) == "s3://x"  # why
    check_storable(Path("/data/s3/x"))


def test_a_full_disk_leaves_nothing(tmp_path, tiny, small_files):
    with small_files(2000), pytest.raises(RunError, match=r"cannot write .*/import: ") as caught:
        save_model(tmp_path / "import", tiny, origin={})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """A run of 12 steps, with checkpoints of 6 and 12."""
    run = tmp_path_factory.mktemp("runs") / "run"
    loop.train(tiny_config("--config.total_steps=12", "--config.augment.normalize=torch"), run)
    return run


def test_a_run_folder_gives_its_average_or_its_raw_weights(run):
    assert checkpoint_steps(run) == [6, 12]
    config = read_config(run)
    experiment = make_experiment(config)
    for step, weights in ((None, "auto"), (6, "ema"), (12, "raw")):
        checkpoints = Checkpoints(run, read_only=True)
        state, _ = checkpoints.restore(step or 12, experiment.abstract_state())
        got = load_model(run, step=step, weights=weights)
        want = state.variables if weights == "raw" else state.ema
        assert_same(got.variables, jax.tree.map(np.asarray, want))
        assert got.spec == experiment.spec
        assert got.class_names == tuple(f"class{i}" for i in range(10))
        assert got.preprocessing.mean == (0.485, 0.456, 0.406)
        assert got.preprocessing.crop_fraction == 0.875
    with pytest.raises(UsageError, match=r"no checkpoint of step 7 in .*; there are: 6, 12"):
        load_model(run, step=7)


def test_the_preprocessing_of_a_configuration(tiny_config):
    overrides = ("crop_fraction=0.9", "interpolation=bicubic", "central=stretch")
    config = tiny_config(*(f"--config.data.{o}" for o in overrides), "--config.augment.flip=True")
    assert preprocessing_of_config(config) == Preprocessing(
        crop_fraction=0.9, interpolation="bicubic", central="stretch"
    )
    assert not preprocessing_of_config(tiny_config("--config.data.exif_rotate=False")).exif_rotate


@pytest.mark.parametrize("name", ["inception", "torch"])
def test_normalising_by_numbers_is_normalising_by_name(name, tiny_config):
    images = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    got = preprocessing_of_config(tiny_config(f"--config.augment.normalize={name}"))
    by_numbers, by_name = (make_preprocess(normalize=n)[1](images) for n in (got.normalize, name))
    np.testing.assert_array_equal(by_numbers, by_name)
    mean, std = np.array(got.mean), np.array(got.std)
    np.testing.assert_allclose(by_name, (images / 255 - mean) / std, atol=1e-5)


def test_folders_of_something_else(tmp_path, run, folder):
    with pytest.raises(UsageError, match=r"nowhere: no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"neither a run folder .* nor an import folder"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match=r"--step: .* is an import folder"):
        load_model(folder, step=3)
    with pytest.raises(UsageError, match=r"--weights: .* is an import folder"):
        load_model(folder, weights="raw")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "weights": (lambda f: flip_a_bit(next(f.glob("weights/d/*"))), r"its file weights/d/.* damag"),
    "file": (lambda f: next(f.glob("weights/d/*")).unlink(), r"its file weights/d/\S+ is missing"),
    "folder": (
        lambda f: shutil.rmtree(f / "weights"),
        r"not a complete import folder: it has",
    ),
    "digests": (lambda f: (f / "digests.json").write_text("["), r"its digests.json is missing or"),
    "spec": (lambda f: (f / "spec.json").write_text("{}"), r"spec.json is damaged: unknown"),
    "classes": (
        lambda f: (f / "classes.json").write_text("[1]"),
        r"classes.json is damaged: \[0\]: got 1, expected a string",
    ),
    "number": (
        lambda f: (f / "classes.json").write_text('["a", "b"]'),
        r"does not fit together: class_names: got 2, expected the 10 of the network tiny",
    ),
    "preprocessing": (
        lambda f: (f / "preprocessing.json").write_text(
            '{"mean": [0, 0, 0], "std": [1, 1, 1], "crop": 1}'
        ),
        r"preprocessing.json is damaged: .*'crop'",
    ),
    "no preprocessing": (  # which the defaults must not stand for
        lambda f: (f / "preprocessing.json").write_text("{}"),
        r"preprocessing.json is damaged: mean: missing, expected a list",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(folder, damage, message, capfd):
    damage(folder)
    with pytest.raises(RunError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("lacks", ["params/last/conv", "params/block1", "batch_stats"])
def test_a_layer_that_is_missing_is_named(folder, tiny, lacks):
    arrays = jax.tree.map(np.asarray, tiny.variables)
    *above, name = lacks.split("/")
    node = arrays
    for part in above:
        node = node[part]
    del node[name]
    shutil.rmtree(folder / "weights")
    write_arrays(epath.Path(folder / "weights"), arrays)
    write_digests(epath.Path(folder))
    with pytest.raises(RunError, match=f"cannot be read: its array {lacks}[a-z0-9_/]* is missing"):
        load_model(folder)


def test_another_network_lists_what_does_not_fit(folder, tiny):
    other = dataclasses.replace(tiny.spec.last, out=24)
    (folder / "spec.json").write_text(spec_to_json(tiny.spec.replace(last=other)))
    with pytest.raises(RunError, match=r"params/last/conv/kernel: got \(1, 1, 8, 16\), expected"):
        load_model(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mean", (0.5,), r"mean: got \(0.5,\), expected 3 numbers"),
        ("std", (0.5, 0, 0.5), r"std: got .*, expected 3 positive numbers"),
        (
            "std",
            (0.5, 1e-300, 0.5),
            r"std: got .*, expected 3 positive numbers from 1e-06 to 1e\+06",
        ),
        ("std", (0.5, 1e300, 0.5), r"std: got .*, expected 3 positive numbers from 1e-06 to"),
        ("mean", (0.5, float("nan"), 0.5), r"mean: got .*, expected 3 numbers"),
        ("mean", (0.5, 1e300, 0.5), r"mean: got .*, expected 3 numbers from -1e\+06 to 1e\+06"),
        ("crop_fraction", 1.5, r"crop_fraction: got 1.5, expected above 0 and at most 1"),
        ("interpolation", "lanczos", r"interpolation: got 'lanczos', expected one of"),
        ("central", "left", r"central: got 'left', expected one of 'square', 'stretch'"),
    ],
)
def test_preprocessing_out_of_range(field, value, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{field: value})
