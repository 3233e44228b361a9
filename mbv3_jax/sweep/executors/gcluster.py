"""Trials as jobs of Cluster Toolkit, the successor of xpk: JobSets on a GKE cluster with Kueue.

The options are those of `gcluster job submit` of version 1.103: its source and reference
(https://docs.cloud.google.com/cluster-toolkit/docs/reference/gcluster-job-submit), and the guide
that maps xpk's options to them (docs/migration/xpk_to_clustertoolkit.md of
GoogleCloudPlatform/cluster-toolkit at 35f6a8a, pull request 6161 of August 2026).
"""

import dataclasses
import shlex
import types
import typing
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.core.checks import check_whole
from mbv3_jax.sweep.executors import jobsets
from mbv3_jax.sweep.executors.base import EXIT_RESTART, label, need, next_free, run
from mbv3_jax.sweep.plan import Job

_NAME_LIMIT = 28  # of a job, in cmd/job/submit.go
_GCLUSTER = "see https://github.com/GoogleCloudPlatform/cluster-toolkit/releases, 1.103 or newer"
# The JobSet fails for good on other codes. 137 and 143 are of processes that were killed, or told
# to end before Python could answer; xpk adds them by itself.
_RESTART_ON = (EXIT_RESTART, 137, 143)
# A finished JobSet is deleted after an hour, unless told otherwise. The sweep command looks at it
# to learn how the trial ended, and may not run all the time.
_KEPT = "24h"


def make(
    descriptions: Path,
    lock: typing.IO | None,
    *,
    cluster: str,
    compute_type: str,
    image: str,
    folder: str,
    code: str = "/app",
    project: str | None = None,
    location: str | None = None,
    slices: int = 1,
    priority: str = "medium",
    mount: str | None = None,
    max_restarts: int = 1000,
    grace: int = 120,
    gcluster: str = "",
) -> "GCluster":
    """Makes the executor.

    Args:
      descriptions: the folder for the commands that submit jobs.
      lock: not used, because jobs outlive the sweep command.
      cluster, project, location, priority: gcluster's options of these names.
      compute_type: what a slice is, as gcluster names it: "v6e-16", "nvidia-l4".
      image: a container image with this repository and its requirements.
      folder: the sweep's folder as the containers see it, on storage that outlives them.
      code: where the repository is in the image.
      slices: the slices of one trial.
      mount: the storage that holds `folder`: "gs://BUCKET;/data;rw".
      max_restarts: restarts of a trial after preemptions and exit code 75.
      grace: seconds that a pod has to save when it is told to end.
      gcluster: further options of gcluster job submit: "--gke-nap-provisioning=spot".
    """
    for name, value in (("slices", slices), ("max_restarts", max_restarts), ("grace", grace)):
        check_whole(name, value, at_least=1)
    options = {
        "cluster": cluster,
        "project": project,
        "location": location,
        "compute-type": compute_type,
        "num-slices": slices,
        "image": image,
        "priority": priority,
        "mount": mount,
        "restarts": max_restarts,
        "restart-on-exit-codes": ",".join(map(str, _RESTART_ON)),
        "grace-period": f"{grace}s",
        "gke-ttl-after-finished": _KEPT,
    }
    flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return GCluster(
        descriptions=descriptions,
        options=(*flags, *shlex.split(gcluster)),
        folder=folder,
        code=code,
    )


@dataclasses.dataclass(kw_only=True)
class GCluster(jobsets.JobSets):
    """See `base.Executor`. A handle is the name of a job, which is that of its JobSet."""

    programs = types.MappingProxyType({"gcluster": _GCLUSTER, "kubectl": jobsets.KUBECTL})

    def describe(self, job: Job) -> Path:
        """The script of a job's next submission; its stem is the name of the job."""
        return next_free(self.descriptions, label(job, _NAME_LIMIT - 4), ".sh")

    def arguments(self, job: Job, name: str) -> list[str]:
        """The arguments of gcluster that submit a job."""
        return [
            "job",
            "submit",
            f"--name={name}",
            *self.options,
            f"--command={self.shell_command(job)}",
        ]

    def submit(self, jobs: Sequence[Job]) -> dict[str, str]:
        program = need("gcluster", _GCLUSTER)
        handles = {}
        for job in jobs:
            script = self.describe(job)
            arguments = self.arguments(job, script.stem)
            script.write_text(f"{shlex.join(['gcluster', *arguments])}\n")
            run([program, *arguments], what=job.name)
            handles[job.name] = script.stem
        return handles
