"""sessions.jsonl of a run folder: how, where and with what the run was started, each time."""

import functools
import json
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import jax

FILE = "sessions.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def note(run: Path) -> None:
    """Adds a line about this process: time, command, host, devices, versions, commit."""
    devices = jax.devices()
    session = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "host": socket.gethostname(),
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} processes",
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
    }
    with (run / FILE).open("a") as file:
        file.write(json.dumps(session, ensure_ascii=False) + "\n")


@functools.cache
def _commit() -> str | None:
    """The commit of this code, with "-dirty" if it was changed; None outside of git."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=12")
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
