"""Images and labels in Parquet and Arrow files, read by pyarrow.

An image is a path, the bytes of a file, or a struct of both, {bytes, path}, of which one may be
null: what the library `datasets` of Hugging Face writes. It also writes the types of the columns,
with the names of classes, into the metadata of the files.

Arrow files are mapped into memory, and any image can be read from them alone. In a Parquet file
images are compressed in row groups, and to read one image its whole row group is read; the latest
groups stay in memory.
"""

import collections
import functools
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbv3_jax.core.errors import counted, first_line
from mbv3_jax.core.files import open_regular, read_bytes
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.core.limits import OverLimit, check_limit
from mbv3_jax.data.listing import Entry, Listing, check_paths, note_splits, usual
from mbv3_jax.data.source import NotFound

# Of row groups that a process keeps in memory, beside the one that it reads.
_CACHED_BYTES = 2**28
_HEAD = 1000  # rows that are looked at to find out what a column is
# The columns, unless others are named.
IMAGES, LABEL, SPLIT = ("path", "image", "file_name"), "label", "split"


class ArrowFile:
    """A Parquet file, or an Arrow file in the stream or the file format.

    Args:
      path: the file.

    Attributes:
      schema: of its columns.
      features: the types of columns that `datasets` knows, {column: its description}.
      group_rows: the number of rows of each row group; an Arrow file has a single one.

    Raises:
      NotFound: it cannot be read.
    """

    def __init__(self, path: Path):
        import pyarrow
        import pyarrow.parquet

        self.path, self.is_parquet = path, path.suffix.lower() != ".arrow"
        try:
            open_regular(path).close()
            if self.is_parquet:
                metadata = pyarrow.parquet.read_metadata(path)
                self.schema = metadata.schema.to_arrow_schema()
                groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
                self.group_rows = [group.num_rows for group in groups]
                self._groups = groups
            else:
                table = _mapped(os.fspath(path))
                self.schema, self.group_rows = table.schema, [table.num_rows]
        except FileNotFoundError as e:
            raise NotFound(f"{path}: no such file") from e
        except (OSError, pyarrow.ArrowException) as e:
            reason = getattr(e, "strerror", None) or first_line(e)
            raise NotFound(f"{path}: cannot be read: {reason}") from e
        self.features = _features(self.schema, path)

    @property
    def num_rows(self) -> int:
        return sum(self.group_rows)

    def values(self, column: str, field: str | None = None) -> list[Any]:
        """The values of a column of labels or paths, or of a field of a column of structs."""
        if self.is_parquet:
            part = column if field is None else f"{column}.{field}"
            values = self._checked(lambda pq: pq.ParquetFile(self.path).read([part]).column(0))
        else:
            values = self._column(column)
        if field is not None:
            import pyarrow.compute

            values = pyarrow.compute.struct_field(values, field)
        return values.to_pylist()

    def head(self, columns: Sequence[str]) -> dict[str, list[Any]]:
        """The first values of those columns that hold texts, by column."""
        import pyarrow

        def of_texts(kind: Any) -> bool:
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)

        texts = [name for name in columns if of_texts(self.schema.field(name).type)]
        if not self.is_parquet:
            return {name: self._column(name)[:_HEAD].to_pylist() for name in texts}
        batches = self._checked(
            lambda pq: list(
                itertools.islice(pq.ParquetFile(self.path).iter_batches(_HEAD, columns=texts), 1)
            )
        )
        return batches[0].to_pydict() if batches else {}

    def without_bytes(self, column: str) -> np.ndarray:
        """Which images have no bytes, bool [rows], for a column of bytes or structs."""
        if not self.is_parquet:
            return _is_null(self._column(column))
        parts = []
        for number, group in enumerate(self._groups):
            nulls = np.zeros(group.num_rows, bool)
            if _null_count(group, column) != 0:
                rows = self._checked(lambda pq, n=number: _row_group(self.path, n, column))
                nulls = _is_null(rows)
            parts.append(nulls)
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def group_bytes(self, column: str) -> list[int]:
        """The size of each row group of a column, once it is unpacked."""
        if not self.is_parquet:
            return []
        return [sum(c.total_uncompressed_size for c in _chunks(g, column)) for g in self._groups]

    def _column(self, column: str) -> Any:
        return self._checked(lambda pq: _mapped(os.fspath(self.path), column))

    def _checked(self, read: Any) -> Any:
        import pyarrow.parquet

        try:
            return read(pyarrow.parquet)
        except (OSError, pyarrow.ArrowException) as e:
            reason = getattr(e, "strerror", None) or first_line(e)
            raise NotFound(f"{self.path}: cannot be read: {reason}") from e


class ArrowImages:
    """A store of the images of Arrow or Parquet files; rows are numbered through all files.

    Args:
      files: the files.
      column: of the images.
      paths: row -> the path of its file, for images that are not in the files.
    """

    def __init__(self, files: Sequence[ArrowFile], column: str, paths: dict[int, str]):
        self._files = [os.fspath(file.path) for file in files]
        self._parquet = [file.is_parquet for file in files]
        self._column, self._paths = column, paths
        pieces = [
            (number, group, rows)
            for number, file in enumerate(files)
            for group, rows in enumerate(file.group_rows)
        ]
        self._pieces = [piece[:2] for piece in pieces]
        self._ends = np.cumsum([rows for *_, rows in pieces], dtype=np.int64)

    def read(self, row: int, name: str) -> bytes:
        if row in self._paths:
            return read_bytes(self.where(row, name))
        piece = int(np.searchsorted(self._ends, row, side="right"))
        (file, group), start = self._pieces[piece], int(self._ends[piece - 1]) if piece else 0
        import pyarrow

        try:
            if self._parquet[file]:
                values = _CACHE.get(self._files[file], group, self._column)
            else:
                values = _mapped(self._files[file], self._column)
            value = values[row - start].as_py()
        except (pyarrow.ArrowException, OverLimit) as e:
            raise OSError(first_line(e)) from e
        encoded = value["bytes"] if isinstance(value, dict) else value
        if encoded is None:
            raise OSError("no image")
        return encoded

    def where(self, row: int, name: str) -> str:
        if row in self._paths:
            return self._paths[row]
        file = self._pieces[int(np.searchsorted(self._ends, row, side="right"))][0]
        return f"{self._files[file]}, row {name.rpartition('/')[2]}"


class _Cache:
    """The row groups that were read last, of all sources of a process."""

    def __init__(self) -> None:
        self._groups: collections.OrderedDict[tuple[str, int, str], Any] = collections.OrderedDict()
        self._lock = threading.Lock()  # threads of the loader share it

    def get(self, path: str, group: int, column: str) -> Any:
        key = path, group, column
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            values = self._groups[key] = _row_group(Path(path), group, column)
            size = sum(one.nbytes for one in self._groups.values())
            while len(self._groups) > 1 and size > _CACHED_BYTES:
                size -= self._groups.popitem(last=False)[1].nbytes
            return values


_CACHE = _Cache()


def _row_group(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
        size = file.metadata.row_group(group).total_byte_size
        check_limit("MBV3_MAX_UNPACKED_BYTES", size, f"{path}: its row group {group} has")
        return file.read_row_group(group, columns=[column]).column(0)


@functools.cache
def _mapped(path: str, column: str | None = None) -> Any:
    """An Arrow file mapped into memory, or a column of it whose offsets have been checked."""
    import pyarrow

    if column is not None:
        values = _mapped(path)[column]
        values.validate(full=True)  # damaged offsets would lead out of the file
        return values
    source = pyarrow.memory_map(path)
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    open_as = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
    return open_as(source).read_all()


def _is_null(values: Any) -> np.ndarray:
    import pyarrow.compute

    if pyarrow.types.is_struct(values.type):
        values = pyarrow.compute.struct_field(values, "bytes")
    return np.asarray(values.is_null())


def _chunks(group: Any, column: str) -> list[Any]:
    chunks = [group.column(i) for i in range(group.num_columns)]
    return [c for c in chunks if c.path_in_schema in (column, f"{column}.bytes")]


def _null_count(group: Any, column: str) -> int | None:
    """How many images of a row group have no bytes; None if it does not say that."""
    (chunk,) = _chunks(group, column)
    statistics = chunk.statistics
    return statistics.null_count if statistics and statistics.has_null_count else None


def _features(schema: Any, path: Path) -> dict[str, dict[str, Any]]:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        info = parse_json(text, dict).get("info")
    except ValueError as e:
        raise NotFound(f"{path}: its metadata of Hugging Face is damaged: {e}") from e
    features = info.get("features") if isinstance(info, dict) else None
    return {k: v for k, v in (features or {}).items() if isinstance(v, dict)}


def add_files(
    listing: Listing,
    files: Sequence[tuple[ArrowFile, str | None]],
    *,
    root: Path,
    image_column: str | None,
    label_column: str | None,
    split_column: str | None,
) -> None:
    """Adds the rows of files to a list, and its store.

    Args:
      listing: the list.
      files: with the split of each, for files that hold one split; at least one file.
      root: the folder that the names of images start from.
      image_column, label_column: None for the column that `datasets` has marked as such, or else
        for that of the usual name.
      split_column: None for the column "split", if there is one and the files hold no splits.

    Raises:
      NotFound: a file cannot be read.
      ValueError: a column is missing, or of another type.
    """
    first = files[0][0]
    image = _image_column(first, image_column)
    by_class = listing.columns_of(first.schema.names, label_column)
    label = by_class or [_label_column(first, label_column)]
    names = _class_names(first, label[0])
    if names is not None:
        listing.class_names = names
    split = split_column
    if split is None and files[0][1] is None:
        split = usual([SPLIT], first.schema.names)
        if split is None:
            others = [name for name in first.schema.names if name not in (image, *label)]
            note_splits(listing, first.head(others))
    start = 0
    paths: dict[int, Entry] = {}
    rows: list[tuple[int, str, Any, Any, str]] = []
    for file, of_file in files:
        needed = [("image", image), *(("label", name) for name in label)]
        for field, column in (*needed, *([("split", split)] if split else [])):
            _need(file, f"data.{field}_column", column)
        if _class_names(file, label[0]) != names:
            raise ValueError(f"{file.path}: its classes are not those of {first.path}")
        name, folder = os.path.relpath(file.path, root), file.path.parent.absolute()
        written = _paths_in(file, image)
        splits = file.values(split) if split else [of_file] * file.num_rows
        labels = file.values(label[0])
        if by_class:
            labels = list(zip(*(file.values(name) for name in by_class), strict=True))
        for i, (cell, of_row) in enumerate(zip(labels, splits, strict=True)):
            path = written.get(i, "")
            place, of_row = f"{name} row {i}", "" if split and of_row is None else of_row
            if i in written:
                full = os.path.join(folder, path) if path else ""  # noqa: PTH118 (once per image)
                paths[start + i] = Entry(full, of_row, place)
            rows.append((start + i, path or f"{name}/{i}", cell, of_row, place))
        start += file.num_rows
    wrong = check_paths(listing, root, paths)
    for row in rows:
        if row[0] not in wrong:
            listing.add(*row)
    found = {row: entry.path for row, entry in paths.items()}
    listing.store = ArrowImages([file for file, _ in files], image, found)
    _note_large_groups(listing, [file for file, _ in files], image)


def _paths_in(file: ArrowFile, column: str) -> dict[int, str]:
    """The paths of the images that are not in a file, by row; "" where there is none either."""
    import pyarrow

    kind = file.schema.field(column).type
    is_struct = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    binary = kind.field("bytes").type if is_struct else kind
    if pyarrow.types.is_binary(binary) or pyarrow.types.is_large_binary(binary):
        missing = np.flatnonzero(file.without_bytes(column)).tolist()
        paths: list[str | None] = [None] * file.num_rows
        if missing and is_struct and kind.get_field_index("path") >= 0:
            paths = file.values(column, "path")
        return {row: paths[row] or "" for row in missing}
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return {row: path or "" for row, path in enumerate(file.values(column))}
    raise ValueError(
        f"{file.path}: the column {column} is of type {kind}, expected paths, bytes, or structs of "
        "bytes and path"
    )


def _need(file: ArrowFile, field: str, column: str) -> None:
    if column not in file.schema.names:
        listed = ", ".join(file.schema.names)
        raise ValueError(
            f"{file.path}: no column {column!r}, its columns: {listed}; choose one with {field}"
        )


def _image_column(file: ArrowFile, given: str | None) -> str:
    if given is not None:
        return given
    marked = [name for name, kind in file.features.items() if kind.get("_type") == "Image"]
    found = marked or list(filter(None, [usual(IMAGES, file.schema.names)]))
    return _one_of(file, "data.image_column", found, IMAGES[0])


def _label_column(file: ArrowFile, given: str | None) -> str:
    if given is not None:
        return given
    found = [name for name in file.features if _class_names(file, name) is not None]
    if LABEL in found or not found:
        found = list(filter(None, [usual([LABEL], file.schema.names)]))
    return _one_of(file, "data.label_column", found, LABEL)


def _one_of(file: ArrowFile, field: str, found: Sequence[str], usual: str) -> str:
    if len(found) > 1 and usual not in found:
        raise ValueError(f"{file.path}: {field} must be one of {', '.join(found)}")
    if not found:
        _need(file, field, usual)
    return usual if usual in found else found[0]


def _class_names(file: ArrowFile, column: str) -> tuple[str, ...] | None:
    """The names of classes that `datasets` has stored with a column; None if there are none."""
    kind = file.features.get(column, {})
    if isinstance(kind.get("feature"), dict):  # of a list of several labels
        kind = kind["feature"]
    names = kind.get("names")
    if kind.get("_type") != "ClassLabel" or not isinstance(names, list):
        return None
    return tuple(map(str, names))


def _note_large_groups(listing: Listing, files: Sequence[ArrowFile], column: str) -> None:
    sizes = [size for file in files for size in file.group_bytes(column)]
    if sizes and sum(sizes) > _CACHED_BYTES and max(sizes) > _CACHED_BYTES // 16:
        rows = max(rows for file in files for rows in file.group_rows)
        listing.notes.append(
            f"slow to read in random order: up to {counted(rows, 'image')} "
            f"({max(sizes) / 1e6:.0f} MB) are compressed together, and are unpacked together for "
            "one of them; row groups of 10 to 100 images are faster"
        )
