"""Files that a reader or a kill finds whole."""

import contextlib
import os
from pathlib import Path


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
