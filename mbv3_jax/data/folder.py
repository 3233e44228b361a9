"""A folder of class folders of image files.

Either with splits,

    PATH/train/CLASS/*.jpg   and   PATH/validation/CLASS/*.jpg   (or val, valid, test)

or PATH/CLASS/*.jpg alone; then a part of each class is held out. Files may lie deeper inside a
class folder. What begins with a dot is ignored. Labels number the class folders of the training
split in alphabetical order.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mbv3_jax.data.source import Encoded, NotFound

TRAIN = "train"
HELD_OUT = ("validation", "val", "valid", "test")  # the first there is, unless one is named
DEFAULT_FRACTION = 0.1
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Folder(Encoded):
    """Image files of one split, their paths kept as one string of bytes.

    Args:
      root: the folder that `files` are relative to.
      split: its name.
      resolution: side of the images, in pixels.
      class_names: one per label.
      files: (path relative to `root`, label), in the order that indices have.
      crop: options of `decode.decode_view`.
    """

    def __init__(self, root: Path, split: str, resolution: int, class_names, files, crop: Mapping):
        super().__init__({"exif_rotate": True, **crop})
        self.name, self.split, self.resolution = f"folder:{root}", split, resolution
        self.class_names = tuple(class_names)
        self._root = os.fspath(root)
        names = [os.fsencode(name) for name, _ in files]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._names = b"".join(names)
        self._labels = np.array([label for _, label in files], np.int32)
        # Of the names alone: to read all contents would take as long as an epoch.
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for part in (self._names, self._ends.tobytes(), self._labels.tobytes()):
            digest.update(part)
        self.fingerprint = f"folder/{split}/{len(names)}/{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._labels)

    def where(self, index):
        start = self._ends[index - 1] if index else 0
        return os.path.join(self._root, os.fsdecode(self._names[start : self._ends[index]]))  # noqa: PTH118 (once an example)

    def read(self, index):
        with open(self.where(index), "rb") as file:  # noqa: PTH123 (once an example)
            return file.read(), int(self._labels[index])


def open_folder(
    path: str, splits: tuple, resolution: int, crop: Mapping, *, strict: bool
) -> tuple[Folder, Folder]:
    """Opens the splits to train on and to evaluate on.

    Args:
      path: the folder.
      splits: (train_split, eval_split, split_fraction), each None unless given; see
        `sources.open_pair`.
      resolution: side of the images, in pixels.
      crop: options of `decode.decode_view`.
      strict: refuse files whose name is not an image's, and empty class folders.

    Raises:
      NotFound: there is no such folder or split.
      ValueError: it is not laid out like this.
    """
    root = Path(path).expanduser()
    train_split, eval_split, fraction = splits
    folders = _folders(root)
    named = [n for n in (train_split, eval_split) if n is not None]
    layout = [n for n in (TRAIN, *HELD_OUT) if n in folders and _folders(root / n)]
    if not (named or layout):
        classes = folders
        _need_classes(root, classes)
        files = _files(root, classes, classes, strict)
        held_out = _held_out(files, fraction or DEFAULT_FRACTION)
        return tuple(
            Folder(root, split, resolution, classes, chosen, crop)
            for split, chosen in (
                (TRAIN, [f for f in files if f not in held_out]),
                ("held_out", [f for f in files if f in held_out]),
            )
        )
    train = _need_split(root, train_split or TRAIN, folders)
    classes = _folders(root / train)
    _need_classes(root / train, classes)
    files = _files(root / train, classes, classes, strict)

    def make(split, chosen):
        return Folder(root / split, split, resolution, classes, chosen, crop)

    if fraction is not None:
        held_out = _held_out(files, fraction)
        return (
            make(train, [f for f in files if f not in held_out]),
            make(train, [f for f in files if f in held_out]),
        )
    present = [name for name in HELD_OUT if name in folders]
    if eval_split is None and not present:
        raise NotFound(
            f"{root}: no split to evaluate on, expected a folder {', '.join(HELD_OUT)} beside "
            f"{train}; or hold out a part of {train} by data.split_fraction=0.1"
        )
    evaluate = _need_split(root, eval_split or present[0], folders)
    there = _folders(root / evaluate)
    _need_classes(root / evaluate, there)
    if unknown := [name for name in there if name not in set(classes)]:
        raise ValueError(
            f"{root / evaluate / unknown[0]}: a class that {root / train} does not have "
            f"({len(unknown)} such)"
        )
    return make(train, files), make(evaluate, _files(root / evaluate, there, classes, strict))


def _folders(path: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return sorted(e.name for e in _scan(path) if e.is_dir())


def _scan(path: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
    except FileNotFoundError as e:
        raise NotFound(f"{path}: no such folder") from e
    except NotADirectoryError as e:
        raise NotFound(f"{path}: not a folder") from e
    except OSError as e:
        raise NotFound(f"{path}: cannot be read: {e.strerror}") from e


def _need_split(root: Path, name: str, folders: Iterable[str]) -> str:
    if name not in folders:
        there = ", ".join(folders) or "none"
        raise NotFound(f"{root / name}: no such split; the folders in {root}: {there}")
    return name


def _need_classes(path: Path, classes: list[str]) -> None:
    loose = next((e.name for e in _scan(path) if not e.is_dir() and is_image(e.name)), None)
    if loose is not None:
        raise ValueError(f"{path / loose}: an image outside of any class folder")
    if len(classes) < 2:
        found = ", ".join(classes) or "none"
        raise ValueError(f"{path}: expected a folder for each of at least 2 classes, got: {found}")


def is_image(name: str) -> bool:
    """Whether a file has the name of an image."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES  # noqa: PTH122 (once an example)


def _files(base: Path, names, classes, strict: bool) -> list[tuple[str, int]]:
    """(path relative to `base`, label) of all files in the class folders `names`, sorted."""
    label_of = {name: label for label, name in enumerate(classes)}
    files = []
    for name in names:
        found = list(walk(base / name, name))
        if strict:
            if not found:
                raise ValueError(
                    f"{base / name}: an empty class folder; remove it, or set data.on_error=skip"
                )
            for file in found:
                if not is_image(file):
                    raise ValueError(
                        f"{base / file}: not an image file by its name (they end in "
                        f"{' '.join(_SUFFIXES)}); remove it, or set data.on_error=skip"
                    )
        files += ((file, label_of[name]) for file in found)
    if not files:
        raise ValueError(f"{base}: no image in any class folder")
    return files


def walk(folder: Path, relative: str) -> Iterable[str]:
    """All files in a folder, however deep, sorted in each; `relative` stands for the folder."""
    for entry in _scan(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(folder / entry.name, f"{relative}/{entry.name}")
        elif not entry.is_dir():  # a link to a folder might lead round in circles
            yield f"{relative}/{entry.name}"


def _held_out(files: list[tuple[str, int]], fraction: float) -> set[tuple[str, int]]:
    """Of each class the same part, at least one file of two: those whose names hash lowest.

    So nearly all files stay where they are when others are added.
    """
    by_class: dict[int, list] = {}
    for file in files:
        by_class.setdefault(file[1], []).append(file)
    held_out = set()
    for members in by_class.values():
        members.sort(key=lambda f: hashlib.sha256(os.fsencode(f[0])).digest())
        count = max(round(fraction * len(members)), 1)
        held_out.update(members[: min(count, len(members) - 1)])
    return held_out


# Image files as they come: named one by one, in folders, or in lists; without labels.


def find_files(paths: Iterable[str], lists: Iterable[str] = ()) -> list[str]:
    """The image files that a command names.

    Args:
      paths: files; folders, in which all files with an image's name are found, however deep;
        and "@LIST" for a list.
      lists: text files with a path a line, of a file or a folder.

    Returns:
      Paths in the order of the arguments, those of a folder sorted. A file need not be there:
      who reads it says so.

    Raises:
      source.NotFound: a list that cannot be read, a folder without images, or nothing at all.
    """
    paths = [*paths, *(f"@{name}" for name in lists)]
    found = []
    for path in paths:
        for one in _lines(Path(path[1:])) if path.startswith("@") else [path]:
            found += _inside(one) if os.path.isdir(one) else [one]  # noqa: PTH112 (once an image)
    if not found:
        raise NotFound("no image given: name files, folders, or a list as @FILE")
    return found


def _inside(folder: str) -> list[str]:
    found = [name for name in walk(Path(folder), folder.rstrip("/")) if is_image(name)]
    if not found:
        raise NotFound(f"{folder}: no image in this folder")
    return found


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "not a text file"
        raise NotFound(f"{path}: this list cannot be read: {reason}") from e
    return [line for line in lines if line]


class Files(Encoded):
    """Image files in the given order; the label of each is 0.

    Args:
      paths: where they are.
      resolution: side of the images, in pixels.
      crop: options of `decode.decode_view`.
    """

    name, split, class_names, fingerprint = "files", "all", ("",), "files"

    def __init__(self, paths: Sequence[str], resolution: int, crop):
        super().__init__(crop)
        self.resolution, self._paths = resolution, list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def where(self, index):
        return self._paths[index]

    def read(self, index):
        with open(self._paths[index], "rb") as file:  # noqa: PTH123 (once an image)
            return file.read(), 0
