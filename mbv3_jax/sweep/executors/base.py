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

from mbv3_jax.sweep.plan import Job
from mbv3_jax.train.cli import EXIT_INTERRUPTED
from mbv3_jax.train.errors import EXIT_RESTART, RunError, UsageError

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
