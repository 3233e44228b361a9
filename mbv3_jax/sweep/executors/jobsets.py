"""JobSets on a GKE cluster with Kueue: what they run, and how kubectl watches and stops them.

Several tools submit trials as JobSets; they differ only in how a job is submitted.
"""

import dataclasses
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from mbv3_jax.sweep.executors.base import (
    ENDED,
    QUEUED,
    RUNNING,
    Status,
    need,
    parse_answer,
    run,
)
from mbv3_jax.sweep.plan import Job

KUBECTL = "see https://kubernetes.io/docs/tasks/tools/"
_KIND = "jobsets.jobset.x-k8s.io"


class _Metadata(TypedDict):
    name: str


class _Condition(TypedDict):
    type: str
    status: str
    message: NotRequired[str]


class _JobSetStatus(TypedDict):
    conditions: NotRequired[list[_Condition]]


class _JobSetSpec(TypedDict):
    suspend: NotRequired[bool]


class _JobSet(TypedDict):
    metadata: _Metadata
    spec: _JobSetSpec
    status: NotRequired[_JobSetStatus]


class _Listing(TypedDict):
    """What is read of what kubectl lists."""

    items: list[_JobSet]


@dataclasses.dataclass(kw_only=True)
class JobSets:
    """What the executors of JobSets share. A handle is the name of a JobSet."""

    descriptions: Path
    options: tuple[str, ...]
    folder: str
    code: str
    outlives = True
    interval = 30.0

    def command(self, job: Job) -> list[str]:
        return ["python", "main.py", *job.arguments, f"--workdir={self.folder}/{job.name}"]

    def shell_command(self, job: Job) -> str:
        """What a container runs. `exec` replaces the shell, which would not pass SIGTERM on."""
        return f"cd {shlex.quote(self.code)} && exec {shlex.join(self.command(job))}"

    def poll(self, handles: Mapping[str, str]) -> dict[str, Status]:
        """The status of the JobSets of these names; empty if the cluster does not answer."""
        listing = [need("kubectl", KUBECTL), "get", _KIND, "--output=json"]
        done = subprocess.run(listing, capture_output=True, text=True)
        if done.returncode:
            return {}
        answer = parse_answer("kubectl", done.stdout, _Listing)
        jobsets = {item["metadata"]["name"]: item for item in answer["items"]}
        gone = Status(ENDED, None, "the JobSet is no longer on the cluster")
        return {
            name: _status(jobsets[handle]) if handle in jobsets else gone
            for name, handle in handles.items()
        }

    def cancel(self, handles: Mapping[str, str]) -> None:
        """Deletes those JobSets of these names that exist.

        Raises:
          RunError: the cluster refuses.
        """
        if handles:
            arguments = [need("kubectl", KUBECTL), "delete", _KIND, "--ignore-not-found"]
            run([*arguments, *handles.values()], what="cancelling")


def _status(jobset: _JobSet) -> Status:
    listed = jobset.get("status", {}).get("conditions", [])
    conditions = {c["type"]: c for c in listed if c["status"] == "True"}
    if "Completed" in conditions:
        return Status(ENDED, 0)
    if "Failed" in conditions:
        return Status(ENDED, None, conditions["Failed"].get("message", "the JobSet failed"))
    if jobset["spec"].get("suspend"):  # by Kueue, until the cluster has capacity
        return Status(QUEUED, reason="waits for capacity in the cluster")
    return Status(RUNNING)
