"""The signals that announce the end of a machine.

This module is imported before all others when a training starts, so it imports only `signal`.
"""

import signal

# SIGTERM announces the end of a machine (Kubernetes, Google's spot and maintenance notices, SLURM
# before it kills); SIGUSR1 is what SLURM's --signal=USR1@SECONDS sends.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def hold_stop_signals() -> None:
    """Holds these signals until `run.interrupt.stops_at_once` can handle them.

    Otherwise one that arrives while Python imports would end the process with 143, not with 75.
    They are also held while the process starts itself again, see `cli.use_huge_pages`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
