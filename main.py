"""Trains and evaluates: python main.py --config=configs/small.py"""

import sys

from mbv3_jax.train.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
