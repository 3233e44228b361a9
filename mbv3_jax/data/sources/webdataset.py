"""WebDataset tars: samples of neighbouring files with the same key, 000.jpg and 000.cls.

PATH is a tar, a shell pattern for several, such as PATH/train-{000..003}.tar, or a folder of tars.
The members are indexed once when they are opened, after which every image is read in place; nothing
is unpacked. The label is the text of KEY.cls, or the field "label" of KEY.json. A shard belongs to
the split in its name or that of its folder; without any, a part of each class is held out.
"""

import collections
import glob
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.errors import counted, first_line
from mbv3_jax.core.files import expand_user, open_regular
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.core.limits import OverLimit, check_limit
from mbv3_jax.data.divide import open_listing
from mbv3_jax.data.files import is_image, packed, walk
from mbv3_jax.data.layout import split_of_file
from mbv3_jax.data.listing import Listed, Listing
from mbv3_jax.data.source import NotFound, source

_CLS, _JSON, _LABEL = "cls", "json", "label"
_MOST_SHARDS = 100_000
_MOST_LABEL_BYTES = 1_000_000
_SHOWN = 6  # endings that a message names
_BLOCK = 512  # bytes; of zeros after the last member


@source("webdataset:PATH", default_recipe="modest", exif_rotate=True)
def open_webdataset(
    path: str,
    resolution: Resolution,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    split_fraction: float | None = None,
    crop: Mapping[str, Any],
    on_error: str = "raise",
) -> tuple[Listed, Listed]:
    """Opens the splits to train on and to evaluate on.

    Args:
      path: a tar, a shell pattern (with braces, *, ? or []), or a folder of tars.
      resolution: of the images in pixels: the side of squares, or (height, width).
      image_column: the ending of the images, as "jpg", where a sample has several.
      label_column: the field of KEY.json that holds the label; None for KEY.cls, or where there is
        none for the field "label".
      labels: one of `source.LABEL_KINDS`; None for "single".
      train_split, eval_split, split_fraction, crop, on_error: see `divide.open_listing`.

    Raises:
      NotFound: a tar or a split does not exist.
      ValueError: they are not such tars, or something in them cannot be used.
    """
    root, shards = _shards(path)
    listing = Listing(f"webdataset:{path}", Path(path), "sample", labels)
    splits = [split_of_file(name)[0] for name in shards]
    if None in splits and any(splits):
        raise ValueError(
            f"{root / shards[splits.index(None)]}: neither its name nor its folder's says which "
            "split it is of, that of others does"
        )
    images: list[tuple[int, int, int]] = []
    for number, (shard, split) in enumerate(zip(shards, splits, strict=True)):
        found = _samples(listing, root, shard, split, image_column, label_column)
        for key, name, label, offset, size in found:
            place = f"{shard}: {key}"
            listing.add(len(images), f"{shard}/{name}", label, split, place)
            images.append((number, offset, size))
    listing.store = _Members(root, shards, images)
    return open_listing(
        listing,
        resolution,
        train_split=train_split,
        eval_split=eval_split,
        split_fraction=split_fraction,
        crop=crop,
        on_error=on_error,
    )


class _Members:
    """A store of members of tars.

    Args:
      root: the folder of the tars.
      shards: the tars, relative to it.
      images: (number of the shard, offset in bytes, size in bytes) of each image.
    """

    def __init__(self, root: Path, shards: Sequence[str], images: Sequence[tuple[int, int, int]]):
        self._root, self._shards = root, list(shards)
        self._images = np.array(images, np.int64).reshape(-1, 3)

    def read(self, row: int, name: str) -> bytes:
        shard, offset, size = map(int, self._images[row])
        try:
            check_limit("MBV3_MAX_FILE_BYTES", size, "it has")
        except OverLimit as e:
            raise OSError(str(e)) from e
        with open_regular(self._root / self._shards[shard]) as file:
            return _read(file, offset, size)

    def where(self, row: int, name: str) -> str:
        shard = self._shards[int(self._images[row, 0])]
        return f"{self._root / shard}: {name.removeprefix(shard + '/')}"


def _read(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    content = file.read(size)
    if len(content) < size:
        raise OSError(f"the tar ends after {len(content):,} of its {size:,} bytes")
    return content


def _samples(
    listing: Listing,
    root: Path,
    shard: str,
    split: str | None,
    image_kind: str | None,
    label_field: str | None,
) -> Iterator[tuple[str, str, Any, int, int]]:
    """Yields (key, name of the image, label, its offset, its size) of the samples of a tar.

    What is not a whole sample goes to `listing.left_out`.
    """
    path = root / shard
    seen: set[str] = set()
    try:
        with open_regular(path) as file:
            for key, members in _grouped(_members(listing, path, file)):
                place = f"{shard}: {key}"
                named = {m.name.rpartition("/")[2].partition(".")[2].lower(): m for m in members}
                images = [
                    member
                    for kind, member in named.items()
                    if is_image(f"x.{kind}") and kind == (image_kind or kind).lower()
                ]
                if key in seen:
                    reason = "with a key that another sample of its tar has"
                    listing.left_out.add(reason, place, split)
                elif len(images) != 1 or len(named) < len(members):
                    reason = "without an image" if not images else "with several images"
                    kinds = ", ".join(list(named)[:_SHOWN]) + (", ..." * (len(named) > _SHOWN))
                    listing.left_out.add(reason, f"{place} ({kinds})", split)
                else:
                    seen.add(key)
                    try:
                        label = _label(file, named, label_field)
                    except (OSError, ValueError) as e:
                        reason = "with a label that cannot be read"
                        listing.left_out.add(reason, f"{place} ({e})", split)
                        continue
                    image = images[0]
                    yield key, image.name, label, image.offset_data, image.size
    except FileNotFoundError as e:
        raise NotFound(f"{path}: no such file") from e
    except OSError as e:
        raise NotFound(f"{path}: cannot be read: {e.strerror or e}") from e


def _members(listing: Listing, path: Path, file: Any) -> Iterator[tarfile.TarInfo]:
    """Yields the files in a tar, and says what else is there."""
    others: collections.Counter[str] = collections.Counter()
    size, end = os.fstat(file.fileno()).st_size, 0
    problem = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if member.offset < end or member.size < 0:  # a damaged header leads backwards
                    problem = f"damaged at byte {member.offset:,}; samples are missing"
                    break
                end = member.offset_data
                if end + member.size > size:
                    problem = f"cut off in the middle of {member.name}, which is left out"
                    break
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    others["links and other entries that hold no file"] += 1
                elif member.name.rpartition("/")[2].startswith((".", "__")):
                    others["hidden files"] += 1
                else:
                    if member.name.startswith("/") or ".." in member.name.split("/"):
                        others["names that lead out of the tar, which are read where they lie"] += 1
                    yield member
            if not problem:
                file.seek(tar.offset)  # tarfile takes a damaged header for the end
                mark = file.read(_BLOCK)
                if mark != bytes(_BLOCK):
                    kind = "damaged at" if len(mark) == _BLOCK else "cut off after"
                    problem = f"{kind} byte {tar.offset:,}; samples may be missing"
    except tarfile.TarError as e:
        file.seek(0)
        kind = packed(file.read(4)) if end == 0 else ""
        problem = f"damaged after byte {end:,}: {first_line(e)}"
        if kind:
            problem = f"{kind} to a plain .tar, whose images can be read one by one"
    if problem:
        listing.left_out.add_gap(f"{path}: {problem}")
    for what, count in others.items():
        listing.notes.append(f"{path}: {count} {what}")


def _grouped(
    members: Iterator[tarfile.TarInfo],
) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Yields the neighbouring members of the same key: the name up to the first dot."""
    key = ""
    group: list[tarfile.TarInfo] = []
    for member in members:
        folder, slash, name = member.name.rpartition("/")
        of_member = f"{folder}{slash}{name.partition('.')[0]}"
        if of_member != key and group:
            yield key, group
            group = []
        key = of_member
        group.append(member)
    if group:
        yield key, group


def _label(file: Any, named: Mapping[str, tarfile.TarInfo], field: str | None) -> Any:
    """The label of a sample; None if it has none.

    Raises:
      OSError, ValueError: it cannot be read.
    """
    if field is None and _CLS in named:
        return _text(file, named[_CLS]).decode("utf-8-sig")
    if _JSON not in named:
        return None
    return parse_json(_text(file, named[_JSON]), dict).get(field or _LABEL)


def _text(file: Any, member: tarfile.TarInfo) -> bytes:
    if member.size > _MOST_LABEL_BYTES:
        raise ValueError(f"{member.name} has {member.size:,} bytes")
    return _read(file, member.offset_data, member.size)


def _shards(path: str) -> tuple[Path, list[str]]:
    """The folder of the tars, and their paths relative to it, sorted."""
    root = expand_user(path, "data.name")
    if root.is_dir():
        names = [name.removeprefix("./") for name in walk(root, ".")]
        tars = [name for name in names if name.lower().endswith(".tar")]
        if not tars:
            packed = next((name for name in names if ".tar." in name or name.endswith("tgz")), None)
            hint = f"; {packed} is compressed, unpack it to a plain .tar" if packed else ""
            raise NotFound(f"{root}: no .tar in this folder{hint}")
        return root, sorted(tars)
    patterns = [os.fspath(root)] if root.exists() else sorted(_expanded(os.fspath(root)))
    files = [Path(file) for pattern in patterns for file in sorted(glob.glob(pattern)) or [pattern]]  # noqa: PTH207
    missing = [file for file in files if not file.exists()]
    if missing:
        raise NotFound(
            f"{missing[0]}: no such file"
            + (f" ({counted(len(missing), 'tar')} of {len(files)} missing)" if files[1:] else "")
        )
    common = os.path.commonpath([file.parent.absolute() for file in files])
    return Path(common), sorted({os.path.relpath(file.absolute(), common) for file in files})


def _expanded(pattern: str) -> list[str]:
    """The names that a pattern stands for, {000..003} or {a,b}, as in a shell.

    Raises:
      ValueError: they are too many.
    """
    results, waiting = [], [pattern]
    while waiting:
        text = waiting.pop()
        match = re.search(r"\{([^{}]*)\}", text)  # an innermost pair
        choices = _choices(match[1]) if match else None
        if match is None or choices is None:
            results.append(text)
        else:
            waiting += (text[: match.start()] + c + text[match.end() :] for c in choices)
        if len(results) + len(waiting) > _MOST_SHARDS:
            raise ValueError(f"{pattern}: stands for more than {_MOST_SHARDS:,} tars")
    return results


def _choices(inner: str) -> list[str] | None:
    if bounds := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inner):
        first, last = int(bounds[1]), int(bounds[2])
        if last - first >= _MOST_SHARDS:
            raise ValueError(f"{{{inner}}}: stands for more than {_MOST_SHARDS:,} tars")
        padded = max(len(text) if text[0] == "0" else 1 for text in bounds.groups())
        return [str(number).zfill(padded) for number in range(first, last + 1)]
    return inner.split(",") if "," in inner else None
