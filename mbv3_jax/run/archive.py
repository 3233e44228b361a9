"""The metadata that `export` appends to a file: a zip archive at its end."""

import zipfile
from pathlib import Path
from typing import Any

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import open_regular
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.core.limits import check_archive

METADATA = "metadata.json"


def read_archive(path: Path) -> dict[str, Any] | None:
    """What metadata.json in the archive at the end of a file holds.

    Returns:
      The entries, see `export.metadata.describe`; None if the file has no such archive.

    Raises:
      UsageError: the file cannot be read.
      RunError: the archive is damaged.
    """
    try:
        with open_regular(path) as file:
            if not zipfile.is_zipfile(file):
                return None
            with zipfile.ZipFile(file) as archive:
                check_archive(archive)
                if METADATA not in archive.namelist():
                    return None
                return parse_json(archive.read(METADATA), dict)
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    except (zipfile.BadZipFile, ValueError) as e:
        raise RunError(f"{path} has no metadata of this package: {e}") from e
