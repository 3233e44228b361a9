"""Files that a reader or a kill finds whole."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, finds the old text or the new one whole."""
    temporary = temporary_of(path)
    try:
        with temporary.open("w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def temporary_of(path: Path) -> Path:
    """The name under which `write_atomically` first writes `path`."""
    return path.with_suffix(".tmp")


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a new binary file that replaces `path` once the block has ended without an error.

    The data is first written under a hidden name beside `path` that nobody else uses, so no file
    of the user, and no file of another process that writes the same `path`, is touched. After an
    error `path` is as it was and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
