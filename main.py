"""Trains and evaluates: python main.py --config=configs/small.py"""

import os
import sys

# XLA on CPU asks for its working memory anew at every step. Without this setting glibc maps it
# each time, and the page faults cost a third of a training step (benchmarks/RESULTS.md). glibc
# reads it when a process starts, hence the second start; a setting of one's own is kept.
HUGE_PAGES = "glibc.malloc.hugetlb=1"

if __name__ == "__main__":
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    from mbv3_jax.search import program
    from mbv3_jax.train.cli import main

    sys.exit(main(sys.argv[1:], {"search": program.run}))
