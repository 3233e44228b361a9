"""Ctrl-C as a request that is met between steps."""

import signal
import threading
from collections.abc import Iterable, Iterator


class Interrupt:
    """Context manager in which Ctrl-C sets a flag; a second Ctrl-C raises where it comes.

    An exception in the middle of anything can leave the threads that write checkpoints and read
    ahead waiting for each other.
    """

    def __init__(self):
        self._requested = False

    def __enter__(self) -> "Interrupt":
        # Python takes signal handlers from the main thread alone; elsewhere there is no Ctrl-C.
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, *_) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True

    def check(self) -> None:
        """Raises KeyboardInterrupt if there was a Ctrl-C."""
        if self._requested:
            raise KeyboardInterrupt

    def between(self, items: Iterable) -> Iterator:
        """The same items, with a `check` before each."""
        for item in items:
            self.check()
            yield item
