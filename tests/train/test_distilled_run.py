"""Runs with a teacher: what they record, how they resume, and when they are refused."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from run_checks import assert_same_end, assert_same_records, checkpoint_steps
from tiny_config import SPEC

from mbv3_jax.core.errors import Preempted, RunError, UsageError
from mbv3_jax.nn import functional
from mbv3_jax.run.folder import hold_inputs
from mbv3_jax.run.metrics import read_metrics
from mbv3_jax.run.model import Model, Preprocessing, load_model, save_model
from mbv3_jax.train import loop
from mbv3_jax.train.reevaluate import reevaluate
from mbv3_jax.train.teacher import read_teacher

NAMES = tuple(f"class{i}" for i in range(10))
SHORT = (
    "--config.total_steps=8",
    "--config.eval_every_steps=8",
    "--config.checkpoint_every_steps=3",
    "--config.log_every_steps=2",
)


def write_teacher(folder, seed):
    """An import folder of a network whose classes are those of the runs."""
    variables = jax.tree.map(np.asarray, functional.init(SPEC, jax.random.key(seed)))
    params = variables["params"]
    params["logits"] = jax.tree.map(lambda x: x * 100, params["logits"])
    model = Model(spec=SPEC, variables=variables, preprocessing=Preprocessing(), class_names=NAMES)
    save_model(folder, model, origin={})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "large"
    write_teacher(folder, 7)
    return folder


@pytest.fixture(scope="module")
def configured(tiny_config, teacher):
    return lambda *flags: tiny_config(*SHORT, f"--config.teacher={teacher}", *flags)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, configured):
    """A run with a teacher that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    loop.train(configured(), run)
    return run


@pytest.fixture
def stopped(tmp_path, configured, monkeypatch):
    """A run of the same that a signal has stopped after five steps."""
    return stop_after_five(configured(), tmp_path / "stopped", monkeypatch)


def stop_after_five(config, run, monkeypatch):
    original, calls = loop.put_batch, []

    def put_batch(*args, **how):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "put_batch", put_batch)
        with pytest.raises(Preempted):
            loop.train(config, run)
    return run


def test_both_parts_of_the_loss_are_recorded(finished):
    records = read_metrics(finished)
    for record in records:
        if record["kind"] == "train":
            both = record["label_loss"] + record["teacher_loss"]
            assert record["loss"] == pytest.approx(both / 2, rel=1e-5)
            assert 0 <= record["teacher_top1"] <= 1 and record["teacher_loss"] > 0
        else:
            assert not {"label_loss", "teacher_loss"} & record.keys()


def test_the_folder_knows_its_teacher(finished, teacher):
    (entry,) = json.loads((finished / "teacher.json").read_text())
    assert (entry["path"], entry["network"]) == (str(teacher), "tiny")
    assert len(entry["digest"]) == 64


def test_resumed_it_ends_with_the_same_bits(stopped, finished, configured):
    assert checkpoint_steps(stopped)[-1] == 5
    loop.train(configured(), stopped)
    assert_same_end(stopped, finished)
    assert_same_records(stopped, finished)


def test_with_maps_of_the_teacher_it_ends_with_the_same_bits(configured, tmp_path, monkeypatch):
    flags = "--config.distillation.features=(4,)", "--config.accum_steps=2"
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    loop.train(configured(*flags), whole)
    stop_after_five(configured(*flags), stopped, monkeypatch)
    loop.train(configured(*flags), stopped)
    assert_same_end(stopped, whole)
    assert_same_records(stopped, whole)
    assert "feature_loss" in read_metrics(whole)[0]
    summary = json.loads((whole / "summary.json").read_text())
    assert reevaluate(whole)["top1"] == summary["eval"]["top1"]


def test_a_teacher_that_computes_otherwise_is_another_one(teacher, tmp_path):
    padded = tmp_path / "padded"
    shutil.copytree(teacher, padded)
    model = load_model(padded)
    changed = dataclasses.replace(model, spec=model.spec.replace(padding="symmetric"))
    shutil.rmtree(padded)
    save_model(padded, changed, origin={})
    first, second = (read_teacher(str(path)).record()["digest"] for path in (teacher, padded))
    assert first != second


def test_a_search_and_netadapt_hold_on_to_their_teachers(tmp_path):
    teachers = [{"path": "/large", "network": "tiny", "digest": "a" * 64}]
    hold_inputs(tmp_path, [], None, "leave")
    assert not (tmp_path / "teacher.json").exists()
    for _ in range(2):
        hold_inputs(tmp_path, teachers, None, "leave")
    with pytest.raises(UsageError, match=r"/large is another teacher than when .*, or leave$"):
        hold_inputs(tmp_path, [teachers[0] | {"digest": "b" * 64}], None, "leave")


def test_another_teacher_at_the_same_place_is_noticed(stopped, configured, teacher, tmp_path):
    before = (stopped / "teacher.json").read_text()
    kept = tmp_path / "kept"
    shutil.move(teacher, kept)
    try:
        with pytest.raises(UsageError, match=r"large: no such folder or file$"):
            loop.train(configured(), stopped)
        write_teacher(teacher, 8)
        with pytest.raises(
            UsageError, match=r"teacher: .*large is another teacher than when .*stopped started"
        ) as raised:
            loop.train(configured(), stopped)
    finally:
        shutil.rmtree(teacher, ignore_errors=True)
        shutil.move(kept, teacher)
    assert "\n" not in str(raised.value)
    assert (stopped / "teacher.json").read_text() == before
    assert checkpoint_steps(stopped)[-1] == 5
    with pytest.raises(UsageError, match=r"distillation.weight: this command 0.9, the folder None"):
        loop.train(configured("--config.distillation.weight=0.9"), stopped)
    (stopped / "teacher.json").write_text("[{}]")
    with pytest.raises(UsageError, match=r"teacher.json is damaged: \[0\].path: missing"):
        loop.train(configured(), stopped)


def test_a_finished_run_is_evaluated_without_its_teacher(finished, teacher, tmp_path):
    kept = tmp_path / "kept"
    shutil.move(teacher, kept)
    try:
        summary = json.loads((finished / "summary.json").read_text())
        assert reevaluate(finished)["top1"] == summary["eval"]["top1"]
    finally:
        shutil.move(kept, teacher)


def test_seeds_at_once_each_know_the_teacher(configured, finished, tmp_path):
    loop.train(configured("--config.seeds=(0, 1)"), tmp_path)
    for name in ("seed0", "seed1"):
        assert (tmp_path / name / "teacher.json").read_text() == (
            finished / "teacher.json"
        ).read_text()
    for ours, alone in zip(read_metrics(tmp_path / "seed0"), read_metrics(finished), strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert ours.get("teacher_loss", 0) == pytest.approx(alone.get("teacher_loss", 0), rel=1e-3)


def test_training_for_int8_and_fine_tuning_learn_from_a_teacher(configured, teacher, tmp_path):
    flags = (
        f"--config.init={teacher}",
        "--config.quant.enabled=True",
        "--config.quant.delay_steps=0",
        "--config.quant.freeze_steps=4",
        "--config.finetune.frozen=stem",
    )
    config = configured(*flags)
    config.augment.normalize = None
    loop.train(config, tmp_path / "run")
    losses = [r["teacher_loss"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"]
    assert all(0 < loss < 20 for loss in losses)


def test_a_damaged_teacher_is_one_line(teacher, tmp_path, tiny_config):
    damaged = tmp_path / "damaged"
    shutil.copytree(teacher, damaged)
    (damaged / "spec.json").write_text("{")
    with pytest.raises(RunError, match=r"spec.json is damaged: ") as raised:
        loop.train(tiny_config(*SHORT, f"--config.teacher={damaged}"), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
