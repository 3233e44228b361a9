"""A folder of class folders of image files.

Either with splits,

    PATH/train/CLASS/*.jpg   and   PATH/validation/CLASS/*.jpg   (or val, valid, test)

in any case and with the usual synonyms (see `layout.roles`). A test split beside a validation split
is used only for a last evaluation, see `Source.test`. Or only PATH/CLASS/*.jpg, of which a fraction
of each class is then held out. Files may lie deeper inside a class folder. Names that begin with a
dot are not read. Labels number the class folders of the training split in alphabetical order.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.errors import counted
from mbv3_jax.core.files import expand_user, read_bytes
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.divide import DEFAULT_FRACTION, HELD_OUT, alike, hold_out, lacking
from mbv3_jax.data.files import (
    Skipped,
    endings,
    is_folder,
    is_image,
    scan,
    suffixes,
    walk,
)
from mbv3_jax.data.layout import (
    PLAIN,
    TEST,
    TRAIN,
    VALIDATION,
    check_classes_are_no_splits,
    choose_split,
    find_splits,
    roles,
    subfolders,
)
from mbv3_jax.data.listing import Names
from mbv3_jax.data.source import NotFound, source

LabelledFile = tuple[str, int]  # (path relative to the split, label)


class Folder(Encoded):
    """The image files of one split.

    Args:
      root: the folder that `files` are relative to.
      split: the name of the split.
      resolution: of the images in pixels: the side of squares, or (height, width).
      class_names: one name per label.
      files: (path relative to `root`, label), in the order of the indices.
      crop: options of `decode.decode_view`.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        resolution: Resolution,
        class_names: Sequence[str],
        files: Sequence[LabelledFile],
        crop: Mapping[str, Any],
    ):
        super().__init__(crop)
        self.name, self.split, self.resolution = f"folder:{root}", split, resolution
        self.class_names = tuple(class_names)
        self._root = os.fspath(root)
        self._names = Names(name for name, _ in files)
        self._labels = np.array([label for _, label in files], np.int32)
        # Of the names only: reading all contents would take as long as an epoch.
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        self._names.update(digest)
        digest.update(self._labels.tobytes())
        self.fingerprint = f"folder/{split}/{len(files)}/{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._labels)

    def where(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])  # noqa: PTH118 (once per example)

    def labels(self) -> np.ndarray:
        return self._labels

    def present(self) -> np.ndarray:
        """Whether there are images of each class, bool [classes]."""
        return np.bincount(self._labels, minlength=self.num_classes) > 0

    def read(self, index: int) -> tuple[bytes, int]:
        return read_bytes(self.where(index)), int(self._labels[index])


@source("folder:PATH", default_recipe="modest", exif_rotate=True)
def open_folder(
    path: str,
    resolution: Resolution,
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
      resolution: of the images in pixels: the side of squares, or (height, width).
      train_split: name of the split to train on; None for the one that is named like it.
      eval_split: name of the split to evaluate on; None for that of validation, or else of tests.
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
    folders = subfolders(root)
    splits = find_splits(root, folders)
    skipped = Skipped()
    if train_split is None and eval_split is None and not splits:
        _check_classes(root, folders)
        files = _files(root, folders, folders, strict, skipped)
        remark = check_classes_are_no_splits(root, folders, (name for name, _ in files))
        kept, held_out = _hold_out(files, split_fraction or DEFAULT_FRACTION)
        train = Folder(root, TRAIN, resolution, folders, kept, crop)
        evaluate = Folder(root, HELD_OUT, resolution, folders, held_out, crop)
        evaluate.divided = True
        train.notes = tuple(filter(None, (remark, alike(folders), *skipped.notes)))
        evaluate.notes = lacking(evaluate, train, held_out=train.name == evaluate.name)
        return train, evaluate
    if train_split is None:
        has_one = TRAIN in splits and TRAIN not in folders
        train_split = choose_split(root, splits, TRAIN, "data.train_split") if has_one else TRAIN
    train_split = _check_split(root, train_split, folders, "train")
    classes = subfolders(root / train_split)
    _check_classes(root / train_split, classes)
    files = _files(root / train_split, classes, classes, strict, skipped)

    def make(split: str, chosen: Sequence[LabelledFile]) -> Folder:
        return Folder(root / split, split, resolution, classes, chosen, crop)

    if split_fraction is not None:
        kept, held_out = _hold_out(files, split_fraction)
        train, evaluate = make(train_split, kept), make(train_split, held_out)
    else:
        evaluate_on = eval_split or _held_out_split(root, splits, folders, train_split)
        _check_split(root, evaluate_on, folders, "eval")
        eval_classes = subfolders(root / evaluate_on)
        _check_classes(root / evaluate_on, eval_classes)
        if unknown := [name for name in eval_classes if name not in set(classes)]:
            raise ValueError(
                f"{root / evaluate_on / unknown[0]}: a class that {root / train_split} does not "
                f"have ({len(unknown)} in total)"
            )
        train = make(train_split, files)
        evaluate = make(
            evaluate_on, _files(root / evaluate_on, eval_classes, classes, strict, skipped)
        )
    opened = {train.split, evaluate.split}
    if test := _test_files(root, splits, opened, classes, strict):
        evaluate.test = make(*test)
        opened.add(test[0])
    unread = _unread(root, opened, folders)
    train.notes = tuple(filter(None, (*unread, alike(classes), *skipped.notes)))
    evaluate.notes = lacking(evaluate, train, held_out=train.name == evaluate.name)
    return train, evaluate


def _test_files(
    root: Path,
    splits: Mapping[str, Sequence[str]],
    opened: Collection[str],
    classes: Sequence[str],
    strict: bool,
) -> tuple[str, list[LabelledFile]] | None:
    """The test split beside the two that are opened, and its files.

    Returns:
      None if there is no such split, if it is unclear which one it is, or if it is not laid out
      like the training split, for instance because it has no labels; `_unread` then mentions it.
    """
    names = [name for name in splits.get(TEST, ()) if name not in opened]
    if not names or any(TEST in roles(name) for name in opened):
        return None
    if len(names) > 1 and names[0] not in PLAIN:
        return None
    labelled = subfolders(root / names[0])
    if not set(labelled) <= set(classes):
        return None
    try:
        return names[0], _files(root / names[0], labelled, classes, strict, Skipped())
    except ValueError:
        return None


def _held_out_split(
    root: Path, splits: Mapping[str, Sequence[str]], folders: Sequence[str], train: str
) -> str:
    """The split to evaluate on if none is named."""
    splits = {role: [n for n in names if n != train] for role, names in splits.items()}
    for role in (VALIDATION, TEST):
        # One with a plain name counts in any case; what is wrong in it is said later.
        plain = [n for n in PLAIN if n in folders and n != train and role in roles(n)]
        if plain:
            return plain[0]
        if splits.get(role):
            return choose_split(root, splits, role, "data.eval_split")
    others = [name for name in folders if name != train]
    raise NotFound(
        f"{root}: no split to evaluate on, expected a folder validation, val, valid, test beside "
        f"{train}, got: {', '.join(others) or 'none'}; name one with data.eval_split, or hold out "
        f"a part of {train} with data.split_fraction=0.1"
    )


def _unread(root: Path, splits: Collection[str], folders: Sequence[str]) -> tuple[str, ...]:
    """The folders beside the splits that are read, each with its number of images."""
    notes = []
    for name in folders:
        if name not in splits:
            count = sum(map(is_image, walk(root / name, name)))
            evaluate = f"; data.eval_split={name} evaluates on it" if roles(name) else ""
            notes.append(f"{root / name}: {counted(count, 'image')} not read{evaluate}")
    if loose := sum(is_image(e.name) and not is_folder(e) for e in scan(root)):
        notes.append(f"{root}: {counted(loose, 'image')} beside the splits not read")
    return tuple(notes)


def _check_split(root: Path, name: str, folders: Iterable[str], kind: str) -> str:
    if name not in folders:
        listed = ", ".join(folders) or "none"
        raise NotFound(
            f"{root / name}: no such split; the folders in {root}: {listed}; choose one "
            f"with data.{kind}_split"
        )
    return name


def _check_classes(path: Path, classes: Sequence[str]) -> None:
    loose = next((e.name for e in scan(path) if not is_folder(e) and is_image(e.name)), None)
    if loose is not None:
        raise ValueError(f"{path / loose}: an image outside of any class folder")
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as e:
            raise ValueError(
                f"{path / name}: the name of this class is not text in UTF-8; rename the folder"
            ) from e
    if len(classes) < 2:
        inner = subfolders(path / classes[0]) if classes else []
        instead = (
            f"; or is {path / classes[0]} meant, with the folders {', '.join(inner[:4])}?"
            if inner
            else ""
        )
        raise ValueError(
            f"{path}: expected a folder for each of at least 2 classes, got: "
            f"{', '.join(classes) or 'none'}{instead}"
        )


def _files(
    base: Path, names: Sequence[str], classes: Sequence[str], strict: bool, skipped: Skipped
) -> list[LabelledFile]:
    """The files in the class folders `names` of `base`, sorted; `classes` decides their labels.

    `skipped` gets what is left out.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    files: list[LabelledFile] = []
    for name in names:
        members = list(walk(base / name, name, skipped))
        if strict and not members:
            empty = f"{base / name}: an empty class folder; remove it, or set data.on_error=skip"
            raise ValueError("; ".join((empty, *skipped.notes)))
        others = [file for file in members if not is_image(file)] if strict else []
        if others:
            raise ValueError(
                f"{base / others[0]}: not an image file by its name (they end in "
                f"{' '.join(suffixes())}); remove it, or set data.on_error=skip. In this class: "
                f"{endings(others)}"
            )
        files += ((file, label_of[name]) for file in members)
    if not files:
        raise ValueError(f"{base}: no image in any class folder")
    return files


def _hold_out(
    files: Sequence[LabelledFile], fraction: float
) -> tuple[list[LabelledFile], list[LabelledFile]]:
    names, labels = zip(*files, strict=True)
    kept, held_out = hold_out(names, labels, fraction)
    return [files[i] for i in kept], [files[i] for i in held_out]
