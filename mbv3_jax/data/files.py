"""Image files without labels: finding them in folders and lists, and reading them."""

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.errors import counted
from mbv3_jax.core.files import read_bytes, read_text
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.source import NotFound

_SUFFIXES = (
    *(".apng", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# What Pillow reads only if it has what is said.
_MAYBE = {
    ".avif": "Pillow 11.3 or later",
    ".heic": "the package pillow-heif",
    ".heif": "the package pillow-heif",
}


class Files(Encoded):
    """Image files in the given order; every label is 0.

    Args:
      paths: the files.
      resolution: of the images in pixels: the side of squares, or (height, width).
      crop: options of `decode.decode_view`.
    """

    name, split, class_names, fingerprint = "files", "all", ("",), "files"

    def __init__(self, paths: Sequence[str], resolution: Resolution, crop: Mapping[str, Any]):
        super().__init__(crop)
        self.resolution, self._paths = resolution, list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def where(self, index: int) -> str:
        return self._paths[index]

    def read(self, index: int) -> tuple[bytes, int]:
        return read_bytes(self._paths[index]), 0


def find_files(
    paths: Iterable[str],
    lists: Iterable[str] = (),
    report: Callable[[str], None] = lambda note: None,
) -> list[str]:
    """The image files that a command names.

    Args:
      paths: files; folders, in which all files with the name of an image are found at any depth;
        and "@LIST" for a list.
      lists: text files with one path per line, of a file or of a folder.
      report: called with what is left out in a folder, and how many.

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
            files += _images_in(named, report) if is_folder else [named]
    if not files:
        raise NotFound("no image given: name files, folders, or a list as @FILE")
    return files


def _images_in(folder: str, report: Callable[[str], None]) -> list[str]:
    skipped = Skipped()
    files: dict[bool, list[str]] = {True: [], False: []}
    for name in walk(Path(folder), folder.rstrip("/"), skipped):
        files[is_image(name)].append(name)
    others = f"left out, without the name of an image ({endings(files[False])})"
    if not files[True]:
        found = [f"{counted(len(files[False]), 'file')} {others}"] if files[False] else []
        raise NotFound("; ".join((f"{folder}: no image in this folder", *found, *skipped.notes)))
    if files[False]:
        report(f"{folder}: {counted(len(files[False]), 'file')} {others}")
    for note in skipped.notes:
        report(note)
    return files[True]


def packed(magic: bytes) -> str:
    """A note on a file that is compressed, by its first bytes; "" for any other file."""
    if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")):
        return "compressed; unpack it"
    return "a zip archive or a spreadsheet" if magic.startswith(b"PK\x03\x04") else ""


def endings(names: Iterable[str]) -> str:
    """The number of files with each ending, and what reads those that could be images.

    Returns:
      ".txt 2, .heic 1; .heic is read with the package pillow-heif".
    """
    counts = collections.Counter(_suffix(name) or "no ending" for name in names)
    listed = [f"{suffix} {count}" for suffix, count in counts.most_common(5)]
    more = ", ..." if len(counts) > len(listed) else ""
    needs = [f"; {s} is read with {what}" for s, what in _MAYBE.items() if s in counts]
    return ", ".join(listed) + more + "".join(needs)


class Skipped:
    """What `walk` has left out.

    Attributes:
      links: the paths of links to folders that are read anyway, or that hold the link.
      files, folders: the paths of hidden images and of hidden folders.
    """

    def __init__(self) -> None:
        self.links: list[str] = []
        self.files: list[str] = []
        self.folders: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on what was left out, a line each."""
        anyway = "to folders not followed, which are read anyway or hold the link"
        return tuple(
            f"{counted(len(paths), noun)} {what}: {', '.join(paths[:3])}"
            + (", ..." if len(paths) > 3 else "")
            for paths, noun, what in (
                (self.links, "link", anyway),
                (self.files, "hidden file", "with the name of an image not read"),
                (self.folders, "hidden folder", "not read"),
            )
            if paths
        )


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "not a text file"
        raise NotFound(f"{path}: this list cannot be read: {reason}") from e
    return [line for line in lines if line]


@functools.cache
def suffixes() -> tuple[str, ...]:
    """The endings of the names of images, in lower case."""
    readable = Image.registered_extensions()
    return (*_SUFFIXES, *(suffix for suffix in _MAYBE if suffix in readable))


def is_image(name: str) -> bool:
    """Whether a file has the name of an image."""
    return _suffix(name) in suffixes()


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (once per image)


def walk(folder: Path, prefix: str, skipped: Skipped | None = None) -> Iterator[str]:
    """Yields all files in a folder at any depth, each folder sorted.

    Links to folders are followed, except to one that is read without them, and to one that holds
    the link, which would never end.

    Args:
      folder: where to look. Names that begin with a dot are skipped.
      prefix: what stands for the folder in the results.
      skipped: gets what is left out.
    """
    # A list of what is still to be looked at: folders may be nested more deeply than Python calls.
    # With each entry the folders, as they are stored, of the links that led there.
    waiting: list[tuple[os.DirEntry[str], str, tuple[str, ...]]]
    waiting = [(entry, prefix, ()) for entry in reversed(scan(folder, skipped))]
    read: list[str] = []  # the folders that are read whole
    while waiting:
        entry, above, links = waiting.pop()
        name = f"{above}/{entry.name}"
        if not entry.is_dir(follow_symlinks=False):
            if not is_folder(entry):
                yield name
                continue
            read = read or [os.path.realpath(folder)]
            target = os.path.realpath(entry.path)
            links = (*links, os.path.realpath(Path(entry.path).parent))
            if any(_reads(r, target) for r in read) or any(_holds(target, x) for x in links):
                if skipped is not None:
                    skipped.links.append(entry.path)
                continue
            read.append(target)
        waiting += ((inner, name, links) for inner in reversed(scan(Path(entry.path), skipped)))


def _reads(folder: str, path: str) -> bool:
    """Whether a walk of a real folder reaches the real path without links and hidden names."""
    return _holds(folder, path) and "/." not in path[len(folder) :]


def _holds(folder: str, path: str) -> bool:
    """Whether one real path is another or is above it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it reports that
        return False


def scan(folder: Path, skipped: Skipped | None = None) -> list[os.DirEntry[str]]:
    """The entries of a folder whose names do not begin with a dot, sorted by name.

    Args:
      folder: the folder.
      skipped: gets the hidden entries that are images or folders.

    Raises:
      NotFound: there is no such folder, or it cannot be read.
    """
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda e: e.name)
    except FileNotFoundError as e:
        raise NotFound(f"{folder}: no such folder") from e
    except NotADirectoryError as e:
        raise NotFound(f"{folder}: not a folder") from e
    except OSError as e:
        raise NotFound(f"{folder}: cannot be read: {e.strerror}") from e
    if skipped is not None:
        for entry in (entry for entry in entries if entry.name[0] == "."):
            if is_folder(entry):
                skipped.folders.append(entry.path)
            elif is_image(entry.name):
                skipped.files.append(entry.path)
    return [entry for entry in entries if entry.name[0] != "."]
