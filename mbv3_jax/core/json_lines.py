"""Files that grow by lines of JSON.

A kill can cut the last line short: it then has no newline, and can be left out. Any other line that
cannot be read is damaged; a reader names it and continues after it.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mbv3_jax.core.errors import first_line
from mbv3_jax.core.json_values import parse_json

T = TypeVar("T")

_NAMED = 3  # bad lines that a note names, of perhaps many


def say(text: str) -> None:
    """Prints a note for the user on standard error."""
    print(f"note: {text}", file=sys.stderr)


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a line; raises as `parse_json`."""
    return parse_json(text, dict)


def read_lines(
    path: Path, parse: Callable[[bytes], T], *, note: Callable[[str], None] = say
) -> list[T]:
    """Reads the lines of a file, which may be missing, except for a last line that was cut short.

    Args:
      path: the file.
      parse: from the bytes of a line to its value; ValueError means that the line is damaged.
      note: called once if there are damaged lines, with a message that names them.

    Returns:
      The values of the other lines, in order.
    """
    # Not `splitlines`: JSON has other ends of lines inside its strings.
    *whole, last = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    values, bad = [], []
    for number, line in enumerate([*whole, last], 1):
        try:
            values.append(parse(line))
        except ValueError as e:
            if number <= len(whole):
                bad.append(f"line {number} ({first_line(e)})")
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        note(f"{path}: cannot read and leaves out {', '.join(bad[:_NAMED])}{more}")
    return values


def append_line(path: Path, value: Any) -> None:
    """Appends the line of a value, whatever a kill has left at the end of the file."""
    mend(path)
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def mend(path: Path) -> None:
    """Ends the last line of a file, which may be missing; cuts it off if it was cut short."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        last = file.read().rpartition(b"\n")[2]
        if not last:
            return
        try:
            parse_object(last)
        except ValueError:
            file.seek(-len(last), os.SEEK_END)
            file.truncate()
        else:
            file.write(b"\n")
