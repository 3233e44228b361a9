"""Folders of three splits: what is chosen on validation is evaluated on the tests at the end."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from mbv3_jax.cli.main import main
from mbv3_jax.cli.train import _report
from mbv3_jax.report.collect import collect
from mbv3_jax.report.rows import rows
from mbv3_jax.run.metrics import read_metrics
from mbv3_jax.train.experiment import Experiment, make_experiment
from mbv3_jax.train.loop import opening, train
from mbv3_jax.train.reevaluate import reevaluate

COUNTS = {"train": 12, "validation": 5, "test": 4}
MEASURED = ("count", "loss", "top1", "balanced_accuracy", "ece", "per_class")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    draw = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name, level in (("dark", 60), ("light", 120)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(level, level + 100, (40, 44, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def config(images, tiny_config):
    def make(*overrides: str, folder=images):
        fields = {"data.name": f"folder:{folder}", "data.num_examples": None}
        fields |= {"net.num_classes": None, "data.num_workers": 0, "total_steps": 6}
        fields |= {"schedule.warmup_steps": 0, "eval_every_steps": 2, "eval_batch_size": 4}
        options = (f"--config.{name}={value}" for name, value in fields.items())
        return tiny_config(*options, *(f"--config.{override}" for override in overrides))

    return make


def measured(values):
    return {name: values[name] for name in MEASURED}


def test_the_best_checkpoint_is_tested_and_nothing_else_sees_the_tests(
    config, tmp_path, monkeypatch, capsys
):
    measure, losses, tested = Experiment.evaluate, iter((3.0, 1.0, 2.0)), []

    def scripted(self, variables, wrap_batches=iter, source=None):
        values = measure(self, variables, wrap_batches, source)
        if source is not None:
            tested.append(source.split)
            return values
        return values | {"loss": next(losses, 2.0)}

    monkeypatch.setattr(Experiment, "evaluate", scripted)
    options = ("keep_best=True", "keep_best_metric=loss", "keep_checkpoints=1")
    summary = train(config(*options), tmp_path / "run")
    monkeypatch.undo()
    assert summary["split"] == "validation" and summary["eval"]["count"] == 10
    assert summary["best"]["step"] == summary["test"]["step"] == 4 and tested == ["test"]
    assert summary["test"]["split"] == "test" and summary["test"]["count"] == 8
    of_best, of_last = (reevaluate(tmp_path / "run", step=step) for step in ("best", None))
    assert measured(summary["test"]) == measured(of_best["test"])
    assert of_last["test"]["loss"] != of_best["test"]["loss"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    (record,) = [r for r in read_metrics(tmp_path / "run") if r["kind"] == "test"]
    assert (record["step"], record["top1"]) == (4, summary["test"]["top1"])
    said = _report(summary, tmp_path / "run")
    top1 = f"{summary['test']['top1']:.2%}"
    assert f"test: top-1 {top1} on all 8 test images (checkpoint of step 4)" in said
    (sweep,) = collect([tmp_path / "run"])
    (row,) = rows(sweep, lambda spec: None)
    assert row["test_top1"] == pytest.approx(100 * summary["test"]["top1"])
    assert main(["eval", f"--run={tmp_path / 'run'}", "--step=best"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["test"]["top1"] == pytest.approx(summary["test"]["top1"])
    assert f"test: top-1 {top1}; " in printed.err


def test_the_last_state_is_tested_where_no_best_is_kept(config, tmp_path):
    summary = train(config(), tmp_path / "last")
    assert summary["test"]["step"] == 6 and "best" not in summary
    assert measured(summary["test"]) == measured(reevaluate(tmp_path / "last")["test"])
    again = train(config("seeds=(0,1)"), tmp_path / "seeds")
    values = again["test"]["top1"]["values"]
    ends = (json.loads((tmp_path / "seeds" / f"seed{i}/summary.json").read_text()) for i in (0, 1))
    assert values == [end["test"]["top1"] for end in ends] and "step" not in again["test"]
    assert again["test"]["top1"]["mean"] == pytest.approx(np.mean(values))
    assert f"test: top-1 {np.mean(values):.2%}" in _report(again, tmp_path / "seeds")


def test_a_split_that_cannot_be_tested_is_left_out_and_said(config, images, tmp_path, capsys):
    folder = shutil.copytree(images, tmp_path / "data")
    lines = opening(make_experiment(config(folder=folder)), tmp_path)
    assert lines[2] == "tests: 8 test images, on which the last state is evaluated at the end"
    best = make_experiment(config("keep_best=True", folder=folder))
    assert "on which the best checkpoint is evaluated" in opening(best, tmp_path)[2]
    assert best.data.notes == []
    assert main(["data", "check", f"folder:{folder}"]) == 0
    assert re.search(r"test\b.*: 8 images", capsys.readouterr().out)
    named = make_experiment(config("data.eval_split=test", folder=folder)).data
    assert named.held_out.split == "test" and named.held_out.test is None
    (folder / "test" / "dark").rename(folder / "test" / "unknown")
    data = make_experiment(config(folder=folder)).data
    assert data.held_out.split == "validation" and data.held_out.test is None
    assert data.notes == [
        f"{folder / 'test'}: 8 images not read; data.eval_split=test evaluates on it"
    ]
    (folder / "test" / "unknown").rename(folder / "test" / "dark")
    (folder / "test" / "dark" / "notes.txt").write_text("")
    assert make_experiment(config(folder=folder)).data.held_out.test is None
