"""Prepared TFDS data sets of labelled images in array_record format, read without TensorFlow."""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from etils import epath

from mbv3_jax.core.packages import install
from mbv3_jax.data.source import Encoded, NotFound

FORMAT = "array_record"
HELD_OUT = ("validation", "test")  # the first there is, unless one is named
IMAGENET = "imagenet2012"

_ARCHIVES = """\
How to get it, once:
  1. Register at https://image-net.org/download-images and download these two files of the
     ILSVRC 2012 challenge into one folder, here called ARCHIVES:
       ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar (6.3 GB)
  2. Prepare them (this step alone needs TensorFlow, and another 150 GB of disk):
       {install}
       python -m mbv3_jax data prepare imagenet --manual_dir=ARCHIVES --data_dir={root}
  3. Give the same command again; a copy elsewhere is named by data.data_dir or TFDS_DATA_DIR."""
_OTHERS = """\
How to get it, once (this step alone needs TensorFlow):
  {install}
  python -m mbv3_jax data prepare {name} --data_dir={root}
A copy elsewhere is named by data.data_dir or TFDS_DATA_DIR."""
_CONVERT = """\
Add the format read here to the copy that is there (needs no TensorFlow, and as much disk again):
  python -m mbv3_jax data prepare {name} --data_dir={root}"""


def data_root(data_dir: str | os.PathLike | None) -> tuple[epath.Path, str]:
    """Returns where TFDS data sets are looked for, and which setting says so."""
    if data_dir is not None:
        return epath.Path(data_dir).expanduser(), "data.data_dir"
    if os.environ.get("TFDS_DATA_DIR"):
        return epath.Path(os.environ["TFDS_DATA_DIR"]).expanduser(), "TFDS_DATA_DIR"
    return epath.Path("~/tensorflow_datasets").expanduser(), "the default of TFDS"


def find_builder(name: str, dataset: str, data_dir: str | os.PathLike | None):
    """Finds a prepared data set: the newest version there is in array_record format.

    Args:
      name: as the user knows it, for messages: "imagenet", "tfds/cifar10".
      dataset: TFDS's name, maybe with a config and a version: "imagenet_resized/32x32:0.1.0".
      data_dir: see `data_root`.

    Returns:
      A read-only TFDS builder; its `data_path` is the folder.

    Raises:
      NotFound: the data set is not there, or not in this format; the message says what to do.
    """
    root, setting = data_root(data_dir)
    copies = prepared_copies(root, dataset)
    if not copies:
        how_to = _ARCHIVES if dataset == IMAGENET else _OTHERS
        how_to = how_to.format(name=name, root=root, install=install("data"))
        raise NotFound(f"{name}: no prepared {dataset} in {root} ({setting}).\n{how_to}")
    import tensorflow_datasets as tfds  # does not import TensorFlow; a test holds it to that

    wanted = tfds.core.FileFormat.from_value(FORMAT)
    found = []
    for folder in reversed(copies):
        builder = tfds.builder_from_directory(os.fspath(folder))
        info = builder.info
        if wanted == info.file_format or wanted in info.alternative_file_formats:
            # Its file names follow the format.
            info.set_file_format(wanted, override=True, override_if_initialized=True)
            return builder
        found.append(f"{folder} is {info.file_format.value}")
    found = ", ".join(found)
    convert = _CONVERT.format(name=name, root=root)
    raise NotFound(f"{name}: no {FORMAT} copy in {root} ({setting}): {found}.\n{convert}")


def prepared_copies(root: epath.Path, dataset: str) -> list[epath.Path]:
    """The folders of prepared versions, in any format, oldest first."""
    base, _, version = dataset.partition(":")
    try:
        infos = list((root / base).glob(f"{version or '*'}/dataset_info.json"))
    except OSError as e:
        raise NotFound(f"{root / base}: cannot be read: {e.strerror}") from e
    if not infos and not version:  # TFDS takes the only config there is, too
        infos = list((root / base).glob("*/*/dataset_info.json"))
        if len(configs := sorted({i.parent.parent.name for i in infos})) > 1:
            raise NotFound(f"{root / base}: several configs, name one: {', '.join(configs)}")
    return sorted((i.parent for i in infos), key=_version)


def _version(folder: epath.Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split(".") if part.isdigit())


def open_tfds(
    name: str, dataset: str, splits: tuple, resolution: int, crop: Mapping, data_dir
) -> tuple["Tfds", "Tfds"]:
    """Opens the splits to train on and to evaluate on.

    Args:
      name, dataset, data_dir: see `find_builder`.
      splits: (train_split, eval_split, split_fraction), each None unless given; see
        `sources.open_pair`.
      resolution: side of the images, in pixels.
      crop: options of `decode.decode_view`.

    Raises:
      NotFound: the data set or a split is not there, or its files cannot be read.
      ValueError: it is no data set of labelled images.
    """
    builder = find_builder(name, dataset, data_dir)
    train, evaluate, fraction = splits
    train = train or "train"
    have = list(builder.info.splits)
    if fraction is not None:
        count = _examples(name, builder, train)
        held = max(1, round(fraction * count))
        if "[" in train or held >= count:
            raise ValueError(f"data.split_fraction: cannot hold out {fraction} of {name} {train!r}")
        train, evaluate = f"{train}[{held}:]", f"{train}[:{held}]"
    elif evaluate is None:
        evaluate = next((s for s in HELD_OUT if s in have), None)
        if evaluate is None:
            raise NotFound(
                f"{name}: {builder.data_path} has no split to evaluate on ({' or '.join(HELD_OUT)})"
                f", only: {', '.join(have)}; name one by data.eval_split, or hold out a part by "
                "data.split_fraction=0.1"
            )
    return tuple(Tfds(name, builder, split, resolution, crop) for split in (train, evaluate))


def _examples(name: str, builder, split: str) -> int:
    try:
        return builder.info.splits[split].num_examples
    except (KeyError, ValueError) as e:
        have = ", ".join(builder.info.splits) or "none"
        raise NotFound(
            f"{name}: {builder.data_path} has no split {split!r}, only: {have}. Name another, or "
            f"remove that folder and prepare it again: python -m mbv3_jax data prepare {name}"
        ) from e


class Tfds(Encoded):
    """One split. Images stay encoded until they are read."""

    def __init__(self, name: str, builder, split: str, resolution: int, crop: Mapping):
        import tensorflow_datasets as tfds

        super().__init__(crop)
        count = _examples(name, builder, split)
        info = builder.info
        self.name, self.split, self.resolution = name, split, resolution
        self.folder = os.fspath(builder.data_path)
        self._image, self._label = _keys(name, info, tfds.features)
        self.class_names = tuple(info.features[self._label].names)
        self.fingerprint = f"{info.full_name}/{split}/{count}/{int(info.splits[split].num_bytes)}"
        self.shards = [os.fspath(f.filename) for f in info.splits[split].file_instructions]
        missing = next((s for s in self.shards if not epath.Path(s).exists()), None)
        if missing:
            raise NotFound(f"{missing}: missing; prepare {name} again")
        decoders = {self._image: tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=decoders)
        if len(self._records) != count:
            raise NotFound(
                f"{self.folder}: split {split!r} has {len(self._records)} records, its "
                f"dataset_info.json says {count}; prepare {name} again"
            )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index):
        record = self._records[index]
        return record[self._image], int(record[self._label])

    def where(self, index):
        return f"{self.folder}, split {self.split}, example {index}"


def _keys(name: str, info, features) -> tuple[str, str]:
    """Which features of an example are its image and its label."""
    keys = []
    for kind in (features.Image, features.ClassLabel):
        found = [key for key, feature in info.features.items() if isinstance(feature, kind)]
        preferred = [key for key in info.supervised_keys or () if key in found]
        if not found or (len(found) > 1 and not preferred):
            raise ValueError(
                f"data.name: {name} is no data set of images with one label each; "
                f"its features: {', '.join(info.features)}"
            )
        keys.append((preferred or found)[0])
    return tuple(keys)


# From tfrecord files of a prepared TFDS data set to array_record files beside them.
#
# The records are copied as they are; both formats hold serialized `tf.train.Example`s. TensorFlow
# is not needed: a tfrecord file is a sequence of (length, checksum of it, bytes, checksum of them).

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
