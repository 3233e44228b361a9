"""A SLURM cluster of one node on loopback, for as long as a test needs it.

Debian: apt-get install slurmctld slurmd slurm-client munge. No daemon of the system is used or
disturbed: everything has its own ports and lies in one folder.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts: 120 s if not given.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ReturnToService=2
KillWait=20
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed; most lie in /usr/sbin, which not every PATH has."""
    return [program for program in PROGRAMS if not _find(program)]


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextlib.contextmanager
def cluster():
    """Yields the environment variables under which SLURM's commands find the cluster."""
    # A socket's path must be short: pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for sub in ("state", "spool"):
            (folder / sub).mkdir()
        conf = folder / "slurm.conf"
        conf.write_text(
            _CONF.format(
                folder=folder,
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                cpus=len(os.sched_getaffinity(0)),
                ctld_port=_free_port(),
                slurmd_port=_free_port(),
            )
        )
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        environment = {"SLURM_CONF": str(conf)}
        munge = ["--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
        munge += [f"--{what}-file={folder}/munge.{what}" for what in ("log", "pid", "seed")]
        stack.enter_context(_daemon("munged", munge, environment))
        _wait(lambda: (folder / "munge.socket").exists(), folder)
        stack.enter_context(_daemon("slurmctld", ["-D", "-i"], environment))
        stack.enter_context(_daemon("slurmd", ["-D"], environment))
        _wait(lambda: "idle" in _said(["sinfo", "--noheader"], environment), folder)
        try:
            yield environment
        finally:
            _said(["scancel", f"--user={getpass.getuser()}"], environment)
            _wait(lambda: not _said(["squeue", "--noheader"], environment).strip(), folder)


@contextlib.contextmanager
def _daemon(program: str, arguments: list[str], environment: dict):
    process = subprocess.Popen(
        [_find(program), *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _said(arguments: list[str], environment: dict) -> str:
    done = subprocess.run(
        arguments, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.stdout


def _wait(condition, folder: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(p.read_text()[-2000:] for p in folder.glob("*.log"))
            raise TimeoutError(f"the SLURM cluster did not get there in {seconds} s:\n{logs}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
