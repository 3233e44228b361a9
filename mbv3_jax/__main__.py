"""python -m mbv3_jax COMMAND is the console command `mbv3 COMMAND`."""

import sys

from mbv3_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
