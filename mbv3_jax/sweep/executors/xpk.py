"""Trials as xpk workloads: JobSets on a GKE cluster with Kueue, for slices of TPU pods."""

import dataclasses
import shlex
import types
import typing
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.core.checks import check_whole
from mbv3_jax.core.packages import install
from mbv3_jax.sweep.executors import jobsets
from mbv3_jax.sweep.executors.base import EXIT_RESTART, label, need, next_free, run
from mbv3_jax.sweep.plan import Job

_NAME_LIMIT = 39  # xpk's validators.py: less than 40 characters
_XPK = f"{install('xpk')}, in an environment of its own"


def make(
    descriptions: Path,
    lock: typing.IO | None,
    *,
    cluster: str,
    tpu_type: str,
    image: str,
    folder: str,
    code: str = "/app",
    project: str | None = None,
    zone: str | None = None,
    slices: int = 1,
    priority: str = "medium",
    storage: str | None = None,
    max_restarts: int = 1000,
    grace: int = 120,
    xpk: str = "",
) -> "Xpk":
    """Makes the executor.

    Args:
      descriptions: the folder for manifests.
      lock: not used, because jobs outlive the sweep command.
      cluster, project, zone, priority: xpk's options of these names.
      tpu_type: the type of a slice, as xpk names it: "v5litepod-16".
      image: a container image with this repository and its requirements.
      folder: the sweep's folder as the containers see it, on storage that outlives them.
      code: where the repository is in the image.
      slices: the slices of one trial.
      storage: a storage that `xpk storage create` made, which holds `folder`.
      max_restarts: restarts of a trial after preemptions and exit code 75.
      grace: seconds that a pod has to save when it is told to end.
      xpk: further options of xpk workload create: "--spot".
    """
    for name, value in (("slices", slices), ("max_restarts", max_restarts), ("grace", grace)):
        check_whole(name, value, at_least=1)
    options = {
        "cluster": cluster,
        "project": project,
        "zone": zone,
        "tpu-type": tpu_type,
        "num-slices": slices,
        "docker-image": image,
        "priority": priority,
        "storage": storage,
        # The exit code has no effect unless restarts are allowed.
        "max-restarts": max_restarts,
        "restart-on-exit-codes": EXIT_RESTART,
        "termination-grace-period-seconds": grace,
    }
    flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return Xpk(
        descriptions=descriptions,
        options=(*flags, *shlex.split(xpk)),
        folder=folder,
        code=code,
    )


@dataclasses.dataclass(kw_only=True)
class Xpk(jobsets.JobSets):
    """See `base.Executor`. A handle is the name of a workload."""

    programs = types.MappingProxyType({"xpk": _XPK, "kubectl": jobsets.KUBECTL})

    def arguments(self, job: Job, manifest: Path) -> list[str]:
        """The arguments of xpk that write the manifest of a job and submit it."""
        return [
            "workload",
            "create",
            f"--workload={manifest.stem}",
            *self.options,
            f"--command={self.shell_command(job)}",
            f"--output-manifest-file={manifest}",
        ]

    def manifest(self, job: Job) -> Path:
        """The manifest of a job's next submission; its stem is the name of the workload."""
        return next_free(self.descriptions, label(job, _NAME_LIMIT - 4), ".yaml")

    def submit(self, jobs: Sequence[Job]) -> dict[str, str]:
        program = need("xpk", _XPK)
        handles = {}
        for job in jobs:
            manifest = self.manifest(job)
            run([program, *self.arguments(job, manifest)], what=job.name)
            handles[job.name] = manifest.stem
        return handles
