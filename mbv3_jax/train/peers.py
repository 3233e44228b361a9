"""The other processes of a run, watched by a thread: none waits for ever for one that is gone.

A collective waits for all processes, so the main thread can tell nothing while it waits. Hence a
thread that writes down once a second, in the key-value store of JAX's coordinator, that it lives
and how many boundaries (of steps and evaluation batches) the main thread has passed, and reads what
the others wrote. It ends the process where

  a process has said that it failed             with its code
  a process has been silent for `patience`      with 75: killed or pre-empted, so start again
  the main thread has passed no boundary        with 75: something hangs
    for `patience`

`patience` counts tenfold where programs are compiled. JAX itself aborts when the coordinator, the
first process, goes; that too becomes 75.

The thread also settles where to stop: a request (SIGTERM) reaches one process, but a checkpoint
needs all at the same step. Each writes down its boundary while it holds its main thread back from
the next one; all stop at the one after the largest.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from mbv3_jax.train.errors import EXIT_RESTART, RunError

_COMPILING = 10.0  # times patience
_GRACE = 5.0  # seconds for the main thread to end by itself
_handlers = []


def on_abort(action: Callable[[], None]) -> None:
    """Has `action` called where JAX aborts the process: others did not come, or the first has left.

    JAX offers no other way. It aborts in C++, where Python's own signal handlers do not run.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: action())
    _handlers.append(handler)  # kept: C calls it
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def end(message: str, code: int) -> NoReturn:
    """Ends the process at once: the main thread hangs, or would in the exit handlers."""
    again = "; the same command goes on from the last checkpoint" if code == EXIT_RESTART else ""
    print(f"error: {message}{again}", file=sys.stderr, flush=True)
    os._exit(code)


class Peers:
    """The processes of this run.

    Args:
      client: of JAX's coordination service.
      index: of this process.
      count: of processes.
      patience: seconds.
    """

    def __init__(self, client, *, index: int, count: int, patience: float):
        self.index, self.count, self.patience = index, count, patience
        self.name = f"process {index} of {count}"
        self._client = client
        self._boundary, self._stop_at = 0, None
        self._asked = self._closed = False
        self._code: int | None = None
        self._lock = threading.Lock()
        self._heard: dict[int, tuple[str, float]] = {}
        self._deadline = time.monotonic() + _COMPILING * patience
        on_abort(
            lambda: self._end("JAX has lost the first process of this run, see above", EXIT_RESTART)
        )
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def send(self, key: str, value: str) -> None:
        """Writes a value for all to read."""
        self._client.key_value_set(f"mbv3/{key}", value)

    def receive(self, key: str) -> str:
        """Waits for a value that a process sends.

        Raises:
          RunError: it does not come.
        """
        milliseconds = round(1000 * _COMPILING * self.patience)
        try:
            return self._client.blocking_key_value_get(f"mbv3/{key}", milliseconds)
        except Exception as e:  # whatever the runtime raises
            raise RunError(f"process 0 did not answer: {str(e).splitlines()[0]}") from e

    def ask_to_stop(self) -> None:
        """Asks all to stop at the same boundary; may be called by a signal handler."""
        self._asked = True

    def passes(self, *, compiles: bool = False) -> bool:
        """Counts a boundary; whether all stop at it. All processes call it at the same places.

        Args:
          compiles: what follows may compile a program first.
        """
        with self._lock:
            self._boundary += 1
            factor = _COMPILING if compiles else 1.0
            self._deadline = time.monotonic() + factor * self.patience
            return self._stop_at is not None and self._boundary >= self._stop_at

    def failed(self, message: str, code: int) -> None:
        """Tells the others that this process ends by an error, and with which code."""
        self._code = code
        try:
            self._client.key_value_set(f"peers/failed/{self.index}", f"{code} {message}", True)
        except Exception:  # the others are gone
            return

    def close(self, code: int) -> None:
        """Ends the watch: this process is done."""
        self._code, self._closed = code, True

    def lost(self, error: BaseException) -> NoReturn:
        """Ends the process after a collective has failed because another one is gone."""
        end = time.monotonic() + min(_GRACE, self.patience)
        while time.monotonic() < end:
            if failure := self._failure(self._read()):
                self._end(*failure)
            time.sleep(0.2)
        reason = str(error).strip().splitlines()[0][:200]
        self._end(f"another process of this run is gone ({reason})", EXIT_RESTART)

    def _read(self) -> dict[str, str]:
        try:
            found = self._client.key_value_dir_get("peers/")
        except Exception:  # the coordinator is gone; JAX, or the deadline, ends this process
            return {}
        return {key.removeprefix("peers/"): value for key, value in found}

    def _failure(self, words: dict[str, str]) -> tuple[str, int] | None:
        """What another process ended by, and the code to exit with."""
        for i in range(self.count):
            if i != self.index and f"failed/{i}" in words:
                code, _, message = words[f"failed/{i}"].partition(" ")
                return f"process {i} ended: {message}", int(code)
        return None

    def _watch(self) -> None:
        beat = 0
        while not self._closed:
            time.sleep(min(1.0, self.patience / 10))
            beat += 1
            try:
                self._client.key_value_set(
                    f"peers/at/{self.index}", f"{self._boundary} {beat}", True
                )
                if self._asked:
                    self._client.key_value_set("peers/stop", "1", True)
            except Exception:  # as in _read
                pass
            words = self._read()
            if "stop" in words and self._stop_at is None:
                self._settle_stop()
            if failure := self._failure(words):
                time.sleep(_GRACE)
                self._end(*failure)
            self._listen(words)
            if time.monotonic() > self._deadline and not self._closed:
                self._end(self._stalled(), EXIT_RESTART)

    def _settle_stop(self) -> None:
        with self._lock:
            self._client.key_value_set(f"stop/{self.index}", str(self._boundary), True)
            milliseconds = round(1000 * self.patience)
            at = [
                int(self._client.blocking_key_value_get(f"stop/{i}", milliseconds))
                for i in range(self.count)
            ]
            self._stop_at = max(at) + 1

    def _listen(self, words: dict[str, str]) -> None:
        now = time.monotonic()
        for i in range(self.count):
            word = words.get(f"at/{i}", "")
            if i not in self._heard or (word and word != self._heard[i][0]):
                self._heard[i] = (word, now)
            silent = now - self._heard[i][1]
            if silent > self.patience and not self._closed:
                self._end(f"process {i} has not been heard of for {silent:.0f} s", EXIT_RESTART)

    def _stalled(self) -> str:
        behind = []
        for i, (word, _) in sorted(self._heard.items()):
            if word and int(word.split()[0]) < self._boundary:
                behind.append(f"process {i}")
        who = f"; still before it: {', '.join(behind)}" if behind else ""
        return f"no step or batch ended within the limit (--patience {self.patience:g} s){who}"

    def _end(self, message: str, code: int) -> NoReturn:
        end(f"{self.name}: {message}", code if self._code is None else self._code)
