"""How benchmarks that train for hours end after a signal or an error: as `mbv3 train` does."""

import sys
from collections.abc import Callable

from mbv3_jax.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_RESTART,
    Preempted,
    RunError,
    UsageError,
    printable_lines,
)
from mbv3_jax.run.interrupt import stops_at_once

_AGAIN = "run the same command again to resume"


def exit_code(main: Callable[[], None]) -> int:
    """Runs a benchmark that resumes; returns its exit code, see docs/commands.md.

    What ended it early is one line on standard error.
    """
    try:
        with stops_at_once():
            main()
            return 0
    except (UsageError, RunError) as e:
        text, code = f"error: {e}", e.exit_code
    except Preempted as e:
        text, code = str(e) or f"preempted; {_AGAIN}", EXIT_RESTART
    except KeyboardInterrupt:
        text, code = f"interrupted; {_AGAIN}", EXIT_INTERRUPTED
    print(printable_lines(text), file=sys.stderr)
    return code
