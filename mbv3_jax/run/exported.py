"""Files of `jax.export`: until when JAX promises to read them, and how they are opened.

JAX promises to read a file for six months. It counts them from the day on which the jaxlib that
wrote it was built to the day on which the jaxlib that reads it was built
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
"""

import datetime
import os
import shlex
import time
from importlib import metadata
from pathlib import Path
from typing import NotRequired, TypedDict

import jax

from mbv3_jax.core.errors import first_line, printable
from mbv3_jax.core.json_lines import say
from mbv3_jax.core.json_values import as_type
from mbv3_jax.core.packages import need, program
from mbv3_jax.run.archive import read_archive
from mbv3_jax.run.processes import is_first

_PROMISED = datetime.timedelta(days=182)  # six months
# The dates of the files in the wheels; nothing that is installed has the day. Of other versions it
# is taken to be the day of the export, which is later.
_BUILT = {"0.10.2": datetime.date(2026, 6, 17), "0.12.0.1": datetime.date(2026, 10, 20)}


class Promise(TypedDict):
    """What the metadata of a file says about its age; days are YYYY-MM-DD."""

    jax: str
    jaxlib: str
    exported: str
    readable_until: str


class _Input(TypedDict):
    shape: list[int | str]
    dtype: str


class _Metadata(TypedDict):
    """What is read of a file's metadata, see `export.metadata.describe`."""

    jax_export: NotRequired[Promise]
    origin: NotRequired[dict[str, str | int]]
    precision: NotRequired[str]
    input: NotRequired[_Input]


def promise() -> Promise:
    """The promise for a file that is exported now.

    SOURCE_DATE_EPOCH, in seconds, takes the place of the clock, as in other programs
    (https://reproducible-builds.org/specs/source-date-epoch).
    """
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    today = datetime.datetime.fromtimestamp(seconds, datetime.UTC).date()
    jaxlib = metadata.version("jaxlib")
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib,
        "exported": str(today),
        "readable_until": str(_BUILT.get(jaxlib, today) + _PROMISED),
    }


def open_exported(path: Path, content: bytes) -> jax.export.Exported:
    """Reads a file of `jax.export`, and says so if JAX no longer promises to.

    Args:
      path: the file.
      content: its bytes.

    Raises:
      UsageError: flatbuffers is not installed.
      RunError: the archive at the end of the file is damaged.
      ValueError: the file cannot be read; the message has the command that writes it again.
    """
    need("flatbuffers", "StableHLO", "export")  # jax.export imports it
    here = metadata.version("jaxlib")
    try:
        entries = as_type(read_archive(path) or {}, _Metadata)
        made = entries.get("jax_export")
        until = datetime.date.fromisoformat(made["readable_until"]) if made else None
    except ValueError as e:
        raise ValueError(f"{path}: its metadata: {first_line(e)}") from e
    by = printable(f"jaxlib {made['jaxlib']} exported it on {made['exported']}") if made else ""
    if made and until and until < datetime.date.today() and made["jaxlib"] != here and is_first():
        say(f"{path}: {by}, and JAX promised to read it until {until}; this is jaxlib {here}")
    try:
        return jax.export.deserialize(bytearray(content))
    except Exception as e:  # of a file of another kind the reader can raise anything
        if not made:
            reason = first_line(e)
            raise ValueError(f"{path} is not a StableHLO file of jax.export: {reason}") from e
        raise ValueError(
            f"{path} cannot be read by jaxlib {here}: {first_line(e)}; {by}, and JAX promised to "
            f"read it until {until}. Export it again: {_command(path, entries)}"
        ) from e


def _command(path: Path, entries: _Metadata) -> str:
    """The command that exports a file again, as far as its metadata tells."""
    origin, images = entries.get("origin", {}), entries.get("input")
    kind = "import" if "import" in origin else "run"
    batch = images["shape"][0] if images and images["shape"] else None
    options = {
        kind: f"PATH/{origin.get(kind, 'NAME')}",
        "step": origin.get("step"),
        "weights": origin.get("weights"),
        "format": "stablehlo",
        "precision": entries.get("precision"),
        "batch": "any" if batch == "N" else batch,
        "input": images["dtype"] if images else None,
        "out": path,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return printable(shlex.join([*program().split(), "export", *given]))
