"""Makes data sets of a few computed photographs: official ImageNet archives, a TFDS folder."""

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(number: int, colour: tuple[int, int, int]) -> bytes:
    """A JPEG file: noise around a colour."""
    rng = np.random.default_rng(number)
    size = (40 + number % 9, 50 + number % 7, 3)
    pixels = np.clip(rng.normal(colour, 30, size), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=90)
    return file.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def imagenet_archives(folder: Path, synsets: dict[str, tuple], per_class: int, validation: list):
    """Writes both archives as image-net.org lays them out.

    Args:
      folder: where to.
      synsets: name -> colour of the training images.
      per_class: training images of each.
      validation: synset of each validation image, in the order of TFDS's list of true labels.
    """
    number = 0
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for synset, colour in synsets.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for i in range(per_class):
                    number += 1
                    _add(archive, f"{synset}_{i}.JPEG", photograph(number, colour))
            _add(train, f"{synset}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for i, synset in enumerate(validation):
            content = photograph(1000 + i, synsets.get(synset, (128, 128, 128)))
            _add(archive, f"ILSVRC2012_val_{i + 1:08d}.JPEG", content)


def tfds_folder(root: Path, name: str, examples: dict[str, list], classes: list[str], kind: str):
    """Writes version 1.0.0 of a TFDS data set without TFDS: {split: [(image bytes, label)]}.

    `kind` is "array_record" or "tfrecord"; two shards a split.
    """
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    prefix = "tensorflow_datasets.core.features."
    features = {
        "image": {
            "pythonClassName": prefix + "image_feature.Image",
            "image": {
                "dtype": "uint8",
                "encodingFormat": "jpeg",
                "shape": {"dimensions": ["-1", "-1", "3"]},
            },
        },
        "label": {
            "pythonClassName": prefix + "class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(classes))},
        },
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": prefix + "features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    (folder / "label.labels.txt").write_text("\n".join(classes))
    splits = []
    for split, pairs in examples.items():
        records = [_example(image, label) for image, label in pairs]
        shards = [records[::2], records[1::2]]
        for i, shard in enumerate(shards):
            _WRITERS[kind](folder / f"{name}-{split}.{kind}-{i:05d}-of-00002", shard)
        splits.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(map(len, records))),
                "shardLengths": [str(len(s)) for s in shards],
            }
        )
    items = [{"featureKey": "image"}, {"featureKey": "label"}]
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": kind,
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": items}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def _array_record(path: Path, records: list[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def _tfrecord(path: Path, records: list[bytes]) -> None:
    # The checksums, which nothing here reads, are 0.
    path.write_bytes(b"".join(struct.pack("<QI", len(r), 0) + r + b"\0\0\0\0" for r in records))


_WRITERS = {"array_record": _array_record, "tfrecord": _tfrecord}


def _example(image: bytes, label: int) -> bytes:
    """A serialized tf.train.Example {"image": [image], "label": [label]}."""
    label = _varint(label % (1 << 64))  # negative ones as two's complement
    features = _field(1, _field(1, b"image") + _field(2, _field(1, _field(1, image))))
    features += _field(1, _field(1, b"label") + _field(2, _field(3, _field(1, label))))
    return _field(1, features)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
