"""Runs that start from trained weights: what they take over, freeze, keep and leave behind."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from run_checks import assert_same_end, assert_same_records, checkpoint_steps

from mbv3_jax.cli import train
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.run.checkpoint import Checkpoints
from mbv3_jax.run.folder import read_summary
from mbv3_jax.run.metrics import best_record, read_metrics
from mbv3_jax.run.model import Model, Preprocessing, load_model, save_model
from mbv3_jax.train import loop
from mbv3_jax.train.experiment import Experiment, make_experiment
from mbv3_jax.train.reevaluate import reevaluate
from mbv3_jax.train.warm_start import weights_digest

LEVELS = {"dark": 60, "light": 190, "mid": 125}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, level in LEVELS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(level - 60, level + 60, (40, 44, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def origin(tmp_path_factory, tiny_config):
    """An import folder of ten classes with a preprocessing of its own, from a short run."""
    folder = tmp_path_factory.mktemp("origin")
    loop.train(tiny_config("--config.total_steps=12"), folder / "run")
    trained = load_model(folder / "run")
    other = Preprocessing(
        mean=(0.485, 0.456, 0.406),
        std=(0.2, 0.2, 0.2),
        crop_fraction=0.95,
        central="stretch",
        exif_rotate=False,
    )
    changed = Model(
        spec=trained.spec.replace(padding="symmetric", bn_eps=1e-4),
        variables=trained.variables,
        preprocessing=other,
        class_names=trained.class_names,
    )
    save_model(folder / "import", changed, origin={})
    return folder / "import"


@pytest.fixture(scope="module")
def configured(images, tiny_config):
    def make(init, *overrides: str):
        fields = {
            "init": init,
            "data.name": f"folder:{images}",
            "data.num_examples": None,
            "data.num_workers": 0,
            "net.num_classes": None,
            "total_steps": 16,
            "eval_every_steps": 4,
            "checkpoint_every_steps": 6,
            "keep_checkpoints": 1,
            "keep_best": True,
            "save_predictions": True,
            "finetune.frozen": "stem-1",
            "finetune.backbone_lr_factor": 0.5,
            **dict(o.split("=", 1) for o in overrides),
        }
        config = tiny_config(*(f"--config.{k}={v}" for k, v in fields.items()))
        config.augment.normalize = None
        return config

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory, configured, origin):
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    loop.train(configured(origin), run)
    return run


def same(a, b) -> bool:
    return all(map(np.array_equal, *map(jax.tree.leaves, (a, b))))


def test_what_is_taken_over(configured, origin, tmp_path):
    experiment = make_experiment(configured(origin), tmp_path / "run")
    there = load_model(origin)
    assert experiment.spec == there.spec.replace(num_classes=3, bn_decay=0.9, dropout=0.2)
    assert experiment.spec.padding == "symmetric"
    assert experiment.plan.preprocessing == there.preprocessing
    pixels = np.full((1, 32, 32, 3), 51, np.uint8)
    got = experiment.eval_preprocess(pixels)[0, 0, 0]
    np.testing.assert_allclose(got, (0.2 - np.array(there.preprocessing.mean)) / 0.2, rtol=1e-5)
    assert there.preprocessing.crop.items() <= experiment.data.held_out._crop.items()
    state = experiment.create_state()
    for tree in (state.variables, state.ema):
        for kind, stages in there.variables.items():
            for stage, weights in stages.items():
                assert same(tree[kind][stage], weights) == (stage != "logits"), stage
    assert state.variables["params"]["logits"]["kernel"].shape == (1, 1, 16, 3)
    assert experiment.init_record()["message"] == (
        f"the weights of {origin}, but new logits (3 classes, 10 there)"
    )


def test_a_configuration_may_change_the_view_and_the_size(configured, origin, tmp_path):
    config = configured(origin, "data.crop_fraction=0.5", "net.resolution=48")
    experiment = make_experiment(config)
    assert experiment.spec.resolution == experiment.data.held_out.resolution == 48
    assert experiment.plan.preprocessing.crop_fraction == 0.5
    assert experiment.plan.preprocessing.central == "stretch"
    assert experiment.data.held_out._crop["crop_fraction"] == 0.5


def test_as_many_classes_keep_the_logits(configured, origin, tiny_config):
    config = tiny_config(f"--config.init={origin}")
    config.augment.normalize = None
    experiment = make_experiment(config)
    assert experiment.init_record()["message"] == f"all the weights of {origin}"
    assert same(experiment.create_state().variables, load_model(origin).variables)


def test_frozen_stages_stay_as_they_are(finished, origin):
    before, after = load_model(origin).variables, load_model(finished, weights="raw").variables
    changed = {
        kind: [s for s in stages if s != "logits" and not same(stages[s], before[kind][s])]
        for kind, stages in after.items()
    }
    assert changed == {"params": ["block2", "head", "last"], "batch_stats": ["block2", "last"]}


def test_frozen_batch_norm_keeps_all_statistics(configured, origin, tmp_path):
    config = configured(
        origin, "finetune.freeze_bn=True", "finetune.frozen=", "total_steps=4", "ema_decay=None"
    )
    loop.train(config, tmp_path / "run")
    before, after = load_model(origin).variables, load_model(tmp_path / "run").variables
    assert same(before["batch_stats"], after["batch_stats"])
    assert not same(before["params"]["stem"], after["params"]["stem"])


def test_what_a_run_leaves(finished, origin, images):
    summary, records = read_summary(finished), read_metrics(finished)
    evals = {r["step"]: r["top1"] for r in records if r["kind"] == "eval"}
    assert list(evals) == [4, 8, 12, 16]
    assert summary["best"] == {"step": best_record(finished)["step"], "top1": max(evals.values())}
    assert checkpoint_steps(finished) == sorted({summary["best"]["step"], 16})
    init = json.loads((finished / "init.json").read_text())
    assert (init["folder"], init["new"], init["network"]) == (str(origin), ["logits"], "tiny")
    assert init["digest"] == weights_digest(load_model(origin).variables)
    assert load_model(finished).preprocessing == load_model(origin).preprocessing

    report = train._report(summary, finished)
    assert f"best: top-1 {summary['best']['top1']:.2%} at step {summary['best']['step']};" in report
    assert report.endswith("--what=mistakes --out=mistakes.png   draw its worst mistakes")

    said = np.load(finished / "predictions.npz")
    assert said["step"] == 16
    assert said["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert said["path"][5] == str(images / "val" / "light" / "1.png")
    assert np.mean(said["label"] == said["prediction"]) == summary["eval"]["top1"]
    loss = -np.mean(np.log(said["label_probability"]))
    assert loss == pytest.approx(summary["eval"]["loss"], rel=1e-5)
    worst = said["mistakes"]
    assert set(worst) == set(np.flatnonzero(said["label"] != said["prediction"]))
    assert (np.diff(said["label_probability"][worst]) >= 0).all()
    assert said["thumbnails"].shape == (len(worst), 32, 32, 3)


def test_the_best_checkpoint_is_kept_and_can_be_asked_for(
    configured, origin, tmp_path, monkeypatch
):
    scripted = iter([0.3, 0.8, 0.8, 0.5, 0.5, 0.8])
    original = Experiment.evaluate

    def evaluate(*args, **kwargs):
        return {**original(*args, **kwargs), "top1": next(scripted)}

    monkeypatch.setattr(Experiment, "evaluate", evaluate)
    summary = loop.train(configured(origin), tmp_path / "run")
    assert summary["best"] == {"step": 8, "top1": 0.8}
    assert checkpoint_steps(tmp_path / "run") == [8, 16]
    best = load_model(tmp_path / "run", step="best")
    assert same(best.variables, load_model(tmp_path / "run", step=8).variables)
    assert not same(best.variables, load_model(tmp_path / "run").variables)
    again = reevaluate(tmp_path / "run", step="best")
    assert again["step"] == 8
    assert again["loss"] == best_record(tmp_path / "run")["loss"]


def test_a_run_that_keeps_no_best(origin):
    with pytest.raises(UsageError, match=r"--step=best: .*/run keeps no best checkpoint"):
        load_model(origin.parent / "run", step="best")


def stopping(step):
    """A `put_batch` that ends the run at a training step, as a kill between two steps does."""
    calls = 0

    def put_batch(batch, mesh, **how):
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        return original(batch, mesh, **how)

    original = loop.put_batch
    return put_batch


@pytest.mark.parametrize("moment", [1, 6, 11])
def test_interrupted_and_resumed_without_the_folder_it_ends_with_the_same_bits(
    finished, configured, origin, tmp_path, monkeypatch, moment
):
    moved = tmp_path / "import"
    shutil.copytree(origin, moved)
    config, run = configured(moved), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "put_batch", stopping(moment))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, run)
    assert checkpoint_steps(run)
    shutil.rmtree(moved)
    loop.train(config, run)
    assert_same_end(run, finished)
    assert_same_records(run, finished)
    for name, value in np.load(finished / "predictions.npz").items():
        np.testing.assert_array_equal(np.load(run / "predictions.npz")[name], value)


def interrupted(*_):
    raise KeyboardInterrupt


def test_other_weights_before_the_first_checkpoint_are_refused(
    configured, origin, tmp_path, monkeypatch
):
    moved, run = tmp_path / "import", tmp_path / "run"
    shutil.copytree(origin, moved)
    config = configured(moved)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, run)
    assert (run / "init.json").exists() and not checkpoint_steps(run)
    there = load_model(moved)
    shutil.rmtree(moved)
    other = jax.tree.map(lambda x: x + 1, there.variables)
    changed = Model(
        spec=there.spec,
        variables=other,
        preprocessing=there.preprocessing,
        class_names=there.class_names,
    )
    save_model(moved, changed, origin={})
    with pytest.raises(RunError, match=r"config.init: .*/import has other weights than when this"):
        loop.train(config, run)


def test_what_contradicts_the_folder_is_refused_and_nothing_made(
    configured, origin, tmp_path, tiny_config
):
    wrong = {
        "net.width=0.5": r"config.net.width: got 0.5, but the network is that of config.init=.*1.0",
        "net.padding=symmetric": r"config.net.padding: got 'symmetric', but the network is that",
        "net.name=mobilenet_v2": r"holds a tiny, but config.net.name is 'mobilenet_v2'",
        "net.num_classes=4": r"net.num_classes: got 4, but the data .* has 3 classes",
        "net.resolution=16": r"config.net.resolution: got 16, expected a whole number of at least",
        "finetune.frozen=block9": r"finetune.frozen: got 'block9', expected one of 'stem'",
        "finetune.backbone_lr_factor=-1": r"backbone_lr_factor: got -1.0, expected a number at le",
        'finetune.lr_factors=(("x",1),)': r"lr_factors: 'x' matches no parameter",
    }
    run = tmp_path / "run"
    for override, message in wrong.items():
        with pytest.raises(UsageError, match=message) as caught:
            loop.train(configured(origin, override), run)
        assert "\n" not in str(caught.value)
        assert not run.exists()
    config = tiny_config(f"--config.init={origin}")
    with pytest.raises(UsageError, match=r"augment.normalize: got 'inception', but the weights of"):
        loop.train(config, run)
    assert not run.exists()
    with pytest.raises(UsageError, match=r"config.init: .* is neither a run folder"):
        loop.train(configured(tmp_path), run)
    with pytest.raises(UsageError, match=r"config.init: /nowhere: no such folder"):
        loop.train(configured("/nowhere"), run)
    assert not run.exists()


def test_a_damaged_record_is_named(finished, configured, origin, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "init.json").write_text("{")
    for action in (lambda: loop.train(configured(origin), run), lambda: load_model(run)):
        with pytest.raises(RunError, match=r"init.json is damaged: "):
            action()
