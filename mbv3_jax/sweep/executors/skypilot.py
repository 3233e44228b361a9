"""Trials as managed jobs of SkyPilot: machines of any cloud, with recovery from preemption."""

import dataclasses
import shlex
import subprocess
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import yaml

from mbv3_jax.core import packages
from mbv3_jax.core.checks import check_whole
from mbv3_jax.sweep.executors.base import (
    ENDED,
    EXIT_RESTART,
    QUEUED,
    RUNNING,
    STOPPED,
    Status,
    label,
    need,
    next_free,
    parse_answer,
    run,
)
from mbv3_jax.sweep.plan import Job


class _ManagedJob(TypedDict):
    """What is read of a job in SkyPilot's queue."""

    job_name: str | None
    status: str
    failure_reason: NotRequired[str | None]


_ADVICE = f"{packages.install('skypilot')}, in an environment of its own"
_MOUNT = "/sweeps"
_WAITING = ("PENDING", "SUBMITTED", "STARTING", "RECOVERING")

# The sizes of TPU slices that Google Cloud offers. SkyPilot accepts any number after the generation
# and fails only when it asks the cloud. The number counts TensorCores for v2 to v5p, and chips for
# v5litepod and v6e.
# Source: https://cloud.google.com/tpu/docs (regions-zones, v4, v5p, v5e, v6e), read in 2025.
_CUBE = 128  # TensorCores of 4x4x4 chips, of which larger slices consist


def _powers_of_two(*exponents: int) -> list[int]:
    return [2**exponent for exponent in exponents]


TPU_SIZES = {
    "v2": _powers_of_two(3, 5, 7, 8, 9),
    "v3": _powers_of_two(3, 5, 6, 7, 8, 9, 10, 11),
    "v4": [*_powers_of_two(3, 4, 5, 6), *range(_CUBE, 8192 + 1, _CUBE)],
    "v5litepod": _powers_of_two(0, 2, 3, 4, 5, 6, 7, 8),
    "v5p": [*_powers_of_two(3, 4, 5, 6), *range(_CUBE, 12288 + 1, _CUBE)],
    "v6e": _powers_of_two(0, 2, 3, 4, 5, 6, 7, 8),
}


def make(
    descriptions: Path,
    lock: typing.IO | None,
    *,
    accelerators: str,
    bucket: str,
    infra: str | None = None,
    nodes: int = 1,
    spot: bool = True,
    setup: str | None = None,
) -> "SkyPilot":
    """Makes the executor.

    Args:
      descriptions: the folder for task files.
      lock: not used, because jobs outlive the sweep command.
      accelerators: the accelerators of a node: "tpu-v5litepod-8", "A100:8".
      bucket: "gs://NAME" or "s3://NAME" for the run folders: the disk of a machine that is
        preempted is lost.
      infra: where to look for machines: "gcp/us-central2"; None: wherever they are cheapest.
      nodes: the nodes of one trial.
      spot: whether to take machines that can be preempted.
      setup: lines of shell that install what a trial needs; None, from a checkout:
        requirements.txt and JAX for the accelerator.
    """
    check_tpu_type("accelerators", accelerators)
    check_whole("nodes", nodes, at_least=1)
    if not bucket.startswith(("gs://", "s3://")):
        raise ValueError(f"bucket: got {bucket!r}, expected gs://NAME or s3://NAME")
    if setup is None and not packages.IS_CHECKOUT:
        raise ValueError(
            "setup: got None, expected lines of shell that install mbv3_jax on a machine; from a "
            "checkout of the repository they have a default"
        )
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
        # SkyPilot copies this folder to each machine, and runs the commands in it.
        "workdir": str(packages.CHECKOUT if packages.IS_CHECKOUT else Path.cwd()),
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
        start = ["main.py"] if packages.IS_CHECKOUT else ["-m", "mbv3_jax", "train"]
        return ["python", *start, *job.arguments, f"--workdir={folder}"]

    def describe(self, job: Job) -> Path:
        """Writes the task file of a job's next submission; its stem is the managed job's name."""
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
        if done.returncode:  # SkyPilot's server does not answer at the moment
            return {}
        answer = parse_answer("sky", done.stdout, list[_ManagedJob])
        queue = {job["job_name"]: job for job in answer}
        gone = Status(ENDED, None, "SkyPilot no longer knows the job")
        return {
            name: _status(queue[handle]) if handle in queue else gone
            for name, handle in handles.items()
        }

    def cancel(self, handles: Mapping[str, str]) -> None:
        program = need("sky", _ADVICE)
        for handle in handles.values():
            run([program, "jobs", "cancel", "--yes", f"--name={handle}"], what="cancelling")


def _status(job: _ManagedJob) -> Status:
    state, reason = job["status"], job.get("failure_reason") or ""
    if state == "SUCCEEDED":
        return Status(ENDED, 0)
    if state in ("CANCELLING", "CANCELLED"):
        return Status(STOPPED, None, "cancelled")
    if state.startswith("FAILED"):
        return Status(ENDED, None, reason or state)
    return Status(QUEUED, reason=state) if state in _WAITING else Status(RUNNING)


def check_tpu_type(path: str, accelerator: str) -> str:
    """Returns `accelerator` if it is not a TPU, or is a TPU that exists: "tpu-v5litepod-16".

    Raises:
      ValueError: the TPU does not exist; the message has `path`, and the generations or sizes.
    """
    if not accelerator.lower().startswith("tpu"):
        return accelerator
    prefix, _, rest = accelerator.partition("-")
    generation, _, size = rest.rpartition("-")
    if prefix != "tpu" or generation not in TPU_SIZES:
        listed = ", ".join(f"tpu-{name}-N" for name in TPU_SIZES)
        raise ValueError(f"{path}: got {accelerator!r}, expected one of {listed}")
    sizes = TPU_SIZES[generation]
    if not size.isdigit() or int(size) not in sizes:
        listed = ", ".join(map(str, sizes[:8])) + (" ..." if len(sizes) > 8 else "")
        raise ValueError(
            f"{path}: got {accelerator!r}, which does not exist; tpu-{generation}-N has N {listed}"
        )
    return accelerator
