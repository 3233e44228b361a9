"""The signals that announce the end of a machine.

This module is imported before all others, when a training starts; hence only `signal`.
"""

import signal

# SIGTERM announces the end of a machine (Kubernetes, Google's spot and maintenance notices, SLURM
# before it kills); SIGUSR1 is what SLURM's --signal=USR1@SECONDS sends.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def hold_stop_signals() -> None:
    """Lets these signals wait until `run.interrupt.stops_at_once` can answer them.

    Without it one that comes while Python imports ends the process with 143, not with 75. They
    wait also while the process starts itself again, see `cli.use_huge_pages`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
