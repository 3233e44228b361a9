"""The process of one contender: sets up, then times steps when told to.

python -m benchmarks.worker CONTENDER TASK_JSON, driven by `benchmarks.race` over its pipes:
one JSON line out when ready (or when absent), then for each line "N" in, one JSON line out.
"""

import importlib
import json
import os
import resource
import sys
import time

from benchmarks.task import Task


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
    except ImportError as e:
        say(absent=str(e))
        return
    imported = time.perf_counter() - began
    began = time.perf_counter()
    run(1)
    first = time.perf_counter() - began
    run(2)
    say(info=info, setup_s=imported, first_step_s=first)
    for line in sys.stdin:
        steps = int(line)
        wall, cpu = time.perf_counter(), time.process_time()
        run(steps)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        say(wall_s=wall / steps, cpu_s=cpu / steps, peak_bytes=peak)


if __name__ == "__main__":
    main()
