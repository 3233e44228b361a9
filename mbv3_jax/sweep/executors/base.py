"""What an executor does: it writes job descriptions for an engine, submits and watches them.

All executors share one contract: exit code 75 of a trial means "saved, restart me". The engine
itself restarts the trial (SLURM requeues it, a JobSet restarts it, SkyPilot recovers it; local
processes are started again here), with the same command, which resumes from the newest checkpoint.
"""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from mbv3_jax.core import packages
from mbv3_jax.core.errors import EXIT_INTERRUPTED, EXIT_RESTART, RunError, UsageError
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.sweep.plan import Job

T = TypeVar("T")

QUEUED, RUNNING, ENDED, STOPPED = "queued", "running", "ended", "stopped"


def training_command(*, absolute: bool = False) -> list[str]:
    """The beginning of a command that trains on this machine, to which options are added.

    Args:
      absolute: whether the command has to work from any folder.
    """
    if not packages.IS_CHECKOUT:
        return [sys.executable, "-m", "mbv3_jax", "train"]
    main = packages.CHECKOUT / "main.py"
    return [sys.executable, str(main) if absolute else os.path.relpath(main)]


@dataclasses.dataclass(frozen=True)
class Status:
    """What an engine says about a job.

    Attributes:
      state: QUEUED, RUNNING, ENDED, or STOPPED: it was cancelled or preempted, and can resume.
      code: the exit code of a job that is over; None if the engine does not report it.
      reason: an explanation in the engine's words, or "".
    """

    state: str
    code: int | None = None
    reason: str = ""


def ended(code: int, reason: str = "") -> Status:
    """The status of a trial that exited with this code and is not restarted."""
    stopped = code in (EXIT_RESTART, EXIT_INTERRUPTED)
    return Status(STOPPED if stopped else ENDED, code, reason)


def parse_answer(program: str, text: str, kind: type[T]) -> T:
    """The JSON value that a program has printed; raises RunError for anything else."""
    try:
        return parse_json(text, kind)
    except ValueError as e:
        raise RunError(f"cannot read the output of {program}: {e}") from e


class Executor(Protocol):
    """What a sweep needs from an engine.

    Attributes:
      outlives: whether its jobs keep running when the sweep command ends. Ctrl-C then only stops
        watching, and the same command finds the jobs again by their handles.
      interval: seconds between two polls.
      programs: the programs that must be installed, each with advice on how to install it.
    """

    @property
    def outlives(self) -> bool: ...
    @property
    def interval(self) -> float: ...
    @property
    def programs(self) -> Mapping[str, str]: ...

    def command(self, job: Job) -> list[str]:
        """The command that the engine runs for a job."""
        ...

    def submit(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Writes the descriptions of jobs and submits them.

        Returns:
          The handle of every job by its name.

        Raises:
          RunError: the engine refused them.
        """
        ...

    def poll(self, handles: Mapping[str, str]) -> dict[str, Status]:
        """The status of jobs by name, without those that the engine cannot report at the moment."""
        ...

    def cancel(self, handles: Mapping[str, str]) -> None:
        """Stops jobs by name; they can be resumed."""
        ...


def need(program: str, advice: str) -> str:
    """The path of a program.

    Raises:
      UsageError: it is not installed; the message ends with `advice`.
    """
    if path := shutil.which(program):
        return path
    raise UsageError(f"the program {program!r} is not installed here; {advice}")


def run(arguments: Sequence[str], *, what: str) -> str:
    """Runs an engine's program to its end and returns what it printed.

    Raises:
      RunError: it failed; the message has the end of its output.
    """
    # A question would not be seen, as the output is not: it is answered by the end of the input.
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise RunError(f"{what}: {arguments[0]} failed: " + "\n".join(output))
    return done.stdout


def log_of(descriptions: Path, name: str) -> Path:
    """The file for the output of a trial, with executors that write one."""
    return descriptions / f"{name}.log"


def next_free(descriptions: Path, stem: str, suffix: str) -> Path:
    """The first path of STEM-1SUFFIX, STEM-2SUFFIX, ... that does not exist yet."""
    number = 1
    while (path := descriptions / f"{stem}-{number}{suffix}").exists():
        number += 1
    return path


def label(job: Job, limit: int) -> str:
    """A name for a job that Kubernetes and clouds accept: a-z, 0-9, "-", at most `limit` long.

    It ends in digits of a hash of the run folder, so that sweeps of the same name in different
    folders have different jobs.
    """
    plain = re.sub("[^a-z0-9]+", "-", f"{job.folder.parent.name}-{job.name}".lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"s-{plain}"
    digest = hashlib.sha256(str(job.folder.absolute()).encode()).hexdigest()[:6]
    return f"{plain[: limit - 7].strip('-')}-{digest}"
