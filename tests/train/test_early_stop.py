"""Runs that end early, or keep their best checkpoint by a metric, also after interruptions."""

import json
import os
import signal

import numpy as np
import pytest
from run_checks import assert_same_records, checkpoint_steps

from mbv3_jax.cli import train
from mbv3_jax.core.errors import Preempted, RunError, UsageError
from mbv3_jax.run.checkpoint import Checkpoints
from mbv3_jax.run.folder import read_config, read_summary
from mbv3_jax.run.metrics import best_record, evaluations_since_best, read_metrics
from mbv3_jax.train import evaluate, loop
from mbv3_jax.train.experiment import Experiment, make_experiment

# By the step of the evaluation: that of step 6 is the best, and three follow that are not better.
LOSSES = {2: 2.0, 4: 2.1, 6: 1.5, 8: 3.0, 10: 1.5, 12: 1.9, 14: 1.6}
FLAGS = (
    "--config.eval_every_steps=2",
    "--config.keep_checkpoints=1",
    "--config.early_stop.patience=3",
    "--config.early_stop.metric=loss",
)


@pytest.fixture
def scripted(monkeypatch):
    """Makes the losses of evaluations those of `LOSSES`, by the step of the state."""
    original = loop.Recorder.evaluate
    measure, steps = Experiment.evaluate, []

    def of_step(self, step, state):
        steps.append(step)
        return original(self, step, state)

    def measured(*args, **how):
        # The best top-1 is that of step 2.
        scripts = {"loss": LOSSES[steps[-1]], "top1": 1 / steps[-1]}
        return measure(*args, **how) | scripts

    monkeypatch.setattr(loop.Recorder, "evaluate", of_step)
    monkeypatch.setattr(Experiment, "evaluate", measured)


def assert_same_weights(run, other, step):
    restored = [
        Checkpoints(r, read_only=True).restore(
            step, make_experiment(read_config(r), r).abstract_state()
        )
        for r in (run, other)
    ]
    for a, b in zip(*(loop.jax.tree.leaves(state) for state, _ in restored), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_it_ends_after_its_patience_also_where_it_resumes(
    scripted, tiny_config, tmp_path, monkeypatch, capsys
):
    config = tiny_config(*FLAGS, "--config.keep_best=True", "--config.keep_best_metric=loss")
    whole = tmp_path / "whole"
    summary = loop.train(config, whole)
    # That of step 10 is as good as that of step 6, and so not better.
    assert summary["steps"] == 12 and summary["epochs"] == 12 / (50 / 8)
    assert summary["early_stop"] == {"metric": "loss", "patience": 3, "planned_steps": 24}
    assert summary["best"] == {"step": 6, "metric": "loss", "loss": 1.5, "top1": 1 / 6}
    assert read_summary(whole) == summary
    assert checkpoint_steps(whole) == [6, 12] and Checkpoints(whole).find("best") == 6
    assert (
        "step 12: no better loss in 3 evaluations: training stops early" in capsys.readouterr().err
    )
    report = train._report(summary, whole)
    assert "\nstopped early, of 24 steps: no better loss in 3 evaluations\n" in report
    assert "best: loss 1.5000, top-1 " in report
    # The schedule is that of the whole run.
    schedule = make_experiment(read_config(whole)).schedule
    assert read_metrics(whole)[-2]["lr"] == pytest.approx(
        float(schedule(11)) / 2 + float(schedule(10)) / 2
    )
    # Stopped between two steps, in the evaluation that ends it, and in the one of the summary.
    for module, call, saved in ((loop, 9, 9), (evaluate, 21, 12), (evaluate, 25, 12)):
        run, calls = tmp_path / f"cut{call}", []
        original = module.put_batch

        def put_batch(*args, original=original, calls=calls, call=call, **how):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **how)

        with monkeypatch.context() as patch:
            patch.setattr(module, "put_batch", put_batch)
            with pytest.raises(Preempted):
                loop.train(config, run)
        assert checkpoint_steps(run)[-1] == saved and read_summary(run) is None
        again = loop.train(config, run)
        assert {k: again[k] for k in ("steps", "best", "early_stop")} == {
            k: summary[k] for k in ("steps", "best", "early_stop")
        }
        assert_same_records(run, whole)
        assert_same_weights(run, whole, 12)


def test_what_was_not_logged_yet_is_where_it_ends(scripted, tiny_config, tmp_path):
    summary = loop.train(tiny_config(*FLAGS, "--config.early_stop.patience=1"), tmp_path)
    assert summary["steps"] == 4  # at which no record and no checkpoint would be due
    assert [(r["step"], r["kind"]) for r in read_metrics(tmp_path)][-2:] == [
        (4, "train"),
        (4, "eval"),
    ]


def test_more_patience_reaches_the_end(scripted, tiny_config, tmp_path):
    config = tiny_config(*FLAGS, "--config.total_steps=16", "--config.early_stop.patience=5")
    summary = loop.train(config, tmp_path)
    assert summary["steps"] == 16 and "early_stop" not in summary and "best" not in summary


def test_what_is_best_depends_on_the_metric(tmp_path):
    values = [(0.5, 2.0, 0.1), (0.7, 1.5, 0.3), (0.7, 1.0, 0.2), (0.6, 1.2, float("nan"))]
    lines = [
        json.dumps({"step": step, "kind": "eval", "top1": top1, "loss": loss, "ece": ece})
        for step, (top1, loss, ece) in enumerate(values, start=1)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for metric, step in {"top1": 2, "loss": 3, "ece": 1}.items():
        assert best_record(tmp_path, metric)["step"] == step
        assert evaluations_since_best(tmp_path, metric) == 4 - step
    assert best_record(tmp_path, "macro_f1") is None  # as in a folder of an older version
    assert evaluations_since_best(tmp_path, "macro_f1") == 4


WRONG = [
    ("early_stop.patience=0", "early_stop.patience: got 0, expected a whole number of at least 1"),
    ("early_stop.metric=loss", "early_stop.metric: got 'loss', but early_stop.patience is None"),
    (
        "early_stop.patience=1 early_stop.metric=accuracy",
        "early_stop.metric: got 'accuracy', expected one of 'top1', 'top5', 'balanced_accuracy'",
    ),
    (
        "early_stop.patience=1 early_stop.metric=auc",
        "early_stop.metric: got 'auc', which is for two classes, but the data has 10",
    ),
    ("early_stop.patience=1 seeds=0,1", "early_stop.patience: got 1, but seeds are trained togeth"),
    (
        "early_stop.patience=2 average_epochs=1 ema_decay=None",
        "average_epochs: got 1.0, the last epochs of the whole run, which early_stop.patience=2",
    ),
    ("keep_best_metric=loss", "keep_best_metric: got 'loss', but keep_best is False"),
    ("keep_best=True keep_best_metric=x", "keep_best_metric: got 'x', expected one of 'top1', 't"),
    (
        "keep_best=True keep_best_metric=top5 data.num_classes=4 net.num_classes=4",
        "keep_best_metric: got 'top5', expected top1 for 4 classes",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_wrong_fields_say_what_would_be_right(tiny_config, overrides, message):
    flags = [f"--config.{override}" for override in overrides.split()]
    with pytest.raises(UsageError) as caught:
        make_experiment(tiny_config(*flags))
    assert str(caught.value).startswith(f"config: {message}")


def test_a_metric_that_is_not_defined_here_is_said(tiny_config, tmp_path, monkeypatch):
    overrides = ("data.num_classes=2", "net.num_classes=2", "early_stop.patience=1")
    flags = [f"--config.{o}" for o in (*overrides, "early_stop.metric=auc", "eval_every_steps=2")]
    measure = Experiment.evaluate

    def measured(*args, **how):
        values = measure(*args, **how)
        return {name: value for name, value in values.items() if name != "auc"}

    monkeypatch.setattr(Experiment, "evaluate", measured)
    with pytest.raises(RunError, match=r"^auc: not defined for these held-out images, whose "):
        loop.train(tiny_config(*flags), tmp_path)
