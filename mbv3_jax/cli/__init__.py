"""The command line: one file per group of commands, on top of everything else."""

import functools
import gc
import os
import sys
from importlib.util import find_spec

# XLA on CPU asks for its working memory again at every step. Without this setting glibc maps it
# each time, and the page faults cost a third of a training step (benchmarks/RESULTS.md).
HUGE_PAGES = "glibc.malloc.hugetlb=1"


# XLA has no other switch for its alarm about compilations of more than two minutes, which it logs
# as an error (xla/service/slow_operation_alarm.cc). 3 leaves what ends the process.
LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def quieten_xla() -> None:
    """Hides what XLA logs in a process alone on a CPU, unless the user has set `LOG_LEVEL`.

    In such a process every error is raised as an exception too. Errors of accelerators and between
    processes are not, so they are not hidden. This has an effect only before JAX is imported.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    on_cpu = platforms == "cpu" if platforms else not any(map(find_spec, ("jax_plugins", "libtpu")))
    several = {"JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST"} & os.environ.keys() or any(
        argument.startswith("--coordinator") for argument in sys.argv
    )
    if on_cpu and not several:
        os.environ.setdefault(LOG_LEVEL, "3")


def use_huge_pages() -> None:
    """Starts this process again with `HUGE_PAGES`, unless the user has set GLIBC_TUNABLES.

    glibc reads the setting when a process starts, hence the second start.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@functools.cache
def freeze_modules() -> None:
    """Hides what has been imported so far from the garbage collector, once.

    Tracing a network makes many objects and so many collections, each of which would look at all
    modules again. That was a tenth of a short training's CPU time.
    """
    gc.freeze()
