"""The console command `mbv3 COMMAND`, and python -m mbv3_jax COMMAND."""

import sys
from collections.abc import Sequence

from mbv3_jax.core.signals import hold_stop_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; see `cli.main.main`."""
    if arguments is None and sys.argv[1:2] == ["train"]:
        hold_stop_signals()  # before the other imports, which take time
    from mbv3_jax.cli.main import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
