"""What a latency was measured on."""

import os
import platform
import subprocess
from pathlib import Path


def machine() -> dict:
    """{"cpu", "cores", "features", "system"}: the model, the cores that this process may use, the
    vector instructions that matter to runtimes, the operating system."""
    cpu, flags = platform.processor() or platform.machine(), []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = dict(
            (part.strip() for part in line.partition(":")[::2])
            for line in info.read_text().splitlines()
            if ":" in line
        )
        cpu = fields.get("model name", cpu)
        flags = fields.get("flags", fields.get("Features", "")).split()
    elif platform.system() == "Darwin":
        command = ("sysctl", "-n", "machdep.cpu.brand_string")
        cpu = subprocess.run(command, capture_output=True, text=True).stdout.strip() or cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
    return {
        "cpu": cpu,
        "cores": cores,
        "features": [name for name in known if name in flags],
        "system": f"{platform.system()} {platform.machine()}",
    }
