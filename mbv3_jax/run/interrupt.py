"""Ctrl-C and pre-emption as requests that are met between steps."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator

from mbv3_jax.core.errors import Preempted
from mbv3_jax.run.processes import Peers

# SIGTERM announces the end of a machine (Kubernetes, Google's spot and maintenance notices, SLURM
# before it kills); SIGUSR1 is what SLURM's --signal=USR1@SECONDS sends.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def stops_at_once():
    """In it a signal of `STOP_SIGNALS` raises Preempted where it comes: nothing is to be saved yet.

    An `Interrupt` within takes over.
    """

    def stop(*_):
        raise Preempted

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Interrupt:
    """Context manager in which signals set a flag.

    Ctrl-C raises KeyboardInterrupt at the next check, a second one where it comes; a signal of
    `STOP_SIGNALS` raises Preempted at the next check, with several processes at the same in all.

    An exception in the middle of anything can leave the threads that write checkpoints and read
    ahead waiting for each other.
    """

    def __init__(self, peers: Peers | None = None):
        self._requested = self._stop = False
        self._peers = peers

    def __enter__(self) -> "Interrupt":
        # Python takes signal handlers from the main thread alone; elsewhere there is no Ctrl-C.
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._request_stop)
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, *_) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True

    def _request_stop(self, *_) -> None:
        self._stop = True
        if self._peers:
            self._peers.ask_to_stop()

    def check(self, *, compiles: bool = False) -> None:
        """Raises KeyboardInterrupt or Preempted if there was a signal.

        Args:
          compiles: what follows may compile a program first, see `Peers.passes`.
        """
        if self._requested:
            raise KeyboardInterrupt
        if self._peers.passes(compiles=compiles) if self._peers else self._stop:
            raise Preempted

    def between(self, items: Iterable) -> Iterator:
        """The same items, with a `check` before each."""
        for number, item in enumerate(items):
            self.check(compiles=number == 0)
            yield item
