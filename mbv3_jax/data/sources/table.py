"""A table of labelled images: CSV, TSV or Parquet, with a row for each image.

    path,label,split
    photos/1.jpg,cat,train
    photos/2.jpg,dog,validation

Relative paths start from the folder of the table. Labels are names, or whole numbers, which are
then the names of the classes in the order of the numbers. Without a column of splits a part of each
class is held out. In Parquet the images may be in the table, see `arrow_files`.
"""

import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.csv_rows import Row, not_utf8, read_rows
from mbv3_jax.core.files import expand_user, read_text
from mbv3_jax.data.arrow_files import IMAGES, LABEL, SPLIT, ArrowFile, add_files
from mbv3_jax.data.divide import open_listing
from mbv3_jax.data.files import is_image, packed
from mbv3_jax.data.listing import Entry, Listed, Listing, Paths, check_paths, note_splits, usual
from mbv3_jax.data.source import NotFound, source

_PARQUET = (".parquet", ".pq")
_DELIMITERS = "\t,;|"
_WHOLE = re.compile(r"-?\d+\.0")  # as pandas writes whole numbers beside empty cells


@source("table:PATH", default_recipe="modest", exif_rotate=True)
def open_table(
    path: str,
    resolution: Resolution,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    labels: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    split_fraction: float | None = None,
    crop: Mapping[str, Any],
    on_error: str = "raise",
) -> tuple[Listed, Listed]:
    """Opens the splits to train on and to evaluate on.

    Args:
      path: the file; .parquet and .pq are Parquet, anything else is text in UTF-8.
      resolution: of the images in pixels: the side of squares, or (height, width).
      image_column: of the images; None for "path", "image" or "file_name", in any case.
      label_column: of the labels; None for "label". With several labels per image, or with
        probabilities, also one for each class, separated by commas; None then also for "p_NAME".
      split_column: of the names of splits; None for "split", if there is such a column.
      labels: one of `source.LABEL_KINDS`; None for "single".
      train_split, eval_split, split_fraction, crop, on_error: see `divide.open_listing`.

    Raises:
      NotFound: the file or a split does not exist.
      ValueError: it is not such a table, or something in it cannot be used.
    """
    file = expand_user(path, "data.name")
    columns = {
        "image_column": image_column,
        "label_column": label_column,
        "split_column": split_column,
    }
    listing = Listing(f"table:{file}", file, "row", labels)
    if file.suffix.lower() in _PARQUET:
        add_files(listing, [(ArrowFile(file), None)], root=file.parent, **columns)
    else:
        _add_text(listing, file, **columns)
    return open_listing(
        listing,
        resolution,
        train_split=train_split,
        eval_split=eval_split,
        split_fraction=split_fraction,
        crop=crop,
        on_error=on_error,
    )


def _add_text(
    listing: Listing,
    file: Path,
    *,
    image_column: str | None,
    label_column: str | None,
    split_column: str | None,
) -> None:
    """Adds the rows of a CSV file; arguments as for `open_table`."""
    header, lines = _read(file)
    image = _place(file, header, "image", image_column or usual(IMAGES, header) or IMAGES[0])
    by_class = listing.columns_of(header, label_column)
    one = label_column or usual([LABEL], header) or LABEL
    label = [_place(file, header, "label", name) for name in by_class or [one]]
    split_column = split_column or usual([SPLIT], header)
    split = None if split_column is None else _place(file, header, "split", split_column)
    whole: dict[int, list[str]] = {}
    for line, cells in lines:
        if len(cells) != len(header):
            reason = f"with another number of cells than the {len(header)} of the header"
            listing.left_out.add(reason, f"line {line} ({len(cells)})")
        else:
            whole[line] = cells
    if split is None:
        others = [place for place in range(len(header)) if place not in (image, *label)]
        note_splits(
            listing, {header[i]: map(operator.itemgetter(i), whole.values()) for i in others}
        )
    if all(_WHOLE.fullmatch(cells[label[0]]) or not cells[label[0]] for cells in whole.values()):
        for cells in whole.values():
            cells[label[0]] = cells[label[0]].removesuffix(".0")
    entries = {
        line: Entry(cells[image], None if split is None else cells[split], f"line {line}")
        for line, cells in whole.items()
    }
    wrong = check_paths(listing, file.parent, entries)
    for line, entry in entries.items():
        if line not in wrong:
            place = f"{entry.place} ({entry.path})"
            cells = [whole[line][column] for column in label]
            listing.add(line, entry.path, cells if by_class else cells[0], entry.split, place)
    listing.store = Paths(file.parent)


def _read(file: Path) -> tuple[list[str], list[Row]]:
    """The header of a CSV file, and its other rows with the number of their first line."""
    try:
        text = read_text(file)
    except FileNotFoundError as e:
        raise NotFound(f"{file}: no such file") from e
    except OSError as e:
        raise NotFound(f"{file}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        if kind := packed(e.object):
            raise ValueError(f"{file}: {kind}; a table is text in UTF-8, or .parquet") from e
        raise ValueError(f"{not_utf8(e, str(file))}; save it as UTF-8") from e
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    rows = read_rows(text, str(file), delimiter=delimiter)
    if not rows:
        raise ValueError(f"{file}: an empty table")
    header = rows[0][1]
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise ValueError(f"{file}: two columns have the name {twice!r}")
    return header, rows[1:]


def _place(file: Path, header: list[str], kind: str, column: str) -> int:
    """The number of a column."""
    if column not in header:
        is_row = any(map(is_image, header))
        raise ValueError(
            f"{file}: no column {column!r}, its first line has: {', '.join(header[:10])}"
            + (", ..." if len(header) > 10 else "")
            + f"; choose one with data.{kind}_column"
            + ("; a first line with the names of the columns is missing" if is_row else "")
        )
    return header.index(column)
