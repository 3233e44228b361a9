"""Trials as managed jobs of SkyPilot: machines of any cloud, with recovery from pre-emption."""

import dataclasses
import json
import shlex
import subprocess
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from mbv3_jax.core.checks import check_whole
from mbv3_jax.core.packages import install
from mbv3_jax.sweep.executors import base
from mbv3_jax.sweep.executors.base import (
    ENDED,
    EXIT_RESTART,
    QUEUED,
    ROOT,
    RUNNING,
    STOPPED,
    Status,
    label,
    need,
    next_free,
    run,
)
from mbv3_jax.sweep.plan import Job

_ADVICE = f"{install('skypilot')}, in an environment of its own"
_MOUNT = "/sweeps"
_WAITING = ("PENDING", "SUBMITTED", "STARTING", "RECOVERING")


def make(
    descriptions: Path,
    lock,
    *,
    accelerators: str,
    bucket: str,
    infra: str | None = None,
    nodes: int = 1,
    spot: bool = True,
    setup: str | None = None,
) -> "SkyPilot":
    """The executor.

    Args:
      descriptions: the folder for task files.
      lock: not used: jobs outlive the sweep command.
      accelerators: of a node: "tpu-v5litepod-8", "A100:8".
      bucket: "gs://NAME" or "s3://NAME", where run folders go: a machine that is pre-empted
        takes its disk with it.
      infra: where to look for machines: "gcp/us-central2"; None: wherever is cheapest.
      nodes: of one trial.
      spot: whether to take machines that can be pre-empted.
      setup: lines of shell that install what a trial needs; None: requirements.txt and JAX for
        the accelerator.
    """
    base.check_tpu_type("accelerators", accelerators)
    check_whole("nodes", nodes, at_least=1)
    if not bucket.startswith(("gs://", "s3://")):
        raise ValueError(f"bucket: got {bucket!r}, expected gs://NAME or s3://NAME")
    if setup is None:
        extra = "tpu" if accelerators.startswith("tpu") else "cuda13"
        setup = f'pip install -r requirements.txt "jax[{extra}]"'
    resources = {
        "accelerators": accelerators,
        "infra": infra,
        "use_spot": spot,
        "job_recovery": {"recover_on_exit_codes": [EXIT_RESTART]},
    }
    task = {
        "workdir": str(ROOT),
        "num_nodes": nodes,
        "resources": {name: value for name, value in resources.items() if value is not None},
        "file_mounts": {_MOUNT: {"source": bucket.rstrip("/"), "mode": "MOUNT"}},
        "setup": setup,
    }
    return SkyPilot(descriptions=descriptions, task=task)


@dataclasses.dataclass(kw_only=True)
class SkyPilot:
    """See `base.Executor`. A handle is the name of a managed job."""

    descriptions: Path
    task: Mapping
    outlives = True
    interval = 30.0
    programs = types.MappingProxyType({"sky": _ADVICE})

    def command(self, job: Job) -> list[str]:
        folder = f"{_MOUNT}/{job.folder.parent.name}/{job.name}"
        return ["python", "main.py", *job.arguments, f"--workdir={folder}"]

    def describe(self, job: Job) -> Path:
        """Writes the task file of a job's next submission; its stem names the managed job."""
        path = next_free(self.descriptions, label(job, 40), ".yaml")
        task = {"name": path.stem, **self.task, "run": f"exec {shlex.join(self.command(job))}"}
        path.write_text(yaml.safe_dump(task, sort_keys=False))
        return path

    def submit(self, jobs: Sequence[Job]) -> dict[str, str]:
        program = need("sky", _ADVICE)
        handles = {}
        for job in jobs:
            path = self.describe(job)
            run([program, "jobs", "launch", "--yes", "--detach-run", str(path)], what=job.name)
            handles[job.name] = path.stem
        return handles

    def poll(self, handles: Mapping[str, str]) -> dict[str, Status]:
        listing = [need("sky", _ADVICE), "jobs", "queue", "--all", "--output=json"]
        done = subprocess.run(listing, capture_output=True, text=True)
        if done.returncode:  # its server does not answer just now
            return {}
        found = {job["job_name"]: job for job in json.loads(done.stdout)}
        gone = Status(ENDED, None, "SkyPilot does not know the job any more")
        return {
            name: _status(found[handle]) if handle in found else gone
            for name, handle in handles.items()
        }

    def cancel(self, handles: Mapping[str, str]) -> None:
        program = need("sky", _ADVICE)
        for handle in handles.values():
            run([program, "jobs", "cancel", "--yes", f"--name={handle}"], what="cancelling")


def _status(job: Mapping) -> Status:
    state, reason = job["status"], job.get("failure_reason") or ""
    if state == "SUCCEEDED":
        return Status(ENDED, 0)
    if state in ("CANCELLING", "CANCELLED"):
        return Status(STOPPED, None, "cancelled")
    if state.startswith("FAILED"):
        return Status(ENDED, None, reason or state)
    return Status(QUEUED, reason=state) if state in _WAITING else Status(RUNNING)
