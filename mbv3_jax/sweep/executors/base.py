"""What an executor is: it writes an engine's own job description, submits it, reads its state.

One contract for all of them: exit code 75 of a trial means "saved, restart me". The engine does
that by itself (SLURM requeues, a JobSet restarts, SkyPilot recovers; local processes are started
again here), with the same command, which goes on from the newest checkpoint.
"""

import dataclasses
import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mbv3_jax.core.errors import EXIT_INTERRUPTED, EXIT_RESTART, RunError, UsageError
from mbv3_jax.sweep.plan import Job

QUEUED, RUNNING, ENDED, STOPPED = "queued", "running", "ended", "stopped"

# Where main.py and configs/ are.
ROOT = Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class Status:
    """What an engine says about a job.

    Attributes:
      state: QUEUED, RUNNING, ENDED, or STOPPED: somebody ended it, and it can go on.
      code: the exit code once it is over; None if the engine does not tell.
      reason: in the engine's words, if there is something to say.
    """

    state: str
    code: int | None = None
    reason: str = ""


def ended(code: int, reason: str = "") -> Status:
    """The status of a trial that left with this exit code and is not restarted."""
    stopped = code in (EXIT_RESTART, EXIT_INTERRUPTED)
    return Status(STOPPED if stopped else ENDED, code, reason)


class Executor(Protocol):
    """The three things that a sweep asks of an engine.

    `outlives`: whether its jobs go on when the sweep command ends; then Ctrl-C only stops
    watching, and the same command finds the jobs again by their handles. `interval`: seconds
    between two looks. `programs`: what must be installed, each with advice for where it is not.
    """

    outlives: bool
    interval: float
    programs: Mapping[str, str]

    def command(self, job: Job) -> list[str]:
        """What the engine will run for a job."""

    def submit(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Writes the description of some jobs and submits it.

        Returns:
          The handle of every job by its name.

        Raises:
          RunError: the engine refused.
        """

    def poll(self, handles: Mapping[str, str]) -> dict[str, Status]:
        """The status of jobs by name; one that the engine cannot tell just now is left out."""

    def cancel(self, handles: Mapping[str, str]) -> None:
        """Stops jobs by name; they stay resumable."""


def need(program: str, advice: str) -> str:
    """The path of a program.

    Raises:
      UsageError: it is not installed; `advice` says how that is mended.
    """
    if path := shutil.which(program):
        return path
    raise UsageError(f"the program {program!r} is not installed here; {advice}")


def run(arguments: Sequence[str], *, what: str) -> str:
    """Runs an engine's program to its end and returns what it printed.

    Raises:
      RunError: it failed; the message has the end of what it said.
    """
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise RunError(f"{what}: {arguments[0]} failed: " + "\n".join(said))
    return done.stdout


def log_of(descriptions: Path, name: str) -> Path:
    """Where the output of a trial goes, if the executor can say."""
    return descriptions / f"{name}.log"


def next_free(descriptions: Path, stem: str, suffix: str) -> Path:
    """The first of STEM-1SUFFIX, STEM-2SUFFIX ... that is not there: nothing is overwritten."""
    number = 1
    while (path := descriptions / f"{stem}-{number}{suffix}").exists():
        number += 1
    return path


def label(job: Job, limit: int) -> str:
    """A name for a job that Kubernetes and clouds take: a-z, 0-9, "-", at most `limit` long.

    It ends in digits of a hash of the run folder: sweeps of the same name in different folders
    have different jobs.
    """
    plain = re.sub("[^a-z0-9]+", "-", f"{job.folder.parent.name}-{job.name}".lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"s-{plain}"
    digest = hashlib.sha256(str(job.folder.absolute()).encode()).hexdigest()[:6]
    return f"{plain[: limit - 7].strip('-')}-{digest}"


# The sizes of TPU slices that Google Cloud offers.
#
# SkyPilot takes any number after the generation and fails when it asks the cloud. The number counts
# TensorCores for v2 to v5p and chips for v5litepod and v6e.
# Source: https://cloud.google.com/tpu/docs (regions-zones, v4, v5p, v5e, v6e), read in 2025.

_CUBES = 128  # TensorCores of 4x4x4 chips, of which larger slices are made


def _small(*exponents: int) -> list[int]:
    return [2**e for e in exponents]


TPU_SIZES = {
    "v2": _small(3, 5, 7, 8, 9),
    "v3": _small(3, 5, 6, 7, 8, 9, 10, 11),
    "v4": [*_small(3, 4, 5, 6), *range(_CUBES, 8192 + 1, _CUBES)],
    "v5litepod": _small(0, 2, 3, 4, 5, 6, 7, 8),
    "v5p": [*_small(3, 4, 5, 6), *range(_CUBES, 12288 + 1, _CUBES)],
    "v6e": _small(0, 2, 3, 4, 5, 6, 7, 8),
}


def check_tpu_type(path: str, accelerator: str) -> str:
    """Returns `accelerator` if it is no TPU, or one that exists: "tpu-v5litepod-16".

    Raises:
      ValueError: there is no such TPU; the message has `path`, the generations or the sizes.
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
