"""ImageNet: TFDS's imagenet2012, whose archives users download from image-net.org themselves."""

import os
from collections.abc import Mapping
from typing import Any

from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.files import expand_user
from mbv3_jax.data.source import NotFound, source
from mbv3_jax.data.sources.tfds import Tfds, open_prepared

DATASET = "imagenet2012"
ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")

_HOW_TO_GET = """\
How to get it, once:
  1. Register at https://image-net.org/download-images and download these two files of the
     ILSVRC 2012 challenge into one folder, here called ARCHIVES:
       ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar (6.3 GB)
  2. Prepare them (only this step needs TensorFlow, and another 150 GB of disk):
       {install}
       {program} data prepare imagenet --manual-dir=ARCHIVES --data-dir={root}
  3. Run the same command again. If a copy is elsewhere, set data.data_dir or TFDS_DATA_DIR."""


@source("imagenet", default_recipe="paper", num_classes=1000)
def open_imagenet(
    resolution: Resolution,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    split_fraction: float | None = None,
    crop: Mapping[str, Any],
) -> tuple[Tfds, Tfds]:
    """Opens the splits to train on and to evaluate on; see `tfds.open_prepared`."""
    return open_prepared(
        "imagenet",
        DATASET,
        resolution,
        data_dir=data_dir,
        train_split=train_split,
        eval_split=eval_split,
        split_fraction=split_fraction,
        crop=crop,
        how_to_get=_HOW_TO_GET,
    )


def check_archives(folder: str | None) -> None:
    """Checks that the archives to prepare ImageNet from are in a folder and can be read.

    Raises:
      NotFound: no folder is given, or an archive is missing or not readable.
    """
    if folder is None:
        raise NotFound(f"imagenet: give --manual-dir, the folder with {' and '.join(ARCHIVES)}")
    for archive in ARCHIVES:
        path = expand_user(folder, "--manual-dir") / archive
        if not path.is_file():
            raise NotFound(
                f"{path}: no such file; it comes from https://image-net.org/download-images, "
                "ILSVRC 2012, after registering there"
            )
        if not os.access(path, os.R_OK):
            raise NotFound(f"{path}: no permission to read it")
