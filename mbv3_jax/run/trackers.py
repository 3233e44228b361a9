"""Trackers: services and programs that keep the records of many runs; none by default.

`config.tracker` names one, which then gets what metrics.jsonl and TensorBoard get. Where it keeps
the records is set by its own environment variables (`WANDB_MODE`, `MLFLOW_TRACKING_URI`,
`TRACKIO_DIR`, and so on). If a tracker fails, one line says so, and the run continues without it.
"""

import contextlib
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mbv3_jax.core.errors import first_line, printable
from mbv3_jax.core.files import write_atomically
from mbv3_jax.core.json_lines import say
from mbv3_jax.core.json_values import read_json
from mbv3_jax.core.packages import need

# In a run folder: the name of each tracker that the run has used -> the identity of its record.
FILE = "tracker.json"
_PROJECT = "mbv3_jax"  # unless an environment variable of the tracker names another


class Tracker(Protocol):
    """The record of one run.

    Attributes:
      identity: what a later session needs to continue the same record.
      where: where the user finds it.
    """

    identity: str
    where: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step, by names such as "eval/top1"."""

    def close(self) -> None:
        """Ends the session."""


class _Wandb:
    """Weights & Biases; with WANDB_MODE=offline in the folder ./wandb."""

    def __init__(self, run: Path, identity: str | None, config: Mapping[str, object]):
        wandb = need("wandb", "config.tracker='wandb'", "wandb")
        self.identity = identity or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=self.identity,
            name=str(run),
            config=None if identity else dict(config),
            resume="allow",
            reinit="create_new",  # one for each seed
            settings=wandb.Settings(console="off", silent=True),
        )
        # What a run does again after a kill would else be left out: W&B's own step only grows.
        self._run.define_metric("*", step_metric="step")
        self.where = self._run.url or f"wandb sync {Path(self._run.dir).parent}"

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """MLflow, by default in ./mlflow.db."""

    def __init__(self, run: Path, identity: str | None, config: Mapping[str, object]):
        mlflow = need("mlflow", "config.tracker='mlflow'", "mlflow")
        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        self.where = f"{mlflow.get_tracking_uri()}, experiment {name}"
        if identity:
            self._client.update_run(identity, status="RUNNING")
            self.identity = identity
            return
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.identity = self._client.create_run(number, run_name=str(run)).info.run_id
        for field, value in config.items():
            self._client.log_param(self.identity, field, value)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        metric = need("mlflow.entities", "config.tracker='mlflow'", "mlflow").Metric
        now = int(1000 * time.time())
        metrics = [metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self.identity)


class _Trackio:
    """Trackio, by default in the cache folder of Hugging Face."""

    def __init__(self, run: Path, identity: str | None, config: Mapping[str, object]):
        with contextlib.redirect_stdout(io.StringIO()):  # of greetings
            trackio = need("trackio", "config.tracker='trackio'", "trackio")
            self.identity = identity or f"{run.name}-{uuid.uuid4().hex[:8]}"
            project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
            self._run = trackio.init(
                project=project,
                name=self.identity,
                config=None if identity else dict(config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.where = f"trackio show --project {project}"

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


# Called with the run folder, the identity of its record (None for a new one), and the fields of the
# configuration by their dotted names.
TRACKERS: dict[str, Callable[[Path, str | None, Mapping[str, object]], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}


class Tracking:
    """Passes the records of a run to a tracker, until it fails.

    Args:
      name: a key of `TRACKERS`.
      run: the run folder, in which a session leaves the identity of the record for the next one.
      config: the fields of the configuration by their dotted names.
    """

    def __init__(self, name: str, run: Path, config: Mapping[str, object]):
        self._name = name
        self._tracker: Tracker | None = None
        self._attempt(lambda: self._open(run, config))

    def _open(self, run: Path, config: Mapping[str, object]) -> None:
        path = run / FILE
        known = read_json(path, dict[str, str], error=ValueError) if path.is_file() else {}
        tracker = TRACKERS[self._name](run, known.get(self._name), config)
        self._tracker = tracker
        write_atomically(path, json.dumps(known | {self._name: tracker.identity}))
        say(printable(f"tracked by {self._name}: {tracker.where}"))

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Passes a record on, see `metrics.Metrics`."""
        if tracker := self._tracker:
            named = {f"{kind}/{name}": value for name, value in values.items()}
            self._attempt(lambda: tracker.write(step, named))

    def close(self) -> None:
        """Ends the session."""
        if tracker := self._tracker:
            self._attempt(tracker.close)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as e:  # whatever other people's libraries and servers come up with
            self._tracker = None
            kind = type(e).__name__
            say(printable(f"{self._name}: {kind}: {first_line(e)}; the run continues without it"))
