"""Downloads with a deadline, a size limit and progress, which resume after an interruption."""

import contextlib
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from mbv3_jax.core.errors import first_line, printable
from mbv3_jax.core.files import write_atomically
from mbv3_jax.core.limits import limit

T = TypeVar("T")

DEADLINE = "MBV3_MAX_DOWNLOAD_SECONDS"
_SILENCE_S = 30.0  # without a single byte
_ATTEMPTS = 3
_PIECE = 1 << 16
_LINE_S = 10.0  # between lines of progress, where there is no terminal


class DownloadError(Exception):
    """A download failed; the message says why, in one line.

    Attributes:
      answer: The code and the headers of the server's answer; None if it did not answer.
    """

    answer: urllib.error.HTTPError | None = None


class _CutOff(Exception):
    """The connection ended before everything had arrived."""


def cache_folder() -> Path:
    """Returns the folder of downloaded files, and of those that are partly downloaded."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mbv3_jax"


def within_deadline(call: Callable[[], T], so_far: Callable[[], str] = lambda: "") -> T:
    """Returns what a download returns, unless it takes longer than the limit `DEADLINE`.

    The call runs in a thread of its own, because timeouts of single reads do not suffice: a server
    that sends one byte per second meets all of them, and most reads happen inside libraries.

    Args:
      call: The download.
      so_far: Returns the progress, for the message.

    Raises:
      DownloadError: The deadline has passed. The thread keeps running.
      BaseException: What `call` raises.
    """
    seconds = limit(DEADLINE)
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise DownloadError(
            f"not finished after {seconds} s{so_far()}; the environment variable {DEADLINE} raises "
            "this limit"
        )
    return results[0]


def download(
    url: str,
    name: str,
    *,
    max_bytes: int,
    is_right: Callable[[bytes], bool] | None = None,
    token: str | None = None,
) -> bytes:
    """Downloads a file.

    If the connection breaks, the rest is requested: at once, and by the next call if that fails.
    For the next call, the data that has arrived is kept in the cache as NAME.part.

    Args:
      url: The address of the file.
      name: Its name in the cache and in the line of progress.
      max_bytes: The largest size that is accepted.
      is_right: Returns whether the bytes are those of the wanted file, by their hash. Without it
        nothing is resumed, because the file on the server may have changed in the meantime.
      token: A secret that the server may require. It is sent only to the host of the URL, not to
        one that it redirects to.

    Returns:
      The file. `is_right` may not hold for it, but it is never pieced together from two files.

    Raises:
      DownloadError: The file cannot be downloaded, is too large, or takes longer than `DEADLINE`.
    """
    part = cache_folder() / f"{name}.part"
    transfer = _Transfer(url, name, max_bytes, resume=is_right is not None, token=token)
    if is_right and part.is_file() and part.stat().st_size <= max_bytes:
        transfer.data += part.read_bytes()
    try:
        data = within_deadline(transfer.run, transfer.so_far)
        if transfer.in_parts and is_right and not is_right(data):  # maybe the parts of two files
            transfer.data.clear()
            data = within_deadline(transfer.run, transfer.so_far)
    except BaseException:
        if is_right and transfer.data:
            with contextlib.suppress(OSError):
                part.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(part, bytes(transfer.data))
        raise
    finally:
        transfer.stopped = True
        transfer.end_line()
    part.unlink(missing_ok=True)
    return data


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirections, and gives the token to another address of the same host only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if new is not None and token and (new.type, new.host) == (req.type, req.host):
            new.add_unredirected_header("Authorization", token)
        return new


class _Transfer:
    """A download into memory.

    Attributes:
      data: What has arrived.
      in_parts: Whether it was resumed.
      stopped: Set to end it, from another thread.
    """

    def __init__(self, url: str, name: str, max_bytes: int, *, resume: bool, token: str | None):
        self._url, self._name, self._max_bytes, self._resume = url, name, max_bytes, resume
        self._token = token
        self._total: int | None = None
        self._is_terminal, self._shown = sys.stderr.isatty(), time.monotonic()
        self.data = bytearray()
        self.in_parts = self.stopped = False

    def run(self) -> bytes:
        for attempt in range(_ATTEMPTS):
            if not self._resume:
                self.data.clear()
            try:
                self._receive()
                return bytes(self.data)
            except urllib.error.HTTPError as e:
                reason = printable(str(e.reason).partition("\n")[0])
                error = DownloadError(f"the server answers {e.code} {reason}")
                error.answer = e
                raise error from e
            except (_CutOff, HTTPException, OSError, ValueError) as e:
                is_cut = isinstance(e, _CutOff | HTTPException | ConnectionError | TimeoutError)
                if self.stopped or not is_cut or not self.data or attempt == _ATTEMPTS - 1:
                    raise DownloadError(self._reason(e)) from e
        raise AssertionError("the last attempt returns or raises")

    def so_far(self) -> str:
        """The progress, for a message."""
        if not self.data:
            return ", and nothing has arrived"
        resumed = "; the same command asks for the rest" if self._resume else ""
        return f", {self._of()} have arrived{resumed}"

    def end_line(self) -> None:
        """Ends the line of progress."""
        if self._is_terminal and self._total:
            print(file=sys.stderr)

    def _receive(self) -> None:
        with self._ask() as response:
            range_ = response.headers.get("Content-Range") or ""
            self.in_parts = range_.startswith(f"bytes {len(self.data)}-")
            if not self.in_parts:
                self.data.clear()  # the whole file comes
            length = response.headers.get("Content-Length") or ""
            self._total = len(self.data) + int(length[:18]) if length.isdecimal() else None
            self._check(self._total or 0)
            while piece := response.read1(_PIECE):
                if self.stopped:
                    raise _CutOff
                self.data += piece
                self._check(len(self.data))
                self._show()
        if self._total is not None and len(self.data) < self._total:
            raise _CutOff

    def _ask(self) -> Any:
        headers = {"Range": f"bytes={len(self.data)}-"} if self.data else {}
        try:
            return self._open(headers)
        except urllib.error.HTTPError as e:
            if e.code != 416:
                raise
            self.data.clear()  # not the beginning of what is there now
            return self._open({})

    def _open(self, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(self._url, headers=headers)
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        return urllib.request.build_opener(_SameHost).open(request, timeout=_SILENCE_S)

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            self.data.clear()
            raise DownloadError(f"it has more than {self._max_bytes:,} bytes")

    def _reason(self, error: Exception) -> str:
        if isinstance(error, _CutOff) or (isinstance(error, HTTPException) and self.data):
            return f"the connection was cut off{self.so_far()}"
        if isinstance(error, HTTPException):  # its text may hold whatever the server has sent
            return f"the server does not answer in HTTP ({type(error).__name__})"
        cause = getattr(error, "reason", None)  # of urllib.error.URLError
        return getattr(cause or error, "strerror", None) or first_line(error)

    def _of(self) -> str:
        total = f" of {self._total:,}" if self._total else ""
        return f"{len(self.data):,}{total} bytes"

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown < (0.2 if self._is_terminal else _LINE_S):
            return
        self._shown = now
        line = f"downloading {self._name}: {self._of()}"
        print(line, end="\r" if self._is_terminal else "\n", file=sys.stderr, flush=True)
