"""Lists of labelled images: their labels, what is left out, and how the images are read.

Tables, Hugging Face data sets and WebDataset tars differ in how images are found and stored. This
module holds what they share; `divide` makes splits from a list.
"""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mbv3_jax.core.checks import Resolution, choose
from mbv3_jax.core.errors import counted
from mbv3_jax.core.files import read_bytes
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.layout import roles
from mbv3_jax.data.source import LABEL_KINDS

_MOST_SPLITS = 10
_SHOWN = 3  # places that a message names
_PROBABILITY = "p_"  # how columns of probabilities begin, before the name of the class
_TRUTHS = {"true": 1.0, "false": 0.0}  # as pandas writes them
_ROUNDING = 0.01  # by which the sum of written probabilities may differ from 1


class Store(Protocol):
    """Where the images of a list are."""

    def read(self, row: int, name: str) -> bytes:
        """The image file of a row of the list; raises OSError if it cannot be read."""

    def where(self, row: int, name: str) -> str:
        """What a message calls the image of a row."""


class Names:
    """Texts by number, in one string of bytes: a fraction of the memory of a list."""

    def __init__(self, names: Iterable[str]):
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]])

    def update(self, digest: Any) -> None:
        """Adds the texts to a digest of `hashlib`."""
        digest.update(self._bytes)
        digest.update(self._ends.tobytes())


class LeftOut:
    """The entries of a list that cannot be used, counted by reason.

    Args:
      place: the list, for messages.
      noun: what an entry of it is called: "row".
    """

    def __init__(self, place: str, noun: str):
        self._place, self._noun = place, noun
        self._found: dict[str, list[tuple[str | None, str]]] = {}  # reason -> split and place
        self._gaps: list[str] = []

    def add(self, reason: str, place: str, split: str | None = None) -> None:
        """Notes that an entry cannot be used, of a split if it is known."""
        self._found.setdefault(reason, []).append((split, place))

    def add_gap(self, line: str) -> None:
        """Records that an unknown number of entries is missing, and why."""
        self._gaps.append(line)

    def lines(self, verb: str = "left out", splits: Collection[str] | None = None) -> list[str]:
        """A line for each reason, with its number of entries and where the first are.

        Args:
          verb: what happens to them.
          splits: only entries of these splits, and of unknown ones; None for all.
        """
        lines = []
        for reason, found in self._found.items():
            places = [p for split, p in found if splits is None or split in (None, *splits)]
            if places:
                listed = ", ".join(places[:_SHOWN]) + (", ..." if len(places) > _SHOWN else "")
                lines.append(f"{counted(len(places), self._noun)} {verb}, {reason}: {listed}")
        return lines + self._gaps

    def check(self, splits: Collection[str]) -> None:
        """Raises ValueError if anything of these splits cannot be used."""
        if lines := self.lines("cannot be used", splits):
            raise ValueError(
                f"{self._place}: {'; '.join(lines)}. Correct the data, or set data.on_error=skip "
                "to leave them out"
            )


class Listing:
    """What a list says, before it is divided into splits; all sequences are by row.

    Args:
      name: the name of the source, as in `config.data.name`.
      place: the file or folder of the list, for messages.
      noun: what an entry is called in messages: "row".
      kind: one of `source.LABEL_KINDS`; None for "single".

    Attributes:
      store: reads the images.
      rows: the number of each image in the store.
      names: of the images, all different; they decide what is held out, and the fingerprint.
      labels: of each image, by `kind`: its class, the tuple of its classes, or a tuple with the
        probability of each class.
      columns: the classes of a table that has a column for each; else empty.
      splits: the split of each image; empty if there are no splits.
      class_names: by label, if the list has them in an order of its own; else None.
      left_out: what cannot be used; it is in none of the sequences.
      notes: other lines for the user.
    """

    store: Store

    def __init__(self, name: str, place: Path, noun: str, kind: str | None = None):
        self.kind = choose("data.labels", kind or "single", LABEL_KINDS)
        self.columns: tuple[str, ...] = ()
        self.name, self.place = name, place
        self.rows: list[int] = []
        self.names: list[str] = []
        self.labels: list[Any] = []
        self.splits: list[str] = []
        self.class_names: tuple[str, ...] | None = None
        self.left_out = LeftOut(os.fspath(place), noun)
        self.notes: list[str] = []

    def columns_of(self, header: Sequence[str], given: str | None) -> list[str]:
        """The columns of a table that has one for each class, which are then its classes.

        Args:
          header: the names of all columns.
          given: `data.label_column`: names separated by commas; None for those that begin with "p_"
            if the labels are probabilities.

        Returns:
          Their names; none for a table with a single column of labels.
        """
        found: list[str] = []
        if given is not None and given not in header and self.kind != "single":
            found = [name.strip() for name in given.split(",")] if "," in given else []
        elif given is None and self.kind == "soft":
            found = [name for name in header if name.startswith(_PROBABILITY)]
        prefix = _PROBABILITY if self.kind == "soft" else ""
        self.columns = tuple(name.removeprefix(prefix) for name in found)
        return found

    def add(self, row: int, name: str, label: Any, split: Any, place: str) -> None:
        """Adds an image, or what is wrong with its label or its split to `left_out`.

        Args:
          row: its number in the store.
          name: of the image.
          label: a name, a whole number or, where there is none, None, "" or NaN. With
            `class_names` a number is one of these. Several labels are a sequence of such, or a text
            with semicolons; with `columns`, and for probabilities, a sequence of numbers.
          split: the name of its split; None if there are no splits.
          place: what a message calls it.
        """
        read = {"single": self._label, "multi": self._several, "soft": self._probabilities}
        value, reason = read[self.kind](label)
        if not reason and split is not None and not (split := str(split).strip()):
            reason = "without a split"
        if reason:
            self.left_out.add(reason, place, split or None)
            return
        self.rows.append(row)
        self.names.append(name)
        self.labels.append(value)
        if split is not None:
            self.splits.append(split)

    def _label(self, label: Any) -> tuple[str, str]:
        """The text of a label, and what is wrong with it."""
        if isinstance(label, float) and (label.is_integer() or label != label):
            label = None if label != label else int(label)  # pandas: integers beside empty cells
        if label is None or label == "":
            return "", "without a label"
        if isinstance(label, str):
            label = label.strip()
            if label.lower() == "nan" and self.class_names is None:  # so pandas writes none
                return "", "without a label"
        elif isinstance(label, list | tuple):
            return "", "with several labels, which data.labels=multi reads"
        elif not isinstance(label, int):
            kind = type(label).__name__
            return "", f"with a label that is neither a name nor a whole number, but a {kind}"
        elif self.class_names is not None:
            if label == -1:  # what `datasets` has where a test split has no labels
                return "", "without a label, which is -1"
            if not 0 <= label < len(self.class_names):
                return "", f"with a label that is not from 0 to {len(self.class_names) - 1}"
            label = self.class_names[label]
        text = str(label)
        if self.class_names is not None and text not in self.class_names:
            return "", "with an unknown label"
        return text, "" if text else "without a label"

    def _several(self, label: Any) -> tuple[tuple[str, ...], str]:
        """The classes of an image, which may be none, and what is wrong with them."""
        if self.columns:
            flags = [_as_number(cell) for cell in label]
            if not set(flags) <= {0, 1}:
                return (), "with a cell that is neither 0 nor 1"
            return tuple(n for n, flag in zip(self.columns, flags, strict=True) if flag), ""
        if isinstance(label, str):
            label = [part for part in label.split(";") if part.strip()]
        elif label is None or label != label:
            label = []
        found = [
            self._label(one) for one in (label if isinstance(label, list | tuple) else [label])
        ]
        return tuple(dict.fromkeys(text for text, _ in found)), max(
            (reason for _, reason in found), default=""
        )

    def _probabilities(self, label: Any) -> tuple[tuple[float, ...], str]:
        """The probability of each class, and what is wrong with them."""
        if not isinstance(label, list | tuple) or not label:
            return (), "without a list of probabilities"
        values = np.array([_as_number(cell) for cell in label], np.float64)
        if self.class_names is None:
            self.class_names = self.columns or tuple(map(str, range(len(values))))
        if len(values) != len(self.class_names):
            return (), f"with another number of probabilities than {len(self.class_names)}"
        total = values.sum()
        if not (values >= 0).all() or not abs(total - 1) <= _ROUNDING:
            return (), "with probabilities that are negative, missing or do not sum to 1"
        return tuple(values / total), ""


def _as_number(cell: Any) -> float:
    """The number or the truth in a cell; NaN if there is none."""
    try:
        if isinstance(cell, str) and cell.lower() in _TRUTHS:
            return _TRUTHS[cell.lower()]
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


class Listed(Encoded):
    """The images of one split of a list.

    Args:
      listing: the list.
      split: the name of the split.
      resolution: of the images in pixels: the side of squares, or (height, width).
      class_names: one name per label.
      rows: which images of the list, in the order of the indices.
      labels: of these images, int32 [images] or float32 [images, classes].
      crop: options of `decode.decode_view`.
    """

    def __init__(
        self,
        listing: Listing,
        split: str,
        resolution: Resolution,
        class_names: Sequence[str],
        rows: Sequence[int],
        labels: np.ndarray,
        crop: Mapping[str, Any],
    ):
        super().__init__(crop)
        self.label_kind = listing.kind
        self.name, self.split, self.resolution = listing.name, split, resolution
        self.class_names = tuple(class_names)
        self._store = listing.store
        self._rows = np.array([listing.rows[row] for row in rows], np.int64)
        self._names = Names(listing.names[row] for row in rows)
        self._labels = labels
        digest = hashlib.sha256("\0".join(self.class_names).encode(errors="surrogateescape"))
        self._names.update(digest)
        digest.update(self._labels.tobytes())
        kind = listing.name.partition(":")[0]
        self.fingerprint = f"{kind}/{split}/{len(rows)}/{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        return self._store.where(int(self._rows[index]), self._names[index])

    def labels(self) -> np.ndarray | None:
        return self._labels if self.label_kind == "single" else None

    def counts(self) -> np.ndarray | None:
        if self.label_kind == "multi":
            return np.count_nonzero(self._labels, axis=0)
        return super().counts()

    def present(self) -> np.ndarray:
        """Whether there are images of each class, bool [classes]."""
        if self.label_kind == "single":
            return np.bincount(self._labels, minlength=self.num_classes) > 0
        return np.asarray(self._labels.any(axis=0))

    def read(self, index: int) -> tuple[bytes, Any]:
        encoded = self._store.read(int(self._rows[index]), self._names[index])
        return encoded, self._labels[index]


class Paths:
    """A store of image files, whose names are their paths.

    Args:
      root: the folder that relative paths start from.
    """

    def __init__(self, root: Path):
        self._root = os.fspath(root)

    def read(self, row: int, name: str) -> bytes:
        return read_bytes(self.where(row, name))

    def where(self, row: int, name: str) -> str:
        return os.path.join(self._root, name)  # noqa: PTH118 (once per example)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a table that names a file: where that is, and the split and the place of the row."""

    path: str
    split: str | None
    place: str


def usual(names: Sequence[str], header: Sequence[str]) -> str | None:
    """The column that has one of the usual names, in any case; None if there is none."""
    for name in names:
        if name in header:
            return name
    return next((c for name in names for c in header if c.lower() == name), None)


def note_splits(listing: Listing, columns: Mapping[str, Iterable[Any]]) -> None:
    """Notes which columns of a table have the names of splits but are not read."""
    for name, values in columns.items():
        found: set[str] = set()
        for value in values:
            found.add(value)
            if len(found) > _MOST_SPLITS or not isinstance(value, str) or len(roles(value)) != 1:
                break
        else:
            if found:
                listing.notes.append(
                    f"the column {name} names splits ({', '.join(sorted(found))}), which are not "
                    f"read; data.split_column={name} reads them"
                )


def check_paths(listing: Listing, root: Path, entries: Mapping[int, Entry]) -> set[int]:
    """Finds the rows whose files do not exist or are listed twice, and adds them to `left_out`.

    Folders are listed once instead of asking for each file, which takes as long as the listing of
    a folder of class folders.

    Args:
      listing: the list; gets a note if files lie outside of `root`.
      root: the folder that relative paths start from.
      entries: the entries by row.

    Returns:
      Those rows.
    """
    folders: dict[str, frozenset[str]] = {}
    seen: dict[str, int] = {}
    wrong: set[int] = set()
    outside: list[str] = []
    inside = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118 (with a slash at the end)
    for row, entry in entries.items():
        written, place = entry.path, f"{entry.place} ({entry.path})"
        path = os.path.normpath(os.path.join(inside, written))  # noqa: PTH118 (once per image)
        folder, _, name = path.rpartition(os.sep)
        if folder not in folders:
            folders[folder] = _entries(folder)
        first = seen.setdefault(path, row)
        reason = ""
        if not written:
            reason, place = "without an image", entry.place
        elif name not in folders[folder]:
            reason = "no such file"
            if "://" in written:
                reason = "an address, and nothing is downloaded"
            elif "\\" in written:
                reason = "no such file; the folders in a path are separated by /"
        elif first != row:
            reason, place = "listed before", f"{place[:-1]}, as {entries[first].place})"
        elif not path.startswith(inside):
            outside.append(written)
        if reason:
            listing.left_out.add(reason, place, entry.split or None)
            wrong.add(row)
    if outside:
        listing.notes.append(
            f"{counted(len(outside), 'image')} outside of {root}, which are read: {outside[0]}"
            + (", ..." if len(outside) > 1 else "")
        )
    return wrong


def _entries(folder: str) -> frozenset[str]:
    """The names in a folder but those of folders, or none if it cannot be read."""
    try:
        with os.scandir(folder or os.sep) as entries:
            return frozenset(e.name for e in entries if not e.is_dir(follow_symlinks=False))
    except (OSError, ValueError):  # no such folder, or no path at all
        return frozenset()
