"""Runs a list of trials: python launch/sweep.py --sweep=configs/ablations/stem.py"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from mbv3_jax.cli.sweep import main

    sys.exit(main(sys.argv[1:]))
