"""Which images are for training and which are held out, and the numbers of their classes."""

import collections
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.errors import counted
from mbv3_jax.data.layout import PLAIN, TEST, TRAIN, VALIDATION, choose_split, roles
from mbv3_jax.data.listing import Listed, Listing
from mbv3_jax.data.source import NotFound

DEFAULT_FRACTION = 0.1
HELD_OUT = "held_out"  # the name of what was held out of data without splits


class Labelled(Protocol):
    """A source that knows which classes its images have."""

    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int: ...

    def present(self) -> np.ndarray: ...


def open_listing(
    listing: Listing,
    resolution: Resolution,
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
      resolution: of the images in pixels: the side of squares, or (height, width).
      train_split: name of the split to train on; None for the one that is named like it.
      eval_split: name of the split to evaluate on; None for that of validation, or else of tests.
      split_fraction: hold out this fraction of the training split instead; of a list without
        splits, None is 0.1.
      crop: options of `decode.decode_view`.
      on_error: "raise" refuses a list with entries that are left out; "skip" accepts it.

    Raises:
      NotFound: a split does not exist.
      ValueError: the list is empty, has less than two classes, or something in it that cannot be
        used.
    """
    if not listing.names:
        lines = *listing.left_out.lines(), *listing.notes
        raise ValueError("; ".join((f"{listing.place}: no image is listed", *lines)))
    rows: dict[str, list[int]] = {}
    for row, split in enumerate(listing.splits or [""] * len(listing.names)):
        rows.setdefault(split, []).append(row)
    train_name, eval_name = _choose_splits(listing, rows, train_split, eval_split, split_fraction)
    label_of = _label_of(listing, rows[train_name])

    def labelled(split: str) -> tuple[list[int], np.ndarray]:
        known = []
        for row in rows[split]:
            unknown = [name for name in _classes(listing, row) if name not in label_of]
            if unknown:
                reason = f"with a label that the split {train_name} does not have"
                listing.left_out.add(reason, f"{unknown[0]} ({listing.names[row]})", split)
            else:
                known.append(row)
        return known, _label_array(listing, known, label_of)

    kept, labels = labelled(train_name)
    if eval_name is None:
        names = [listing.names[row] for row in kept]
        strata = labels.tolist() if listing.kind == "single" else [0] * len(names)
        parts = hold_out(names, strata, split_fraction or DEFAULT_FRACTION)
        split_names = [train_name or TRAIN, train_name or HELD_OUT]
        chosen = [([kept[i] for i in part], labels[part]) for part in parts]
    else:
        split_names, chosen = [train_name, eval_name], [(kept, labels), labelled(eval_name)]
    if on_error == "raise":
        listing.left_out.check((train_name, eval_name or train_name))
    opened = [train_name, eval_name or train_name]
    test_name = _test_split(rows, opened)
    if test_name is not None:
        tests = labelled(test_name)
        wrong = on_error == "raise" and listing.left_out.lines(splits=[test_name])
        if len(tests[0]) and not wrong:
            split_names.append(test_name)
            opened.append(test_name)
            chosen.append(tests)
    train, evaluate, *test = (
        Listed(listing, name, resolution, tuple(label_of), part, labels_of_part, crop)
        for name, (part, labels_of_part) in zip(split_names, chosen, strict=True)
    )
    evaluate.test, evaluate.divided = test[0] if test else None, not train_name
    unread = [
        f"{counted(len(members), 'image')} of the split {name} not read"
        + (f"; data.eval_split={name} evaluates on it" if roles(name) else "")
        for name, members in rows.items()
        if name not in opened
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
                f"{place}: no split to train on, its splits: {listed}; name one with "
                f"data.train_split{left_out}"
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
        f"{train_split}, got: {', '.join(others) or 'none'}; name one with data.eval_split, or "
        f"hold out a part of {train_split} with data.split_fraction=0.1{left_out}"
    )


def _test_split(rows: Mapping[str, Sequence[int]], opened: Collection[str]) -> str | None:
    """The test split beside those that are opened; None if there is none, or several."""
    names = [name for name in rows if roles(name) == {TEST} and name not in opened]
    if any(TEST in roles(name) for name in opened):
        return None
    names = [name for name in names if name in PLAIN] or names
    return names[0] if len(names) == 1 else None


def _label_of(listing: Listing, training: Sequence[int]) -> dict[str, int]:
    """The number of each class, by its name."""
    if listing.class_names or listing.columns:
        names: Sequence[str] = listing.class_names or listing.columns
    else:
        found = {name for row in training for name in _classes(listing, row)}
        numbers = all(_is_whole(label) for label in found)
        names = sorted(found, key=int) if numbers else sorted(found)
        _note_odd_names(listing, names)
    if len(names) < 2:
        raise ValueError(
            f"{listing.place}: expected labels of at least 2 classes, got: {', '.join(names)}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{listing.place}: two classes have the same name")
    return {name: label for label, name in enumerate(names)}


def _note_odd_names(listing: Listing, names: Sequence[str]) -> None:
    """Notes what may be several classes, or the same one."""
    several, advice = ";", "data.labels=multi reads several"
    if listing.kind == "multi":  # they have been divided at semicolons
        several, advice = "|,[", "several are separated by semicolons"
    joined = next((name for name in names if set(several) & set(name)), None)
    if joined is not None:
        listing.notes.append(f"{joined} is taken for one class; {advice}")
    if note := alike(names):
        listing.notes.append(note)


def alike(names: Sequence[str]) -> str:
    """A note on classes whose names differ only in case; "" if there are none."""
    written: dict[str, str] = {}
    for name in names:
        other = written.setdefault(name.casefold(), name)
        if other != name:
            return f"{other} and {name} are taken for two classes"
    return ""


def _classes(listing: Listing, row: int) -> tuple[str, ...]:
    """The classes that an image has according to its label; probabilities name none."""
    if listing.kind == "soft":
        return ()
    return (listing.labels[row],) if listing.kind == "single" else listing.labels[row]


def _label_array(listing: Listing, rows: Sequence[int], label_of: Mapping[str, int]) -> np.ndarray:
    """The labels of images: int32 [images] or float32 [images, classes]."""
    if listing.kind == "single":
        return np.array([label_of[listing.labels[row]] for row in rows], np.int32)
    values = np.zeros((len(rows), len(label_of)), np.float32)
    for i, row in enumerate(rows):
        if listing.kind == "soft":
            values[i] = listing.labels[row]
        else:
            values[i, [label_of[name] for name in listing.labels[row]]] = 1
    return values


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


def lacking(evaluate: Labelled, train: Labelled, *, held_out: bool) -> tuple[str, ...]:
    """The classes without images in one of the two splits, about which a result says nothing.

    Args:
      evaluate, train: the splits.
      held_out: whether the one is held out of the other.
    """
    notes = []
    for split, purpose, advice in (
        (train, "train", ""),
        (evaluate, "evaluate", "; of a class with one image none can be held out"),
    ):
        names = [split.class_names[label] for label in np.flatnonzero(~split.present())]
        if names:
            listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            notes.append(
                f"{len(names)} of {counted(split.num_classes, 'class')} without an image to "
                f"{purpose} on: {listed}" + (advice if held_out else "")
            )
    return tuple(notes)
