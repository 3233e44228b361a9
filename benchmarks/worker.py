"""The process of one contender: sets up, then times steps on request.

python -m benchmarks.worker CONTENDER TASK_JSON, driven by `benchmarks.race` over its pipes:
one JSON line out when ready (or when absent), then for each line "N" in, one JSON line out.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.task import Absent, Task


def peak_bytes(pid: str = "self") -> int:
    """The most memory that a process held since it began or forgot it (VmHWM of proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5)


def main() -> None:
    """Serves until the input closes."""
    name, task = sys.argv[1], Task.from_json(sys.argv[2])
    # Libraries print; what they print must not get between the lines.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    os.environ["OMP_NUM_THREADS"] = str(task.threads)

    def say(**what) -> None:
        lines.write(json.dumps(what) + "\n")
        lines.flush()

    began = time.perf_counter()
    try:
        run, info = importlib.import_module(f"benchmarks.contenders.{name}").setup(task)
    except (ImportError, Absent) as e:
        say(absent=str(e))
        return
    imported = time.perf_counter() - began
    began = time.perf_counter()
    run(1)
    first = time.perf_counter() - began
    run(2)
    say(info=info, setup_s=imported, first_step_s=first, setup_peak_bytes=peak_bytes())
    _forget_peak()
    for line in sys.stdin:
        steps = int(line)
        wall, cpu = time.perf_counter(), time.process_time()
        run(steps)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        say(wall_s=wall / steps, cpu_s=cpu / steps, peak_bytes=peak_bytes())


if __name__ == "__main__":
    main()
