"""Tables in CSV: their rows, with the line where each begins, for messages."""

import csv
import io

Row = tuple[int, list[str]]  # the number of its first line, and its cells


def read_rows(text: str, where: str, *, delimiter: str = ",") -> list[Row]:
    """Reads the rows of a table, without those that are empty; spaces around cells are left out.

    Args:
      text: as `files.read_text` returns it.
      where: the file, for messages.
      delimiter: between cells.

    Raises:
      ValueError: a quotation mark has no end, or something else is not CSV; the message has the
        line.
    """
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows, line = [], 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as e:
        raise ValueError(f"{where}: line {line}: not a row of a table: {e}") from e
    return rows


def not_utf8(error: UnicodeDecodeError, where: str) -> str:
    """What to say of a table whose bytes are not text."""
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"{where}: line {line} is not text in UTF-8"
