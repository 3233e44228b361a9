"""The command line: one file per group of commands, on top of everything else."""

import os
import signal
import sys

from mbv3_jax.run.processes import STOP_SIGNALS

# XLA on CPU asks for its working memory again at every step. Without this setting glibc maps it
# each time, and the page faults cost a third of a training step (benchmarks/RESULTS.md).
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def use_huge_pages() -> None:
    """Starts this process again with `HUGE_PAGES`, unless the user has set GLIBC_TUNABLES.

    glibc reads the setting when a process starts, hence the second start. A signal to stop that
    comes meanwhile waits until `interrupt.stops_at_once` can answer it.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
