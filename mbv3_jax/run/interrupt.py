"""Ctrl-C and preemption as requests that are handled between steps."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from mbv3_jax.core.errors import Preempted
from mbv3_jax.core.signals import STOP_SIGNALS
from mbv3_jax.run.processes import Peers

T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was pressed, and training is between two steps: its state can be saved."""


@contextlib.contextmanager
def stops_at_once() -> Iterator[None]:
    """Within it a signal of `STOP_SIGNALS` raises Preempted at once: there is nothing to save yet.

    An `Interrupt` within it takes over.
    """

    def stop(*_: object) -> None:
        raise Preempted

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # see hold_stop_signals
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Interrupt:
    """Context manager in which signals only set a flag, which `check` looks at.

    After Ctrl-C the next check raises Interrupted, or with several processes, which would have to
    save together, KeyboardInterrupt; a second Ctrl-C raises KeyboardInterrupt at once. After a
    signal of `STOP_SIGNALS` the next check raises Preempted, with several processes the same
    check in all of them.

    An exception at an arbitrary place could leave the threads that write checkpoints and read ahead
    waiting for each other.

    Args:
      peers: the other processes of the run, if there are any.
    """

    def __init__(self, peers: Peers | None = None):
        self._interrupted = self._preempted = False
        self._peers = peers

    def __enter__(self) -> "Interrupt":
        # Python allows signal handlers in the main thread only; elsewhere there is no Ctrl-C.
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._preempt)
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _interrupt(self, *_: object) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def _preempt(self, *_: object) -> None:
        self._preempted = True
        if self._peers:
            self._peers.request_stop()

    def check(self, *, compiles: bool = False) -> None:
        """Raises Interrupted, KeyboardInterrupt or Preempted if there was a signal.

        Args:
          compiles: whether what follows may compile a program first, see `Peers.boundary`.
        """
        if self._interrupted:
            raise KeyboardInterrupt if self._peers else Interrupted
        if self._peers.boundary(compiles=compiles) if self._peers else self._preempted:
            raise Preempted

    def checked(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the same items, with a `check` before each."""
        for number, item in enumerate(items):
            self.check(compiles=number == 0)
            yield item
