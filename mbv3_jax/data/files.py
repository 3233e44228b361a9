"""Image files as they come: named one by one, in folders, or in lists; without labels."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mbv3_jax.data.folder import is_image, walk
from mbv3_jax.data.source import Encoded, NotFound


def find(paths: Iterable[str], lists: Iterable[str] = ()) -> list[str]:
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
