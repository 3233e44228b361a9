"""Runs of main.py that consist of several processes on this machine."""

import os
import socket
import subprocess
import sys

from paths import ROOT, TINY


def run(count, *arguments, signals=(), devices=1, patience=60, ends=None, timeout=180):
    """Runs one training in `count` processes, each with so many virtual devices.

    Args:
      count: 1 for a process that is alone.
      arguments: of main.py, further to the tiny configuration.
      signals: for each process, what `signalled_main.py` sends it.
      devices: of each process.
      patience: seconds.
      ends: the numbers of those that are waited for, None for all; the others are killed then.
      timeout: seconds, after which all are killed.

    Returns:
      [(exit code, standard error)], of each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    started = []
    for index in range(count):
        command = [sys.executable, str(ROOT / "tests" / "support" / "signalled_main.py")]
        command += [signals[index] if signals else "never", f"--config={TINY}", *arguments]
        if count > 1:
            command += [f"--coordinator={coordinator}", f"--num-processes={count}"]
            command += [f"--process-id={index}", f"--patience={patience}"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environ, **pipes))
    try:
        for index in range(count) if ends is None else ends:
            started[index].wait(timeout)
    finally:
        for process in started:
            process.kill()
    errors = [process.communicate()[1] for process in started]
    return [(process.returncode, err) for process, err in zip(started, errors, strict=True)]
