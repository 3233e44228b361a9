"""ImageNet-1k from a TFDS `imagenet2012` copy in array_record format, read without TensorFlow."""

import os

import numpy as np
from etils import epath

from mbv3_jax.data.decode import decode
from mbv3_jax.data.sources import Source

_DATASET = "imagenet2012"

_HOW_TO = """\
How to get it, once:
  1. Register at https://image-net.org/download-images and download these two files of the
     ILSVRC 2012 challenge into one folder, here called ARCHIVES:
       ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar (6.3 GB)
  2. Prepare them (this step alone needs TensorFlow, and another 150 GB of disk):
       pip install tensorflow tensorflow-datasets array-record importlib_resources
       python -c "import tensorflow_datasets as tfds; \\
         tfds.builder('imagenet2012', data_dir='{root}', file_format='array_record') \\
         .download_and_prepare(download_config=tfds.download.DownloadConfig(\\
         manual_dir='ARCHIVES'))"
  3. Give the same command again; a copy elsewhere is named by data.data_dir or TFDS_DATA_DIR."""


class NotPrepared(FileNotFoundError):
    """The data set, or this split of it, is not on disk in the format read here."""


def data_root(data_dir: str | os.PathLike | None) -> tuple[epath.Path, str]:
    """Returns where TFDS data sets are looked for, and which setting says so."""
    if data_dir is not None:
        return epath.Path(data_dir).expanduser(), "data.data_dir"
    if os.environ.get("TFDS_DATA_DIR"):
        return epath.Path(os.environ["TFDS_DATA_DIR"]).expanduser(), "TFDS_DATA_DIR"
    return epath.Path("~/tensorflow_datasets").expanduser(), "the default of TFDS"


def open_split(split: str, resolution: int, data_dir: str | os.PathLike | None) -> "ImageNet":
    """Opens a prepared split; raises `NotPrepared`, which says what is missing and how to get it.

    Of several prepared versions the newest in array_record format is taken.
    """
    root, setting = data_root(data_dir)
    where = f"{root} ({setting})"
    how_to = _HOW_TO.format(root=root)
    versions = sorted(root.glob(f"{_DATASET}/*/dataset_info.json"), key=_version)
    if not versions:
        raise NotPrepared(f"imagenet: no prepared {_DATASET} in {where}.\n{how_to}")

    import tensorflow_datasets as tfds  # does not import TensorFlow; a test holds it to that

    builders = [tfds.builder_from_directory(os.fspath(path.parent)) for path in versions]
    usable = [b for b in builders if b.info.file_format.value == "array_record"]
    if not usable:
        found = ", ".join(f"{b.data_dir} is {b.info.file_format.value}" for b in builders)
        raise NotPrepared(f"imagenet: no array_record copy in {where}: {found}.\n{how_to}")
    builder = usable[-1]
    if split not in builder.info.splits:
        have = ", ".join(builder.info.splits) or "none"
        raise NotPrepared(
            f"imagenet: {builder.data_dir} has no split {split!r}, only: {have}. "
            f"Remove that folder and prepare it again from both archives.\n{how_to}"
        )
    return ImageNet(builder, split, resolution)


def _version(info_file: epath.Path) -> tuple[int, ...]:
    return tuple(int(part) for part in info_file.parent.name.split(".") if part.isdigit())


class ImageNet(Source):
    """Photographs kept encoded on disk; decoded, cropped and resized one by one when read."""

    def __init__(self, builder, split: str, resolution: int):
        import tensorflow_datasets as tfds

        info = builder.info
        self.name, self.split, self.resolution = "imagenet", split, resolution
        self.class_names = tuple(info.features["label"].names)
        size = f"{info.splits[split].num_examples}/{int(info.splits[split].num_bytes)}"
        self.fingerprint = f"{info.full_name}/{split}/{size}"
        skip = {"image": tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=skip)

    def __len__(self) -> int:
        return len(self._records)

    def batch(self, indices, views=None):
        indices = [int(i) for i in indices]
        records = self._records.__getitems__(indices)
        images = np.empty((len(indices), self.resolution, self.resolution, 3), np.uint8)
        views = iter(views) if views is not None else None
        for image, index, record in zip(images, indices, records, strict=True):
            try:
                image[:] = decode(record["image"], self.resolution, next(views) if views else None)
            except OSError as error:
                name = record.get("file_name", b"").decode()
                raise ValueError(
                    f"{self.name}/{self.split}, example {index} ({name}): "
                    f"expected an image that can be decoded, got: {error}"
                ) from error
        return {"image": images, "label": np.array([r["label"] for r in records], np.int32)}
