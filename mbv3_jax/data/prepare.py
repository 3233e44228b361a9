"""Prepares and checks data sets: the work of `python -m mbv3_jax data`.

A copy that TFDS prepared in tfrecord format gets array_record files beside it. The records are
copied unchanged, because both formats hold serialized `tf.train.Example`s. That takes no
TensorFlow: a tfrecord file is a sequence of (length, its checksum, bytes, their checksum).
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

from mbv3_jax.core.errors import counted, printable
from mbv3_jax.core.files import expand_user, replacing, write_atomically
from mbv3_jax.core.json_values import read_json
from mbv3_jax.core.packages import install
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.source import NotFound, Source
from mbv3_jax.data.sources import imagenet, tfds

_CLASSES = 20  # whose number of images a check gives
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")


def prepare(
    name: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Makes a TFDS data set readable here, unless it already is.

    A copy that TFDS prepared in tfrecord format is converted, without TensorFlow. Otherwise the
    TFDS builder runs, which needs TensorFlow.

    Args:
      name: "imagenet" or "tfds/NAME".
      data_dir: see `tfds.data_root`.
      manual_dir: the folder of archives that have to be downloaded manually, as for ImageNet.
      report: called with lines on the progress.

    Returns:
      The folder of the prepared data set.

    Raises:
      ValueError: the name is neither of these, or TFDS does not know the data set.
      NotFound: something is missing; the message says what, and what to do.
    """
    dataset = _dataset(name)
    root, _ = tfds.data_root(data_dir)
    copies = tfds.prepared_copies(root, dataset)
    if copies:
        try:
            folder = tfds.find_builder(name, dataset, data_dir).data_path
            report(f"{name} is prepared already, in {folder}")
        except NotFound:
            folder = copies[-1]
            report(f"{name}: converting {folder}")
            convert(Path(folder), report)
        return Path(folder)
    if dataset == imagenet.DATASET:
        imagenet.check_archives(manual_dir)
    return _build(dataset, os.fspath(root), manual_dir, report)


def _dataset(name: str) -> str:
    """TFDS's name for "imagenet" or "tfds/NAME"."""
    if name == "imagenet":
        return imagenet.DATASET
    if name.startswith("tfds/") and name != "tfds/":
        return name.removeprefix("tfds/")
    raise ValueError(f"got {name!r}, expected imagenet or tfds/NAME; nothing else needs preparing")


def _build(dataset: str, root: str, manual_dir: str | None, report: Callable[[str], None]) -> Path:
    try:
        import tensorflow  # noqa: F401 (TFDS would say less clearly that it is missing)
    except ImportError as e:
        raise NotFound(
            f"to prepare {dataset} TFDS needs TensorFlow, this once (training does not): "
            f"{install('data')} ({e})"
        ) from e
    import tensorflow_datasets

    core = tensorflow_datasets.core
    try:
        builder = tensorflow_datasets.builder(dataset, data_dir=root, file_format=tfds.FORMAT)
    except core.DatasetNotFoundError as e:
        raise ValueError(f"TFDS knows no data set {dataset!r}: {str(e).splitlines()[0]}") from e
    report(f"preparing {builder.info.full_name} in {builder.data_path}")
    config = tensorflow_datasets.download.DownloadConfig(
        manual_dir=expand_user(manual_dir, "--manual-dir") if manual_dir else None
    )
    try:
        builder.download_and_prepare(download_config=config)
    except (OSError, AssertionError, core.download.DownloadError) as e:
        raise NotFound(f"TFDS could not prepare {dataset} in {root}: {e}") from e
    return Path(os.fspath(builder.data_path))


class _Split(TypedDict):
    name: str
    shardLengths: list[str | int]


class _DatasetInfo(TypedDict):
    """What is read of TFDS's dataset_info.json."""

    name: str
    splits: list[_Split]
    alternativeFileFormats: NotRequired[list[str]]


def convert(folder: Path, report: Callable[[str], None] = print) -> None:
    """Adds array_record files to a data set in tfrecord format, and the format to its metadata.

    Each file is written under another name first, and the metadata last, so that a conversion that
    was killed can be run again. The tfrecord files stay.

    Args:
      folder: of one version of the data set, with its dataset_info.json.
      report: called with one line per file.

    Raises:
      NotFound: a file is missing, is cut off or has another number of records than the metadata
        says, or the folder cannot be written to.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    info_path = folder / "dataset_info.json"
    try:
        info = read_json(info_path, _DatasetInfo, error=NotFound)
        for left in sorted(folder.glob(f".{info['name']}-*.tmp")):
            report(f"{left}: left by a conversion that was killed; remove it if none runs")
        for split in info["splits"]:
            lengths = [int(n) for n in split["shardLengths"]]
            for number, expected in enumerate(lengths):
                name = f"{info['name']}-{split['name']}.{{}}-{number:05d}-of-{len(lengths):05d}"
                records, target = (folder / name.format(kind) for kind in ("tfrecord", tfds.FORMAT))
                if target.exists():
                    continue
                with replacing(target) as unfinished:
                    writer = ArrayRecordWriter(os.fspath(unfinished), "group_size:1")
                    count = 0
                    for record in read_tfrecord(records):
                        writer.write(record)
                        count += 1
                    writer.close()
                    if count != expected:
                        raise NotFound(
                            f"{records}: {counted(count, 'record')}, {info_path} says {expected}"
                        )
                report(f"{target}: {counted(count, 'record')}")
        formats = info.setdefault("alternativeFileFormats", [])
        if tfds.FORMAT not in formats:
            formats.append(tfds.FORMAT)
            write_atomically(info_path, json.dumps(info, indent=2))
    except NotFound:
        raise
    except OSError as e:
        raise NotFound(f"{e.filename or folder}: {e.strerror or e}") from e


def read_tfrecord(path: Path) -> Iterator[bytes]:
    """Yields the records of a file.

    The checksums are not compared: damage inside an image is found when it is decoded.

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


def check(source: Source, sample: int, report: Callable[[str], None] = print) -> int:
    """Reads an evenly spread sample of a split and reports what is in it.

    Args:
      source: what to check.
      sample: how many examples to decode at most.
      report: called with the lines of the report.

    Returns:
      The number of examples that could not be used; each is named in the report.
    """
    count = min(sample, len(source))
    name = printable(source.name)
    images = counted(len(source), "image")
    report(f"{name} {source.split}: {images}, {source.num_classes} classes")
    if (counts := source.counts()) is not None:
        listed = [f"{name} ({n:,})" for name, n in zip(source.class_names, counts, strict=True)]
        more = ", ..." if len(listed) > _CLASSES else ""
        report(f"  classes: {printable(', '.join(listed[:_CLASSES]))}{more}")
    if isinstance(source, Encoded):
        report(f"  from {printable(source.where(0))}")
        report(f"  to   {printable(source.where(len(source) - 1))}")
    for note in source.notes:
        report(f"  note: {printable(note)}")
    unusable = 0
    for i in range(count):
        _, problems = source.load([i * len(source) // count])
        for message in problems.values():
            report(f"  cannot use {message}")
        unusable += len(problems)
    report(f"  read {count:,} of them, {unusable} cannot be used")
    return unusable
