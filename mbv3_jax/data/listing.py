"""Labelled images that something lists: which of them are trained on, and which are held out.

Folders, tables, Hugging Face data sets and WebDataset tars differ in how images are found and read.
What is the same is here: class numbers, splits, what is left out, and the order of the examples.
"""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mbv3_jax.core.errors import counted
from mbv3_jax.core.files import read_bytes
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.layout import PLAIN, TEST, TRAIN, VALIDATION, choose_split, roles
from mbv3_jax.data.source import NotFound

DEFAULT_FRACTION = 0.1
HELD_OUT = "held_out"  # the name of what was held out of data without splits
_SHOWN = 3  # places that a message names


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
    """What of a list cannot be used, counted by reason.

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
        """Notes that nobody knows how many entries are missing, and why."""
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

    Attributes:
      store: reads the images.
      rows: the number of each image in the store.
      names: of the images, all different; they decide what is held out, and the fingerprint.
      labels: the text of each label.
      splits: the split of each image; empty if there are no splits.
      class_names: by label, if the list has them in an order of its own; else None.
      left_out: what cannot be used, and is in none of the sequences.
      notes: other lines that a person should know.
    """

    store: Store

    def __init__(self, name: str, place: Path, noun: str):
        self.name, self.place = name, place
        self.rows: list[int] = []
        self.names: list[str] = []
        self.labels: list[str] = []
        self.splits: list[str] = []
        self.class_names: tuple[str, ...] | None = None
        self.left_out = LeftOut(os.fspath(place), noun)
        self.notes: list[str] = []

    def add(self, row: int, name: str, label: Any, split: Any, place: str) -> None:
        """Adds an image, or what is wrong with its label or its split to `left_out`.

        Args:
          row: its number in the store.
          name: of the image.
          label: a name, a whole number or, where there is none, None, "" or NaN. With
            `class_names` a number is one of these.
          split: the name of its split; None if there are no splits.
          place: what a message calls it.
        """
        text, reason = self._label(label)
        if not reason and split is not None and not (split := str(split).strip()):
            reason = "without a split"
        if reason:
            self.left_out.add(reason, place, split or None)
            return
        self.rows.append(row)
        self.names.append(name)
        self.labels.append(text)
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
        elif not isinstance(label, int):
            return "", f"with a label that is neither a name nor a whole number, as {label!r}"
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


class Listed(Encoded):
    """The images of one split of a list.

    Args:
      listing: the list.
      split: the name of the split.
      resolution: side of the images, in pixels.
      class_names: one name per label.
      rows: which images of the list, in the order of the indices.
      labels: of these images.
      crop: options of `decode.decode_view`.
    """

    def __init__(
        self,
        listing: Listing,
        split: str,
        resolution: int,
        class_names: Sequence[str],
        rows: Sequence[int],
        labels: Sequence[int],
        crop: Mapping[str, Any],
    ):
        super().__init__(crop)
        self.name, self.split, self.resolution = listing.name, split, resolution
        self.class_names = tuple(class_names)
        self._store = listing.store
        self._rows = np.array([listing.rows[row] for row in rows], np.int64)
        self._names = Names(listing.names[row] for row in rows)
        self._labels = np.array(labels, np.int32)
        digest = hashlib.sha256("\0".join(self.class_names).encode(errors="surrogateescape"))
        self._names.update(digest)
        digest.update(self._labels.tobytes())
        kind = listing.name.partition(":")[0]
        self.fingerprint = f"{kind}/{split}/{len(rows)}/{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        return self._store.where(int(self._rows[index]), self._names[index])

    def labels(self) -> np.ndarray:
        return self._labels

    def read(self, index: int) -> tuple[bytes, int]:
        encoded = self._store.read(int(self._rows[index]), self._names[index])
        return encoded, int(self._labels[index])


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
    inside = os.path.join(root.absolute(), "")  # noqa: PTH118 (with a slash at the end)
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
    try:
        return frozenset(os.listdir(folder or os.sep))  # noqa: PTH208 (millions of names)
    except (OSError, ValueError):  # no such folder, or no path at all
        return frozenset()


def open_listing(
    listing: Listing,
    resolution: int,
    *,
    train_split: str | None,
    eval_split: str | None,
    split_fraction: float | None,
    crop: Mapping[str, Any],
    on_error: str,
) -> tuple[Listed, Listed]:
    """Divides a list into the examples to train on and those to evaluate on.

    Args:
      listing: the list.
      resolution: side of the images, in pixels.
      train_split: name of the split to train on; None for the one that is named like it.
      eval_split: name of the split to evaluate on; None for that of validation, or else of tests.
      split_fraction: hold out this fraction of the training split instead; of a list without
        splits, None is 0.1.
      crop: options of `decode.decode_view`.
      on_error: "raise" refuses a list of which something is left out; "skip" accepts it.

    Raises:
      NotFound: a split does not exist.
      ValueError: the list is empty, has less than two classes, or something in it that cannot be
        used.
    """
    if not listing.names:
        lines = listing.left_out.lines()
        raise ValueError("; ".join((f"{listing.place}: no image is listed", *lines)))
    rows: dict[str, list[int]] = {}
    for row, split in enumerate(listing.splits or [""] * len(listing.names)):
        rows.setdefault(split, []).append(row)
    train_name, eval_name = _choose_splits(listing, rows, train_split, eval_split, split_fraction)
    label_of = _label_of(listing, rows[train_name])

    def labelled(split: str) -> tuple[list[int], list[int]]:
        known = [row for row in rows[split] if listing.labels[row] in label_of]
        if len(known) < len(rows[split]):
            for row in rows[split]:
                if (label := listing.labels[row]) not in label_of:
                    reason = f"with a label that the split {train_name} does not have"
                    listing.left_out.add(reason, f"{label} ({listing.names[row]})", split)
        return known, [label_of[listing.labels[row]] for row in known]

    kept, labels = labelled(train_name)
    if eval_name is None:
        names = [listing.names[row] for row in kept]
        parts = hold_out(names, labels, split_fraction or DEFAULT_FRACTION)
        split_names = (train_name or TRAIN, train_name or HELD_OUT)
        chosen = [([kept[i] for i in part], [labels[i] for i in part]) for part in parts]
    else:
        split_names, chosen = (train_name, eval_name), [(kept, labels), labelled(eval_name)]
    if on_error == "raise":
        listing.left_out.check((train_name, eval_name or train_name))
    train, evaluate = (
        Listed(listing, name, resolution, tuple(label_of), part, labels_of_part, crop)
        for name, (part, labels_of_part) in zip(split_names, chosen, strict=True)
    )
    unread = [
        f"{counted(len(members), 'image')} of the split {name} not read"
        + (f"; data.eval_split={name} evaluates on it" if roles(name) else "")
        for name, members in rows.items()
        if name not in (train_name, eval_name)
    ]
    train.notes = (*listing.left_out.lines(), *listing.notes, *unread)
    evaluate.notes = lacking(evaluate, train, held_out=eval_name is None)
    return train, evaluate


def _choose_splits(
    listing: Listing,
    rows: Mapping[str, Sequence[int]],
    train_split: str | None,
    eval_split: str | None,
    split_fraction: float | None,
) -> tuple[str, str | None]:
    """The split to train on ("" for all) and that to evaluate on; None to hold out a part."""
    place, listed = listing.place, ", ".join(rows)
    left_out = "".join(f"; {line}" for line in listing.left_out.lines())
    if not listing.splits:
        for field, name in (("train_split", train_split), ("eval_split", eval_split)):
            if name is not None:
                raise ValueError(f"data.{field}: got {name!r}, but {place} has no splits")
        return "", None
    for name in (train_split, eval_split):
        if name is not None and name not in rows:
            raise NotFound(f"{place}: no split {name!r}, its splits: {listed}{left_out}")
    by_role: dict[str, list[str]] = {}
    for name in sorted(rows, key=lambda n: (PLAIN.index(n) if n in PLAIN else len(PLAIN), n)):
        if len(named := roles(name)) == 1:
            by_role.setdefault(next(iter(named)), []).append(name)
    by_case = collections.defaultdict(list)
    for name in rows:
        by_case[name.lower()].append(name)
    if alike := next((names for names in by_case.values() if len(names) > 1), None):
        raise ValueError(f"{place}: the splits {' and '.join(alike)} differ only in case")
    if train_split is None:
        if TRAIN not in by_role:
            raise NotFound(
                f"{place}: no split to train on, its splits: {listed}; name one by data.train_split"
                f"{left_out}"
            )
        train_split = choose_split(place, by_role, TRAIN, "data.train_split")
    if split_fraction is not None:
        return train_split, None
    if eval_split is not None:
        if eval_split == train_split:
            raise ValueError(f"data.eval_split: got {eval_split!r}, which is trained on")
        return train_split, eval_split
    for role in (VALIDATION, TEST):
        if names := [name for name in by_role.get(role, ()) if name != train_split]:
            return train_split, choose_split(place, {role: names}, role, "data.eval_split")
    others = [name for name in rows if name != train_split]
    raise NotFound(
        f"{place}: no split to evaluate on, expected validation, val, valid or test beside "
        f"{train_split}, got: {', '.join(others) or 'none'}; name one by data.eval_split, or hold "
        f"out a part of {train_split} by data.split_fraction=0.1{left_out}"
    )


def _label_of(listing: Listing, training: Sequence[int]) -> dict[str, int]:
    """The number of each class, by its name."""
    if listing.class_names is not None:
        names: Sequence[str] = listing.class_names
    else:
        found = {listing.labels[row] for row in training}
        numbers = all(_is_whole(label) for label in found)
        names = sorted(found, key=int) if numbers else sorted(found)
    if len(names) < 2:
        raise ValueError(
            f"{listing.place}: expected labels of at least 2 classes, got: {', '.join(names)}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{listing.place}: two classes have the same name")
    return {name: label for label, name in enumerate(names)}


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 19 and str(int(text)) == text


def hold_out(
    names: Sequence[str], labels: Sequence[int], fraction: float
) -> tuple[list[int], list[int]]:
    """Divides images into those to train on and those held out.

    The same fraction of each class is held out, and at least one image of two: those whose names
    have the lowest hashes, so that nearly all images keep their place when others are added.

    Args:
      names: of the images.
      labels: of the images.
      fraction: to hold out.

    Returns:
      The places of both in `names`, ascending.
    """
    by_class: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        by_class.setdefault(label, []).append(place)
    held_out: set[int] = set()
    for members in by_class.values():
        members.sort(key=lambda place: hashlib.sha256(os.fsencode(names[place])).digest())
        count = max(round(fraction * len(members)), 1)
        held_out.update(members[: min(count, len(members) - 1)])
    places = range(len(names))
    return [p for p in places if p not in held_out], [p for p in places if p in held_out]


def lacking(evaluate: Encoded, train: Encoded, *, held_out: bool) -> tuple[str, ...]:
    """The classes without images in one of the two splits: what a result does not tell about.

    Args:
      evaluate, train: the splits.
      held_out: whether the one is held out of the other.
    """
    notes = []
    for split, purpose, advice in (
        (train, "train", ""),
        (evaluate, "evaluate", "; of a class with one image none can be held out"),
    ):
        counts = split.counts()
        if counts is None:
            continue
        names = [split.class_names[label] for label in np.flatnonzero(counts == 0)]
        if names:
            listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            notes.append(
                f"{len(names)} of {counted(split.num_classes, 'class')} without an image to "
                f"{purpose} on: {listed}" + (advice if held_out else "")
            )
    return tuple(notes)
