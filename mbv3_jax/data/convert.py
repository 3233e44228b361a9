"""From tfrecord files of a prepared TFDS data set to array_record files beside them.

The records are copied as they are; both formats hold serialized `tf.train.Example`s. TensorFlow is
not needed: a tfrecord file is a sequence of (length, checksum of it, bytes, checksum of them).
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from mbv3_jax.data.source import NotFound
from mbv3_jax.data.tfds import FORMAT

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")


def convert(folder: Path, report: Callable[[str], None] = print) -> None:
    """Adds array_record files to a prepared data set and lists the format in its metadata.

    A file is written under another name first, and the metadata last, so that a conversion that
    was killed can be given again. The tfrecord files stay.

    Args:
      folder: of one version, with its dataset_info.json.
      report: called with a line per file.

    Raises:
      NotFound: a file is missing, cut off, or has another number of records than the metadata
        says, or the folder cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    info_path = folder / "dataset_info.json"
    try:
        info = json.loads(info_path.read_text())
        for split in info["splits"]:
            lengths = [int(n) for n in split["shardLengths"]]
            for number, expected in enumerate(lengths):
                name = f"{info['name']}-{split['name']}.{{}}-{number:05d}-of-{len(lengths):05d}"
                source, target = (folder / name.format(kind) for kind in ("tfrecord", FORMAT))
                if target.exists():
                    continue
                unfinished = folder / f"{target.name}.unfinished"
                writer = ArrayRecordWriter(os.fspath(unfinished), "group_size:1")
                count = 0
                for record in read_tfrecord(source):
                    writer.write(record)
                    count += 1
                writer.close()
                if count != expected:
                    unfinished.unlink()
                    raise NotFound(f"{source}: {count} records, {info_path} says {expected}")
                unfinished.rename(target)
                report(f"{target}: {count} records")
        others = info.setdefault("alternativeFileFormats", [])
        if FORMAT not in others:
            others.append(FORMAT)
            unfinished = info_path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(info, indent=2))
            unfinished.rename(info_path)
    except OSError as e:
        if isinstance(e, NotFound):
            raise
        raise NotFound(f"{e.filename or folder}: {e.strerror or e}") from e


def read_tfrecord(path: Path) -> Iterator[bytes]:
    """Yields the records of a file.

    The checksums are not compared: what is damaged inside an image is found when it is decoded.

    Raises:
      NotFound: the file ends in the middle of a record.
    """
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else None
            record = file.read(length) if length is not None else b""
            if len(file.read(_FOOTER.size)) < _FOOTER.size or len(record) != length:
                raise NotFound(f"{path}: cut off in the middle of a record")
            yield record
