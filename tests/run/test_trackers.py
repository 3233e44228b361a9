"""Trackers get the records of a run, go on in the same record, and never end a run."""

import json
from importlib.util import find_spec

import pytest

from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.metrics import Metrics
from mbv3_jax.run.trackers import Tracking
from mbv3_jax.train import loop
from mbv3_jax.train.plan import read_plan


def of_wandb(folder, identity):
    """What is in the files of all sessions: W&B has no reader of them, but the names are text."""
    files = sorted(folder.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(files) == 2 == len(list(folder.glob("wandb/offline-run-*")))
    return [file.read_bytes() for file in files]


def of_mlflow(folder, identity):
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "mbv3_jax"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == identity and run.info.status == "FINISHED"
    assert run.data.params["optimizer.name"] == "rmsprop_tf"
    history = client.get_metric_history(identity, "eval/top1")
    return {(metric.step, metric.value) for metric in history}


def of_trackio(folder, identity):
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("mbv3_jax") == [identity]
    logs = SQLiteStorage.get_logs("mbv3_jax", identity)
    return {(log["step"], log["eval/top1"]) for log in logs if "eval/top1" in log}


CONFIG = {"optimizer.name": "rmsprop_tf", "net.width": 0.5, "seeds": None, "tuple": [1, 2]}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_resumed_run_goes_on_in_its_record(name, tmp_path, monkeypatch, capsys):
    if not find_spec(name):
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read once, as it is imported
    run = tmp_path / "run"
    run.mkdir()
    identities = []
    for resumed, last in ((0, 18), (12, 24)):
        tracking = Tracking(name, run, CONFIG)
        metrics = Metrics(run, resume_step=resumed, tracking=tracking)
        for step in range(resumed + 6, last + 1, 6):
            metrics.write(step, "train", {"loss": 1 / step})
            if step % 12 == 0:
                metrics.write(step, "eval", {"top1": step / 100})
        metrics.close()
        identities.append(json.loads((run / "tracker.json").read_text()))
    assert identities[0] == identities[1] and list(identities[0]) == [name]
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count(f"note: tracked by {name}: ") == 2
    assert "goes on without" not in printed.err
    readers = {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}
    found = readers[name](tmp_path, identities[0][name])
    if name == "wandb":
        assert all(b"eval/top1" in session and b"train/loss" in session for session in found)
    else:
        assert found == {(12, 0.12), (24, 0.24)}


def test_what_fails_is_one_line_and_the_run_goes_on(tiny_config, tmp_path, monkeypatch, capsys):
    """A server that is not there; without MLflow, its package is what is missing."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = tiny_config("--config.tracker=mlflow", "--config.total_steps=6")
    summary = loop.train(config, tmp_path / "run")
    assert summary["steps"] == 6
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("note: mlflow: ")]
    assert len(lines) == 1 and lines[0].endswith("; the run continues without it")
    assert ("Max retries exceeded" if find_spec("mlflow") else "[mlflow]") in lines[0]
    assert not (tmp_path / "run" / "tracker.json").exists()


def test_a_tracker_is_none_of_what_makes_a_run(tiny_config, tmp_path):
    config = tiny_config("--config.total_steps=6")
    summary = loop.train(config, tmp_path / "run")
    again = tiny_config("--config.total_steps=6", "--config.tracker=mlflow")
    assert loop.train(again, tmp_path / "run") == summary
    with pytest.raises(UsageError, match=r"config: tracker: got 'comet', expected one of .*wandb"):
        read_plan(tiny_config("--config.tracker=comet"))
