"""What a source of images is: a sequence of (image, label), read by index.

Shuffling, batching, sharding and resuming are the loader's; flips and colours are the device's
(`augment.py`). What a source alone knows is how to read example `i`, and, where images are stored
encoded, how to cut a training view out of it: `batch` takes one random generator per example for
that, and without them returns the evaluation view.
"""

import abc
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mbv3_jax.core.checks import choose
from mbv3_jax.data.decode import ImageError, decode_view


class BadExample(ValueError):
    """An example cannot be used; the message names it, and why."""


class NotFound(FileNotFoundError):
    """The data is not there, or not in a form read here; the message says what would help."""


class Source(abc.ABC):
    """Images of one split of one data set.

    Attributes:
      name: the name given to `sources.open_source`.
      split: the split's name.
      resolution: side R of the square images, in pixels.
      class_names: one name per label.
      fingerprint: changes when the examples do; a run stores it, so that a resumed run can tell.
      encoded: whether reading an example means to decode it, so that more processes help.
    """

    name: str
    split: str
    resolution: int
    class_names: tuple[str, ...]
    fingerprint: str
    encoded = False

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def batch(
        self, indices: Sequence[int], views: Iterable[np.random.Generator] | None = None
    ) -> dict[str, np.ndarray]:
        """Reads examples by index, each from 0 to `len(self) - 1`.

        Args:
          indices: [B] which examples.
          views: one generator per example, from which a source of encoded images draws its
            random crop; None for the evaluation view. In-memory sources ignore it.

        Returns:
          {"image": uint8 [B, R, R, 3], "label": int32 [B]}.

        Raises:
          BadExample: one of them cannot be used.
        """

    def where(self, index: int) -> str:
        """What to call an example: the path where it is stored, if it has one of its own."""
        return f"{self.name}/{self.split}/{index}"

    def load(self, indices, views=None) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """As `batch`, but returns what was wrong too: {place in the batch: message}.

        In such a place image and label are 0.
        """
        return self.batch(indices, views), {}

    def __getitem__(self, index: int) -> dict:
        """Returns {"image": uint8 [R, R, 3], "label": int}, the evaluation view of one example."""
        index = range(len(self))[index]  # negative indices; IndexError past the end
        one = self.batch([index])
        return {"image": one["image"][0], "label": int(one["label"][0])}


class Encoded(Source):
    """Image files, in folders or in archives: decoded, cropped and resized one by one when read.

    Args:
      crop: options of `decode.decode_view`, by name.
    """

    encoded = True

    def __init__(self, crop: Mapping[str, object]):
        self._crop = dict(crop)

    @abc.abstractmethod
    def read(self, index: int) -> tuple[bytes, int]:
        """Returns an example's image as it is stored, and its label.

        Raises:
          OSError: it cannot be read.
        """

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """Where an example is stored, for messages: its path."""

    def batch(self, indices, views=None):
        batch, problems = self.load(indices, views)
        if problems:
            raise BadExample(next(iter(problems.values())))
        return batch

    def load(self, indices, views=None):
        side = self.resolution
        images = np.zeros((len(indices), side, side, 3), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        problems = {}
        views = iter(views) if views is not None else None
        for row, index in enumerate(map(int, indices)):
            view = next(views) if views is not None else None
            try:
                encoded, label = self.read(index)
                if not 0 <= label < self.num_classes:
                    raise ImageError(f"label {label}, expected 0 to {self.num_classes - 1}")
                images[row] = decode_view(encoded, resolution=side, view=view, **self._crop)
                labels[row] = label
            except (ImageError, OSError) as error:
                problems[row] = f"{self.where(index)}: {_reason(error)}"
        return {"image": images, "label": labels}, problems


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)  # without the path, which stands before


# Data sets opened by name; see `source.py` for what a source is.

ON_ERROR = ("raise", "skip")
_NAMES = ("digits", "clutter", "synthetic", "imagenet", "tfds/NAME", "folder:PATH")
_FILES = ("train_split", "eval_split", "split_fraction", "crop")
# Which options a kind of source has; giving it another is an error.
_OPTIONS = {
    "digits": (),
    "clutter": ("eval_split",),
    "synthetic": ("num_classes", "num_examples"),
    "imagenet": ("data_dir", *_FILES),
    "tfds": ("data_dir", *_FILES),
    "folder": _FILES,
}


def open_pair(
    name: str,
    *,
    resolution: int,
    data_dir: str | os.PathLike | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    split_fraction: float | None = None,
    num_classes: int | None = None,
    num_examples: int | None = None,
    crop: Mapping[str, object] | None = None,
    on_error: str = "raise",
) -> tuple[Source, Source]:
    """Opens a data set to train on and to evaluate on; the two have no example in common.

    Args:
      name: "digits" (embedded, 10 classes), "clutter" (rendered, 15 classes), "synthetic"
        (computed), "imagenet" (TFDS imagenet2012), "tfds/NAME" (another TFDS data set of labelled
        images), or "folder:PATH" (a folder of class folders, see `folder.py`).
      resolution: side of the square images, in pixels.
      data_dir: imagenet, tfds: where TFDS keeps prepared data sets; None means the environment's
        TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      train_split, eval_split: imagenet, tfds, folder: which splits; None for "train", and for the
        first there is of "validation", "val", "valid" and "test". TFDS slices, like
        "train[:90%]", are splits too. clutter: eval_split is "test", unless "validation" is given.
      split_fraction: imagenet, tfds, folder: hold out this part of the training split instead; of
        a folder that has no splits, 0.1 unless given.
      num_classes: synthetic only; 10 unless given.
      num_examples: synthetic only, of both splits; 1024 and 256 unless given.
      crop: imagenet, tfds, folder: options of `decode.decode_view`; those that are None count as
        not given.
      on_error: "raise", or "skip": a folder may hold files that are no images and empty class
        folders; what cannot be read is left to the loader.

    Raises:
      ValueError: an unknown name or split (the message lists the choices), a value out of range,
        an option that this source does not have, or a folder that is not as it should be.
      source.NotFound: the data is not there; the message says how to get it.
    """
    choose("data.on_error", on_error, ON_ERROR)
    kind, argument = _kind(name)
    crop = {k: v for k, v in (crop or {}).items() if v is not None}
    given = {
        "data_dir": data_dir,
        "train_split": train_split,
        "eval_split": eval_split,
        "split_fraction": split_fraction,
        "num_classes": num_classes,
        "num_examples": num_examples,
        "crop": crop or None,
    }
    for option, value in given.items():
        if value is not None and option not in _OPTIONS[kind]:
            option = next(iter(crop)) if option == "crop" else option
            raise ValueError(f"data.{option}: {name!r} has no such option, it must be None")
    sizes = {"resolution": resolution, "num_classes": num_classes, "num_examples": num_examples}
    for option, value in sizes.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"data.{option}: got {value!r}, expected a whole number of at least 1")
    if split_fraction is not None and not 0 < split_fraction < 1:
        raise ValueError(f"data.split_fraction: got {split_fraction!r}, expected between 0 and 1")
    if split_fraction is not None and eval_split is not None:
        raise ValueError("data.split_fraction: data.eval_split is given too; one must be None")

    # Imported here, so that a run pays only for the libraries of its own source.
    splits = (train_split, eval_split, split_fraction)
    if kind == "digits":
        from mbv3_jax.data.embedded import Digits

        return Digits("train", resolution), Digits("test", resolution)
    if kind == "clutter":
        from mbv3_jax.data.clutter import Clutter

        held_out = choose("data.eval_split", eval_split or "test", ("test", "validation"))
        return Clutter("train", resolution), Clutter(held_out, resolution)
    if kind == "synthetic":
        return tuple(
            open_source(
                name, split, resolution=resolution, num_classes=num_classes, num_examples=examples
            )
            for split, examples in (("train", num_examples), ("test", num_examples))
        )
    if kind == "folder":
        from mbv3_jax.data.folder import open_folder

        return open_folder(argument, splits, resolution, crop, strict=on_error == "raise")
    from mbv3_jax.data.tfds import open_tfds

    return open_tfds(name, argument, splits, resolution, crop, data_dir)


def has_option(name: str, option: str) -> bool:
    """Whether the source of this name has an option of `open_pair` ("crop": any of its own)."""
    return option in _OPTIONS[_kind(name)[0]]


def open_source(
    name: str,
    split: str,
    *,
    resolution: int,
    num_classes: int | None = None,
    num_examples: int | None = None,
) -> Source:
    """Opens one split of a source that needs no files: digits, clutter, synthetic.

    The splits are "train" and "test"; clutter has "validation" too. Other arguments and errors are
    those of `open_pair`.
    """
    choose("data.name", name, ("digits", "clutter", "synthetic"))
    splits = ("train", "validation", "test") if name == "clutter" else ("train", "test")
    choose(f"split of {name}", split, splits)
    if name == "digits":
        from mbv3_jax.data.embedded import Digits

        return Digits(split, resolution)
    if name == "clutter":
        from mbv3_jax.data.clutter import Clutter

        return Clutter(split, resolution)
    from mbv3_jax.data.embedded import Synthetic

    return Synthetic(
        split,
        resolution,
        num_classes=num_classes or 10,
        num_examples=num_examples or (1024 if split == "train" else 256),
    )


def _kind(name: str) -> tuple[str, str]:
    """("tfds", "cifar10") for "tfds/cifar10", ("folder", "/data") for "folder:/data"."""
    if name in ("digits", "clutter", "synthetic"):
        return name, ""
    if name == "imagenet":
        return name, "imagenet2012"
    for kind, mark in (("tfds", "/"), ("folder", ":")):
        if name.startswith(kind + mark) and name != kind + mark:
            return kind, name.removeprefix(kind + mark)
    choose("data.name", name, _NAMES)
    raise ValueError(f"data.name: got {name!r}, where NAME and PATH stand for yours")
