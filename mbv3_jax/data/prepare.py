"""Prepares and checks data sets: what `python -m mbv3_jax data` does."""

import os
from collections.abc import Callable
from pathlib import Path

from mbv3_jax.core.packages import install
from mbv3_jax.data import tfds as tfds_source
from mbv3_jax.data.source import Encoded, NotFound, Source
from mbv3_jax.data.tfds import convert

_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def dataset_of(name: str) -> str:
    """TFDS's name for "imagenet" or "tfds/NAME".

    Raises:
      ValueError: it is neither.
    """
    if name == "imagenet":
        return tfds_source.IMAGENET
    if name.startswith("tfds/") and name != "tfds/":
        return name.removeprefix("tfds/")
    raise ValueError(f"got {name!r}, expected imagenet or tfds/NAME; nothing else needs preparing")


def prepare(
    name: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Makes a TFDS data set readable here, unless it is already.

    A copy that TFDS prepared in tfrecord format is converted, without TensorFlow. Otherwise the
    TFDS builder runs, which needs TensorFlow.

    Args:
      name: "imagenet" or "tfds/NAME".
      data_dir: see `tfds.data_root`.
      manual_dir: where archives lie that one has to download oneself, as those of ImageNet.
      report: called with lines on the progress.

    Returns:
      The folder of the prepared data set.

    Raises:
      ValueError: a name that is none, or one that TFDS does not know.
      NotFound: something is missing; the message says what and what would help.
    """
    dataset = dataset_of(name)
    root, _ = tfds_source.data_root(data_dir)
    copies = tfds_source.prepared_copies(root, dataset)
    if copies:
        try:
            done = tfds_source.find_builder(name, dataset, data_dir).data_path
            report(f"{name} is prepared already, in {done}")
        except NotFound:
            done = copies[-1]
            report(f"{name}: converting {done}")
            convert(Path(done), report)
        return Path(done)
    if name == "imagenet":
        _need_archives(manual_dir)
    return _build(dataset, os.fspath(root), manual_dir, report)


def _need_archives(manual_dir: str | None) -> None:
    if manual_dir is None:
        raise NotFound(f"imagenet: give --manual_dir, the folder with {' and '.join(_ARCHIVES)}")
    for archive in _ARCHIVES:
        path = Path(manual_dir).expanduser() / archive
        if not path.is_file():
            raise NotFound(
                f"{path}: no such file; it comes from https://image-net.org/download-images, "
                "ILSVRC 2012, after registering there"
            )
        if not os.access(path, os.R_OK):
            raise NotFound(f"{path}: no permission to read it")


def _build(dataset: str, root: str, manual_dir: str | None, report) -> Path:
    try:
        import tensorflow  # noqa: F401 (TFDS would say less clearly that it is missing)
    except ImportError as e:
        raise NotFound(
            f"to prepare {dataset} TFDS needs TensorFlow, this once (training does not): "
            f"{install('data')} ({e})"
        ) from e
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=root, file_format=tfds_source.FORMAT)
    except tfds.core.DatasetNotFoundError as e:
        raise ValueError(f"TFDS knows no data set {dataset!r}: {str(e).splitlines()[0]}") from e
    report(f"preparing {builder.info.full_name} in {builder.data_path}")
    config = tfds.download.DownloadConfig(
        manual_dir=os.path.expanduser(manual_dir) if manual_dir else None  # noqa: PTH111
    )
    try:
        builder.download_and_prepare(download_config=config)
    except (OSError, AssertionError, tfds.core.download.DownloadError) as e:
        raise NotFound(f"TFDS could not prepare {dataset} in {root}: {e}") from e
    return Path(os.fspath(builder.data_path))


def check(source: Source, sample: int, report: Callable[[str], None] = print) -> int:
    """Reads a sample of a split, evenly spread, and reports what is in it.

    Args:
      source: what to check.
      sample: how many examples to decode at most.
      report: called with lines.

    Returns:
      How many of them could not be used; each is named.
    """
    count = min(sample, len(source))
    report(f"{source.name} {source.split}: {len(source):,} images, {source.num_classes} classes")
    if isinstance(source, Encoded):
        report(f"  from {source.where(0)}")
        report(f"  to   {source.where(len(source) - 1)}")
    bad = 0
    for i in range(count):
        _, problems = source.load([i * len(source) // count])
        for message in problems.values():
            report(f"  cannot use {message}")
        bad += len(problems)
    report(f"  read {count:,} of them, {bad} cannot be used")
    return bad
