"""A Hugging Face image data set on disk, read without the library `datasets`.

PATH is a folder that `save_to_disk` has written, with Arrow files, or a copy of a data set
repository of the Hub, with Parquet files: a clone, or a snapshot in the cache of `huggingface_hub`.
Splits are the folders of the first, and are in the names of the files of the second, as in
`data/train-00000-of-00004.parquet`. Images, labels and class names are found by the column types
that are stored in the files, or else in the README.md of the data set.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import yaml

from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.errors import first_line
from mbv3_jax.core.files import expand_user, read_text
from mbv3_jax.core.json_values import read_json
from mbv3_jax.data.arrow_files import ArrowFile, add_files
from mbv3_jax.data.divide import open_listing
from mbv3_jax.data.files import walk
from mbv3_jax.data.layout import split_of_file
from mbv3_jax.data.listing import Listed, Listing
from mbv3_jax.data.source import NotFound, source

_DICT, _STATE = "dataset_dict.json", "state.json"


class _Splits(TypedDict):
    splits: list[str]


class _DataFile(TypedDict):
    filename: str


class _State(TypedDict):
    """What is read of state.json."""

    _data_files: list[_DataFile]


@source("huggingface:PATH", default_recipe="modest", exif_rotate=True)
def open_huggingface(
    path: str,
    resolution: Resolution,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    split_fraction: float | None = None,
    crop: Mapping[str, Any],
    on_error: str = "raise",
) -> tuple[Listed, Listed]:
    """Opens the splits to train on and to evaluate on.

    Args:
      path: the folder.
      resolution: of the images in pixels: the side of squares, or (height, width).
      image_column: of the images; None for the one of type Image.
      label_column: of the labels; None for the one of type ClassLabel, or else "label".
      labels: one of `source.LABEL_KINDS`; None for "single".
      train_split, eval_split, split_fraction, crop, on_error: see `divide.open_listing`.

    Raises:
      NotFound: the folder, one of its files or a split does not exist.
      ValueError: it is not such a data set, or something in it cannot be used.
    """
    root = expand_user(path, "data.name")
    if not root.is_dir():
        advice = "; one of the hub is downloaded first, by `hf download --repo-type=dataset`"
        raise NotFound(f"{root}: {'not a folder' if root.exists() else f'no such folder{advice}'}")
    found: list[tuple[Path, str | None]]
    if (root / _DICT).exists():
        splits = read_json(root / _DICT, _Splits, error=NotFound)["splits"]
        found = [(file, split) for split in splits for file in _saved(root, root / split)]
    elif (root / _STATE).exists():
        found = [(file, None) for file in _saved(root, root)]
    else:
        found = _hub(root)
    listing = Listing(f"huggingface:{root}", root, "row", labels)
    files = [(ArrowFile(file), split) for file, split in found]
    features = _card_features(root, listing)
    for file, _ in files:
        file.features = features | file.features
    add_files(
        listing,
        files,
        root=root,
        image_column=image_column,
        label_column=label_column,
        split_column=None,
    )
    return open_listing(
        listing,
        resolution,
        train_split=train_split,
        eval_split=eval_split,
        split_fraction=split_fraction,
        crop=crop,
        on_error=on_error,
    )


def _saved(root: Path, folder: Path) -> list[Path]:
    """The Arrow files of a folder of `save_to_disk`."""
    state = read_json(folder / _STATE, _State, error=NotFound)
    if state.get("_indices_data_files"):  # until datasets 2.0
        raise ValueError(f"{folder}: its rows are chosen by another file; save it once more")
    files = []
    for entry in state["_data_files"]:
        file = folder / entry["filename"]
        inside = os.path.normpath(file).startswith(os.path.join(os.path.normpath(root), ""))  # noqa: PTH118
        if not inside:
            raise ValueError(f"{folder / _STATE}: names a file outside of {root}: {file}")
        files.append(file)
    if not files:
        raise ValueError(f"{folder}: an empty data set")
    return files


def _hub(root: Path) -> list[tuple[Path, str | None]]:
    """The Parquet files in a folder, with the split of each."""
    names = [
        name.removeprefix("./") for name in walk(root, ".") if name.lower().endswith(".parquet")
    ]
    if not names:
        raise NotFound(
            f"{root}: neither a folder of save_to_disk ({_DICT} or {_STATE}) nor one with .parquet "
            "files; class folders of images are read by folder:PATH, and a metadata.csv of images "
            "by table:PATH/metadata.csv"
        )
    found = [(name, *split_of_file(name)) for name in names]
    if len(configs := sorted({config for *_, config in found})) > 1:
        raise ValueError(
            f"{root}: several data sets, in {', '.join(c or '.' for c in configs)}; name one: "
            f"huggingface:{root / configs[-1]}"
        )
    _check_complete(root, names)
    if len({split is None for _, split, _ in found}) > 1:
        odd = next(name for name, split, _ in found if split is None)
        raise ValueError(f"{root / odd}: its name does not say which split it is of, others do")
    return [(root / name, split) for name, split, _ in found]


def _card_features(root: Path, listing: Listing) -> dict[str, dict[str, Any]]:
    """The types of columns that the README.md of a data set gives, as `ArrowFile.features`.

    Its YAML has them under dataset_info, for several configurations as a list. The README is that
    of the folder or, for the folder of one configuration, of the one above.
    """
    for path in (root / "README.md", root.absolute().parent / "README.md"):
        try:
            card = re.match(r"---\n(.*?)\n---\s*$", read_text(path), re.DOTALL | re.MULTILINE)
            infos = _field(yaml.safe_load(card[1]), "dataset_info") if card else None
        except (OSError, UnicodeDecodeError):
            continue
        except (yaml.YAMLError, RecursionError) as e:
            listing.notes.append(f"{path}: its YAML is not read: {first_line(e)}")
            continue
        infos = infos if isinstance(infos, list) else [infos]
        infos = [info for info in infos if _field(info, "config_name") == root.name] or infos
        of_infos = [_field(info, "features") for info in infos]
        if isinstance(of_infos[0], list) and all(other == of_infos[0] for other in of_infos):
            return {
                str(_field(feature, "name")): kind
                for feature in of_infos[0]
                if (kind := _card_type(feature))
            }
    return {}


def _card_type(feature: Any) -> dict[str, Any]:
    """The type of a column in a README.md as `datasets` writes it into files; {} for others."""
    kind = _field(feature, "dtype")
    for several in ("list", "sequence"):  # of labels
        if isinstance(inner := _field(feature, several), dict):
            kind = inner.get("dtype", inner)
    if kind == "image":
        return {"_type": "Image"}
    names = _field(_field(kind, "class_label"), "names")
    if isinstance(names, dict):  # by number
        numbers = {str(number): name for number, name in names.items()}
        names = [numbers.get(str(number)) for number in range(len(numbers))]
    return {"_type": "ClassLabel", "names": names} if isinstance(names, list) else {}


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _check_complete(root: Path, names: list[str]) -> None:
    """Checks that of files like train-00000-of-00004.parquet none is missing."""
    for name in names:
        if match := re.search(r"-\d+-of-(\d{1,6})", name):
            prefix, count = name[: match.start()], int(match[1])
            pattern = re.compile(rf"{re.escape(prefix)}-(\d+)-of-{match[1]}\b")
            present = {int(m[1]) for m in map(pattern.match, names) if m}
            if missing := next((i for i in range(count) if i not in present), None):
                file = f"{root / prefix}-{missing:05d}-of-{match[1]}.parquet"
                raise NotFound(f"{file}: missing, of {count} files")
