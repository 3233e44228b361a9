"""Checksums over the files of a checkpoint.

The storage below Orbax checks its own indices, but not the bytes of arrays: with a bit flipped in
one of them, a run would silently go on from other weights.
"""

import json
import zlib

from etils import epath

FILE = "digests.json"
_CHUNK = 1 << 24


def write(folder: epath.Path) -> None:
    """Adds to `folder` the checksums of all files in its subfolders."""
    (folder / FILE).write_text(json.dumps(_digests(folder), indent=1))


def check(folder: epath.Path) -> None:
    """Holds the files to what `write` found.

    Raises:
      ValueError: a file is missing, surplus or changed; the message names the first.
    """
    try:
        expected = json.loads((folder / FILE).read_text())
    except (OSError, ValueError) as e:
        raise ValueError(f"its {FILE} is missing or damaged") from e
    got = _digests(folder)
    for name in sorted(expected.keys() | got.keys()):
        if name not in got:
            raise ValueError(f"its file {name} is missing")
        if got[name] != expected.get(name):
            raise ValueError(f"its file {name} is damaged: other bytes than were written")


def _digests(folder: epath.Path) -> dict[str, int]:
    """Path within `folder` -> CRC-32 of the file's bytes."""
    found, folders = {}, [item for item in folder.iterdir() if item.is_dir()]
    for inner in folders:
        for path in inner.iterdir():
            if path.is_dir():
                folders.append(path)
            else:
                found[path.relative_to(folder).as_posix()] = _crc(path)
    return found


def _crc(path: epath.Path) -> int:
    crc = 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
