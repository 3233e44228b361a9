"""A folder of class folders of image files.

Either with splits,

    PATH/train/CLASS/*.jpg   and   PATH/validation/CLASS/*.jpg   (or val, valid, test)

or PATH/CLASS/*.jpg alone, of which a fraction of each class is then held out. Files may lie deeper
inside a class folder. Names that begin with a dot are ignored. Labels number the class folders of
the training split in alphabetical order.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbv3_jax.core.files import expand_user, read_bytes
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.files import SUFFIXES, is_folder, is_image, scan, walk
from mbv3_jax.data.source import NotFound, source

TRAIN = "train"
HELD_OUT = ("validation", "val", "valid", "test")  # the first that exists, unless one is named
DEFAULT_FRACTION = 0.1

LabelledFile = tuple[str, int]  # (path relative to the split, label)


class Folder(Encoded):
    """The image files of one split.

    Args:
      root: the folder that `files` are relative to.
      split: the name of the split.
      resolution: side of the images, in pixels.
      class_names: one name per label.
      files: (path relative to `root`, label), in the order of the indices.
      crop: options of `decode.decode_view`.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        resolution: int,
        class_names: Sequence[str],
        files: Sequence[LabelledFile],
        crop: Mapping[str, Any],
    ):
        super().__init__(crop)
        self.name, self.split, self.resolution = f"folder:{root}", split, resolution
        self.class_names = tuple(class_names)
        self._root = os.fspath(root)
        # One string of bytes takes a fraction of the memory of a list of paths.
        names = [os.fsencode(name) for name, _ in files]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._names = b"".join(names)
        self._labels = np.array([label for _, label in files], np.int32)
        # Of the names only: reading all contents would take as long as an epoch.
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for part in (self._names, self._ends.tobytes(), self._labels.tobytes()):
            digest.update(part)
        self.fingerprint = f"folder/{split}/{len(names)}/{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._labels)

    def where(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]])
        return os.path.join(self._root, name)  # noqa: PTH118 (once per example)

    def read(self, index: int) -> tuple[bytes, int]:
        return read_bytes(self.where(index)), int(self._labels[index])


@source("folder:PATH", default_recipe="modest", exif_rotate=True)
def open_folder(
    path: str,
    resolution: int,
    *,
    train_split: str | None = None,
    eval_split: str | None = None,
    split_fraction: float | None = None,
    crop: Mapping[str, Any],
    on_error: str = "raise",
) -> tuple[Folder, Folder]:
    """Opens the splits to train on and to evaluate on.

    Args:
      path: the folder.
      resolution: side of the images, in pixels.
      train_split: name of the split to train on; None for "train".
      eval_split: name of the split to evaluate on; None for the first of `HELD_OUT` that exists.
      split_fraction: hold out this fraction of the training split instead; of a folder without
        splits, None is 0.1.
      crop: options of `decode.decode_view`.
      on_error: "raise" refuses files that do not have the name of an image, and empty class
        folders; "skip" accepts them.

    Raises:
      NotFound: the folder or a split does not exist.
      ValueError: the folder is not laid out like this.
    """
    root, strict = expand_user(path, "data.name"), on_error == "raise"
    folders = _folders(root)
    layout = [n for n in (TRAIN, *HELD_OUT) if n in folders and _folders(root / n)]
    if train_split is None and eval_split is None and not layout:
        _check_classes(root, folders)
        files = _files(root, folders, folders, strict)
        kept, held_out = _hold_out(files, split_fraction or DEFAULT_FRACTION)
        return (
            Folder(root, TRAIN, resolution, folders, kept, crop),
            Folder(root, "held_out", resolution, folders, held_out, crop),
        )
    train = _check_split(root, train_split or TRAIN, folders)
    classes = _folders(root / train)
    _check_classes(root / train, classes)
    files = _files(root / train, classes, classes, strict)

    def make(split: str, chosen: Sequence[LabelledFile]) -> Folder:
        return Folder(root / split, split, resolution, classes, chosen, crop)

    if split_fraction is not None:
        kept, held_out = _hold_out(files, split_fraction)
        return make(train, kept), make(train, held_out)
    if eval_split is None:
        eval_split = next((name for name in HELD_OUT if name in folders), None)
    if eval_split is None:
        raise NotFound(
            f"{root}: no split to evaluate on, expected a folder {', '.join(HELD_OUT)} beside "
            f"{train}; or hold out a part of {train} by data.split_fraction=0.1"
        )
    evaluate = _check_split(root, eval_split, folders)
    eval_classes = _folders(root / evaluate)
    _check_classes(root / evaluate, eval_classes)
    if unknown := [name for name in eval_classes if name not in set(classes)]:
        raise ValueError(
            f"{root / evaluate / unknown[0]}: a class that {root / train} does not have "
            f"({len(unknown)} in total)"
        )
    return make(train, files), make(
        evaluate, _files(root / evaluate, eval_classes, classes, strict)
    )


def _folders(path: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return [entry.name for entry in scan(path) if is_folder(entry)]


def _check_split(root: Path, name: str, folders: Iterable[str]) -> str:
    if name not in folders:
        listed = ", ".join(folders) or "none"
        raise NotFound(f"{root / name}: no such split; the folders in {root}: {listed}")
    return name


def _check_classes(path: Path, classes: Sequence[str]) -> None:
    loose = next((e.name for e in scan(path) if not is_folder(e) and is_image(e.name)), None)
    if loose is not None:
        raise ValueError(f"{path / loose}: an image outside of any class folder")
    if len(classes) < 2:
        listed = ", ".join(classes) or "none"
        raise ValueError(f"{path}: expected a folder for each of at least 2 classes, got: {listed}")


def _files(
    base: Path, names: Sequence[str], classes: Sequence[str], strict: bool
) -> list[LabelledFile]:
    """The files in the class folders `names` of `base`, sorted; `classes` decides their labels."""
    label_of = {name: label for label, name in enumerate(classes)}
    files: list[LabelledFile] = []
    for name in names:
        members = list(walk(base / name, name))
        if strict and not members:
            raise ValueError(
                f"{base / name}: an empty class folder; remove it, or set data.on_error=skip"
            )
        other = next((file for file in members if not is_image(file)), None) if strict else None
        if other is not None:
            raise ValueError(
                f"{base / other}: not an image file by its name (they end in "
                f"{' '.join(SUFFIXES)}); remove it, or set data.on_error=skip"
            )
        files += ((file, label_of[name]) for file in members)
    if not files:
        raise ValueError(f"{base}: no image in any class folder")
    return files


def _hold_out(
    files: Sequence[LabelledFile], fraction: float
) -> tuple[list[LabelledFile], list[LabelledFile]]:
    """Splits files into those to train on and those held out.

    The same fraction of each class is held out, and at least one file of two: the files whose names
    have the lowest hashes, so that nearly all files keep their place when others are added.
    """
    by_class: dict[int, list[LabelledFile]] = {}
    for file in files:
        by_class.setdefault(file[1], []).append(file)
    held_out: set[LabelledFile] = set()
    for members in by_class.values():
        members.sort(key=lambda file: hashlib.sha256(os.fsencode(file[0])).digest())
        count = max(round(fraction * len(members)), 1)
        held_out.update(members[: min(count, len(members) - 1)])
    return [f for f in files if f not in held_out], [f for f in files if f in held_out]
