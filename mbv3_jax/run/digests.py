"""Checksums of the files of a folder, stored in the folder itself."""

import json
import zlib

from etils import epath

from mbv3_jax.core.json_values import parse_json

DIGESTS = "digests.json"
_CHUNK = 1 << 24  # bytes


def write_digests(folder: epath.Path) -> None:
    """Adds the checksums of all files in the subfolders of `folder` to it."""
    (folder / DIGESTS).write_text(json.dumps(_digests(folder), indent=1))


def check_digests(folder: epath.Path) -> None:
    """Compares the files with the checksums that `write_digests` has noted.

    Raises:
      ValueError: a file is missing, surplus or changed; the message names the first.
    """
    try:
        expected = parse_json((folder / DIGESTS).read_bytes(), dict[str, int])
    except (OSError, ValueError) as e:
        raise ValueError(f"its {DIGESTS} is missing or damaged") from e
    got = _digests(folder)
    for name in sorted(expected.keys() | got.keys()):
        if name not in got:
            raise ValueError(f"its file {name} is missing")
        if name not in expected:
            raise ValueError(f"its file {name} is not in its {DIGESTS}")
        if got[name] != expected[name]:
            raise ValueError(f"its file {name} is damaged: other bytes than were written")


def _digests(folder: epath.Path) -> dict[str, int]:
    """Path within `folder` -> CRC-32 of the file's bytes."""
    digests: dict[str, int] = {}
    folders = [item for item in folder.iterdir() if item.is_dir()]
    for inner in folders:
        for path in inner.iterdir():
            if path.is_dir():
                folders.append(path)
            else:
                digests[path.relative_to(folder).as_posix()] = _crc(path)
    return digests


def _crc(path: epath.Path) -> int:
    crc = 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
