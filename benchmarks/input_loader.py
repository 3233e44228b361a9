"""One measurement of the loader: python -m benchmarks.input_loader OPTIONS_JSON; Linux only.

Options: images (a folder), examples (the number that the data set pretends to have; the files are
  repeated), batch, resolution, how ("processes" or "threads" that decode), count (of them,
and of cores), seconds. One JSON line out.
"""

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.worker import peak_bytes
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.loader import train_batches


class Files(Encoded):
    """Files of one folder, each read and decoded when it is asked for."""

    def __init__(self, folder: str, resolution: int, examples: int):
        super().__init__({})
        self.name, self.split, self.resolution = "files", "train", resolution
        self.class_names, self.fingerprint = ("none",), ""
        self._paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
        self._examples = examples

    def __len__(self) -> int:
        return self._examples

    def where(self, index: int) -> str:
        return str(self._paths[index % len(self._paths)])

    def read(self, index: int) -> tuple[bytes, int]:
        return Path(self.where(index)).read_bytes(), 0


def children() -> list[str]:
    """Process ids of the processes that this one started."""
    tasks = Path("/proc/self/task").iterdir()
    return [pid for task in tasks for pid in (task / "children").read_text().split()]


def cpu_seconds() -> float:
    """User and system time of this process and its children so far."""
    tick = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children()]
    return time.process_time() + sum(int(stat[11]) + int(stat[12]) for stat in stats) / tick


def measure(images, examples, batch, resolution, how, count, seconds) -> dict:
    """Reads batches for some seconds, after the workers have started and filled their queues."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    source = Files(images, resolution, examples)
    number = {"num_workers": count} if how == "processes" else {"num_threads": count}
    batches = train_batches(source, batch_size=batch, seed=0, prefetch_batches=2, **number)
    for _ in range(8 * count):
        next(batches)
    done, began, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - began < seconds:
        for _ in range(count):
            next(batches)
        done += count * batch
    wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    result = {
        "images_per_s": done / wall,
        "cpu_ms": 1e3 * cpu / done,
        "parent_mb": peak_bytes() / 2**20,
        "workers_mb": sum(map(peak_bytes, children())) / 2**20,
    }
    batches.close()
    return result


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
