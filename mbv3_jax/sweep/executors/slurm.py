"""Trials as the tasks of a SLURM array job."""

import dataclasses
import shlex
import subprocess
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from mbv3_jax.core.checks import check_whole
from mbv3_jax.sweep.executors.base import (
    ENDED,
    EXIT_RESTART,
    QUEUED,
    RUNNING,
    Status,
    ended,
    log_of,
    need,
    next_free,
    run,
    training_command,
)
from mbv3_jax.sweep.plan import Job

# Single braces are fields of `Slurm.script`.
_SCRIPT = """\
#!/bin/bash
{directives}

# Exit code 75 means "saved, restart me". SLURM does not requeue a job that exits by itself, even
# in the grace time of a preemption, so this script requeues its own element of the array and waits
# to be killed. SLURM_JOB_ID would not do: the id of one element names the whole array.
element="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
cd {root} || exit 1
case $SLURM_ARRAY_TASK_ID in
{cases}
esac
exec >>"$log" 2>&1
echo "SLURM job $element on $SLURM_JOB_NODELIST, restarts: ${{SLURM_RESTART_COUNT:-0}}"
rm -f "$log.exit"
{setup}
# JAX finds the other processes of a trial only through the variables that srun sets, and SLURM
# announces a preemption to processes that srun started, not to those of this shell. srun does not
# take over --cpus-per-task by itself.
srun --kill-on-bad-exit=0 --wait=60 \
  ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} "${{command[@]}}" &
trial=$!

# SLURM announces the time limit to this shell, which passes it on to the trial's processes.
trap 'scancel --signal=TERM "$element"' USR1
trap : TERM
while kill -0 "$trial" 2>/dev/null; do # a signal ends the wait early
  wait "$trial"
done
wait "$trial"
code=$?
trap - TERM

# The job is not requeued if somebody cancelled it, or if SLURM is requeueing it already.
if [ "$code" -eq {restart} ] && [ "$(squeue --noheader --jobs="$element" --format=%T)" = RUNNING ]
then
  echo "saved; requeueing"
  scontrol requeue "$element" && sleep 300
fi
echo "$element $code" >"$log.exit"
exit "$code"
"""

# States of squeue in which a job does not run; in all others it is on a node.
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "CONFIGURING")
_ADVICE = "run the sweep where SLURM's commands are, on a login node"


def make(
    descriptions: Path,
    lock: typing.IO | None,
    *,
    partition: str | None = None,
    account: str | None = None,
    time: str | None = None,
    memory: str | None = None,
    nodes: int = 1,
    tasks_per_node: int = 1,
    cpus_per_task: int | None = None,
    gpus_per_task: int | None = None,
    limit: int | None = None,
    grace: int = 120,
    setup: str = "",
    sbatch: str = "",
) -> "Slurm":
    """Makes the executor.

    Args:
      descriptions: a folder that the nodes see under the same path; the run folders too.
      lock: not used, because jobs outlive the sweep command.
      partition, account, time, memory: sbatch's --partition, --account, --time, --mem.
      nodes: the nodes of one trial.
      tasks_per_node: JAX processes on each node of a trial.
      cpus_per_task, gpus_per_task: cores and GPUs of each process.
      limit: how many trials run at a time; None: as many as SLURM allows.
      grace: seconds before the time limit at which a trial is told to save.
      setup: a line of shell before the trial: "module load cuda".
      sbatch: further options of sbatch: "--qos=low --constraint=a100".
    """
    for name, value in (("nodes", nodes), ("tasks_per_node", tasks_per_node), ("grace", grace)):
        check_whole(name, value, at_least=1)
    if limit is not None:
        check_whole("limit", limit, at_least=1)
    options = {
        "partition": partition,
        "account": account,
        "time": time,
        "mem": memory,
        "nodes": nodes,
        "ntasks-per-node": tasks_per_node,
        "cpus-per-task": cpus_per_task,
        "gpus-per-task": gpus_per_task,
    }
    lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return Slurm(
        descriptions=descriptions,
        options=(*lines, *sbatch.split()),
        limit=limit,
        grace=grace,
        setup=setup,
    )


@dataclasses.dataclass(kw_only=True)
class Slurm:
    """See `base.Executor`. A handle is "ARRAYJOB_INDEX"."""

    descriptions: Path
    options: tuple[str, ...]
    limit: int | None
    grace: int
    setup: str
    outlives = True
    interval = 5.0
    programs = types.MappingProxyType(dict.fromkeys(("sbatch", "squeue", "scancel"), _ADVICE))

    def __post_init__(self) -> None:
        self._absent: set[str] = set()  # handles that squeue did not list once

    def command(self, job: Job) -> list[str]:
        start = training_command(absolute=True)
        return [*start, *job.arguments, f"--workdir={job.folder.absolute()}"]

    def submit(self, jobs: Sequence[Job]) -> dict[str, str]:
        if not jobs:
            return {}
        program = need("sbatch", _ADVICE)
        path = next_free(self.descriptions, "array", ".sbatch")
        path.write_text(self.script(jobs, name=path.parent.parent.name))
        output = run([program, "--parsable", str(path)], what=str(path))
        number = output.strip().partition(";")[0]  # "id;cluster" where there are several
        return {job.name: f"{number}_{index}" for index, job in enumerate(jobs)}

    def script(self, jobs: Sequence[Job], name: str) -> str:
        """The batch script of an array of trials."""
        folder = self.descriptions.absolute()
        array = f"0-{len(jobs) - 1}" + (f"%{self.limit}" if self.limit else "")
        options = (
            f"--job-name={name}",
            f"--array={array}",
            *self.options,
            f"--signal=B:USR1@{self.grace}",
            "--requeue",  # also after the failure of a node
            "--open-mode=append",
            f"--output={folder / 'slurm-%A_%a.out'}",
        )
        cases = []
        for index, job in enumerate(jobs):
            log = shlex.quote(str(log_of(folder, job.name)))
            cases.append(f"{index}) log={log}\n  command=({shlex.join(self.command(job))}) ;;")
        return _SCRIPT.format(
            directives="\n".join(f"#SBATCH {option}" for option in options),
            root=shlex.quote(str(Path.cwd())),
            cases="\n".join(cases),
            setup=self.setup,
            restart=EXIT_RESTART,
        )

    def poll(self, handles: Mapping[str, str]) -> dict[str, Status]:
        listing = [need("squeue", _ADVICE), "--me", "--array", "--noheader", "--format=%i|%T|%r"]
        done = subprocess.run(listing, capture_output=True, text=True)
        if done.returncode:  # the controller does not answer at the moment
            return {}
        rows = (line.strip().split("|") for line in done.stdout.splitlines())
        states = {row[0]: row[1:] for row in rows if len(row) == 3}
        statuses = {}
        for name, handle in handles.items():
            if handle in states:
                state, reason = states[handle]
                waiting = state in _WAITING
                reason = "" if reason == "None" else reason
                statuses[name] = Status(QUEUED if waiting else RUNNING, reason=reason)
            elif (status := self._final_status(name, handle)) is not None:
                statuses[name] = status
        return statuses

    def _final_status(self, name: str, handle: str) -> Status | None:
        """The status of a job that SLURM no longer lists; None: it is not known yet."""
        path = Path(f"{log_of(self.descriptions, name)}.exit")
        written = path.read_text().split() if path.exists() else []
        if written[:1] == [handle]:
            return ended(int(written[1]))
        if handle not in self._absent:  # the file may not have reached this machine yet
            self._absent.add(handle)
            return None
        return Status(ENDED, None, "SLURM ended the job: cancelled, out of time or of memory")

    def cancel(self, handles: Mapping[str, str]) -> None:
        if handles:
            run([need("scancel", _ADVICE), *handles.values()], what="cancelling")
