"""Prepared TFDS data sets of labelled images in array_record format, read without TensorFlow."""

import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.files import expand_user
from mbv3_jax.core.packages import install, program
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.source import NotFound, source

FORMAT = "array_record"
HELD_OUT = ("validation", "test")  # the first that exists, unless one is named

_HOW_TO_GET = """\
How to get it, once (only this step needs TensorFlow):
  {install}
  {program} data prepare {name} --data-dir={root}
If a copy is elsewhere, set data.data_dir or TFDS_DATA_DIR."""
_CONVERT = """\
Add the format that is read here to the existing copy (needs no TensorFlow, and as much disk again):
  {program} data prepare {name} --data-dir={root}"""


@source("tfds/NAME", default_recipe="modest")
def open_tfds(
    dataset: str,
    resolution: Resolution,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    split_fraction: float | None = None,
    crop: Mapping[str, Any],
) -> tuple["Tfds", "Tfds"]:
    """Opens the splits to train on and to evaluate on; see `open_prepared`."""
    return open_prepared(
        f"tfds/{dataset}",
        dataset,
        resolution,
        data_dir=data_dir,
        train_split=train_split,
        eval_split=eval_split,
        split_fraction=split_fraction,
        crop=crop,
    )


def open_prepared(
    name: str,
    dataset: str,
    resolution: Resolution,
    *,
    data_dir: str | os.PathLike[str] | None,
    train_split: str | None,
    eval_split: str | None,
    split_fraction: float | None,
    crop: Mapping[str, Any],
    how_to_get: str = _HOW_TO_GET,
) -> tuple["Tfds", "Tfds"]:
    """Opens the splits of a prepared data set to train on and to evaluate on.

    Args:
      name, dataset, data_dir, how_to_get: see `find_builder`.
      resolution: of the images in pixels: the side of squares, or (height, width).
      train_split: the split to train on, also a TFDS slice like "train[:90%]"; None for "train".
      eval_split: the split to evaluate on; None for the first of `HELD_OUT` that exists.
      split_fraction: hold out this fraction of the training split instead.
      crop: options of `decode.decode_view`.

    Raises:
      NotFound: the data set or a split does not exist, or its files cannot be read.
      ValueError: it is not a data set of labelled images.
    """
    builder = find_builder(name, dataset, data_dir, how_to_get)
    train = train_split or "train"
    splits = list(builder.info.splits)
    if split_fraction is not None:
        count = _count_examples(name, builder, train)
        held_out = max(1, round(split_fraction * count))
        if "[" in train or held_out >= count:
            raise ValueError(
                f"data.split_fraction: cannot hold out {split_fraction} of {name} {train!r}"
            )
        train, eval_split = f"{train}[{held_out}:]", f"{train}[:{held_out}]"
    elif eval_split is None:
        eval_split = next((split for split in HELD_OUT if split in splits), None)
    if eval_split is None:
        raise NotFound(
            f"{name}: {builder.data_path} has no split to evaluate on ({' or '.join(HELD_OUT)})"
            f", only: {', '.join(splits)}; name one with data.eval_split, or hold out a part with "
            "data.split_fraction=0.1"
        )
    return (
        Tfds(name, builder, train, resolution, crop),
        Tfds(name, builder, eval_split, resolution, crop),
    )


class Tfds(Encoded):
    """One split of a prepared data set. Images stay encoded until they are read.

    Args:
      name: the name of the source, for messages.
      builder: of `find_builder`.
      split: the split, also as a TFDS slice.
      resolution: of the images in pixels: the side of squares, or (height, width).
      crop: options of `decode.decode_view`.
    """

    def __init__(
        self,
        name: str,
        builder: Any,
        split: str,
        resolution: Resolution,
        crop: Mapping[str, Any],
    ):
        import tensorflow_datasets as tfds

        super().__init__(crop)
        count = _count_examples(name, builder, split)
        info = builder.info
        self.name, self.split, self.resolution = name, split, resolution
        self.folder = os.fspath(builder.data_path)
        self._image = _feature(name, info, tfds.features.Image)
        self._label = _feature(name, info, tfds.features.ClassLabel)
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

    def read(self, index: int) -> tuple[bytes, int]:
        record = self._records[index]
        return record[self._image], int(record[self._label])

    def where(self, index: int) -> str:
        return f"{self.folder}, split {self.split}, example {index}"


def _count_examples(name: str, builder: Any, split: str) -> int:
    try:
        return builder.info.splits[split].num_examples
    except (KeyError, ValueError) as e:
        splits = ", ".join(builder.info.splits) or "none"
        raise NotFound(
            f"{name}: {builder.data_path} has no split {split!r}, only: {splits}. Name another, or "
            f"remove that folder and prepare it again: {program()} data prepare {name}"
        ) from e


def _feature(name: str, info: Any, kind: type) -> str:
    """The feature of this kind in an example: the supervised one, if there are several."""
    keys = [key for key, feature in info.features.items() if isinstance(feature, kind)]
    supervised = [key for key in info.supervised_keys or () if key in keys]
    if len(keys) > 1:
        keys = supervised
    if not keys:
        raise ValueError(
            f"data.name: {name} is not a data set of images with one label each; "
            f"its features: {', '.join(info.features)}"
        )
    return keys[0]


def data_root(data_dir: str | os.PathLike[str] | None) -> tuple[epath.Path, str]:
    """Returns the folder in which TFDS data sets are looked for, and the setting that says so."""
    setting, folder = "data.data_dir", data_dir
    if folder is None:
        setting, folder = "TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or None
    if folder is not None:
        # Only what begins with "~" is a path of this machine for certain: it may be gs://...
        is_home = os.fspath(folder).startswith("~")
        return epath.Path(expand_user(folder, setting) if is_home else folder), setting
    return epath.Path("~/tensorflow_datasets").expanduser(), "the default of TFDS"


def find_builder(
    name: str,
    dataset: str,
    data_dir: str | os.PathLike[str] | None,
    how_to_get: str = _HOW_TO_GET,
) -> Any:
    """Finds the newest prepared version of a data set that is in array_record format.

    Args:
      name: the data set as the user knows it, for messages: "imagenet", "tfds/cifar10".
      dataset: TFDS's name, with a config and a version if needed:
        "imagenet_resized/32x32:0.1.0".
      data_dir: see `data_root`.
      how_to_get: what to say if there is no prepared copy.

    Returns:
      A read-only TFDS builder; its `data_path` is the folder.

    Raises:
      NotFound: the data set does not exist, or not in this format; the message says what to do.
    """
    root, setting = data_root(data_dir)
    copies = prepared_copies(root, dataset)
    if not copies:
        advice = how_to_get.format(name=name, root=root, install=install("data"), program=program())
        raise NotFound(f"{name}: no prepared {dataset} in {root} ({setting}).\n{advice}")
    import tensorflow_datasets as tfds  # does not import TensorFlow, as a test checks

    array_record = tfds.core.FileFormat.from_value(FORMAT)
    others = []
    for folder in reversed(copies):
        builder = tfds.builder_from_directory(os.fspath(folder))
        info = builder.info
        if array_record == info.file_format or array_record in info.alternative_file_formats:
            # The names of the files depend on the format.
            info.set_file_format(array_record, override=True, override_if_initialized=True)
            return builder
        others.append(f"{folder} is {info.file_format.value}")
    convert = _CONVERT.format(name=name, root=root, program=program())
    raise NotFound(
        f"{name}: no {FORMAT} copy in {root} ({setting}): {', '.join(others)}.\n{convert}"
    )


def prepared_copies(root: epath.Path, dataset: str) -> list[epath.Path]:
    """The folders of the prepared versions of a data set, in any format, oldest first."""
    base, _, version = dataset.partition(":")
    try:
        infos = list((root / base).glob(f"{version or '*'}/dataset_info.json"))
    except OSError as e:
        raise NotFound(f"{root / base}: cannot be read: {e.strerror}") from e
    if not infos and not version:  # like TFDS, take the config if there is only one
        infos = list((root / base).glob("*/*/dataset_info.json"))
        if len(configs := sorted({i.parent.parent.name for i in infos})) > 1:
            raise NotFound(f"{root / base}: several configs, name one: {', '.join(configs)}")
    return sorted((i.parent for i in infos), key=_version)


def _version(folder: epath.Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split(".") if part.isdigit())
