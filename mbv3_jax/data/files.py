"""Image files without labels: finding them in folders and lists, and reading them."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mbv3_jax.core.files import read_bytes, read_text
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.source import NotFound

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Files(Encoded):
    """Image files in the given order; every label is 0.

    Args:
      paths: the files.
      resolution: side of the images, in pixels.
      crop: options of `decode.decode_view`.
    """

    name, split, class_names, fingerprint = "files", "all", ("",), "files"

    def __init__(self, paths: Sequence[str], resolution: int, crop: Mapping[str, Any]):
        super().__init__(crop)
        self.resolution, self._paths = resolution, list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def where(self, index: int) -> str:
        return self._paths[index]

    def read(self, index: int) -> tuple[bytes, int]:
        return read_bytes(self._paths[index]), 0


def find_files(paths: Iterable[str], lists: Iterable[str] = ()) -> list[str]:
    """The image files that a command names.

    Args:
      paths: files; folders, in which all files with the name of an image are found at any depth;
        and "@LIST" for a list.
      lists: text files with one path per line, of a file or of a folder.

    Returns:
      Paths in the order of the arguments, those of a folder sorted. Files that are named one by one
      need not exist: reading them reports that.

    Raises:
      NotFound: a list cannot be read, a folder has no images, or nothing is named at all.
    """
    files: list[str] = []
    for path in [*paths, *(f"@{name}" for name in lists)]:
        for named in _lines(Path(path[1:])) if path.startswith("@") else [path]:
            is_folder = os.path.isdir(named)  # noqa: PTH112 (once per image)
            files += _images_in(named) if is_folder else [named]
    if not files:
        raise NotFound("no image given: name files, folders, or a list as @FILE")
    return files


def _images_in(folder: str) -> list[str]:
    files = [name for name in walk(Path(folder), folder.rstrip("/")) if is_image(name)]
    if not files:
        raise NotFound(f"{folder}: no image in this folder")
    return files


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "not a text file"
        raise NotFound(f"{path}: this list cannot be read: {reason}") from e
    return [line for line in lines if line]


def is_image(name: str) -> bool:
    """Whether a file has the name of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (once per image)


def walk(folder: Path, prefix: str) -> Iterator[str]:
    """Yields all files in a folder at any depth, each folder sorted.

    Args:
      folder: where to look. Names that begin with a dot are skipped.
      prefix: what stands for the folder in the results.
    """
    # A list of what is still to be looked at: folders may be nested more deeply than Python calls.
    waiting = [(entry, prefix) for entry in reversed(scan(folder))]
    while waiting:
        entry, above = waiting.pop()
        name = f"{above}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            waiting += ((inner, name) for inner in reversed(scan(Path(entry.path))))
        elif not is_folder(entry):  # a link to a folder could lead back to a folder above it
            yield name


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it reports that
        return False


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder whose names do not begin with a dot, sorted by name.

    Raises:
      NotFound: there is no such folder, or it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
    except FileNotFoundError as e:
        raise NotFound(f"{folder}: no such folder") from e
    except NotADirectoryError as e:
        raise NotFound(f"{folder}: not a folder") from e
    except OSError as e:
        raise NotFound(f"{folder}: cannot be read: {e.strerror}") from e
