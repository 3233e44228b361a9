"""Data sets as random-access sources, opened by name.

A source is a sequence of (image, label) at one resolution. Shuffling, batching, sharding and
resuming are the loader's; flips and colours are the device's (`augment.py`). What a source alone
knows is how to read example `i`, and, where images are stored encoded, how to cut a training view
out of it: `batch` takes one random generator per example for that, and without them returns the
evaluation view.
"""

import abc
import os
from collections.abc import Iterable, Sequence

import numpy as np

from mbv3_jax.arch.spec import choose


class Source(abc.ABC):
    """Images of one split of one data set.

    Attributes:
      name: the name given to `open_source`.
      split: the split's name.
      resolution: side R of the square images, in pixels.
      class_names: one name per label.
      fingerprint: changes when the examples do; a run stores it, so that a resumed run can tell.
    """

    name: str
    split: str
    resolution: int
    class_names: tuple[str, ...]
    fingerprint: str

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
        """

    def __getitem__(self, index: int) -> dict:
        """Returns {"image": uint8 [R, R, 3], "label": int}, the evaluation view of one example."""
        index = range(len(self))[index]  # negative indices; IndexError past the end
        one = self.batch([index])
        return {"image": one["image"][0], "label": int(one["label"][0])}


class Synthetic(Source):
    """Images computed from their index: stripes that tell the class, under noise.

    Deterministic, of any size and number, easy to learn, and little more than a memory copy; for
    tests and benchmarks. The noise of an example is a window into one random strip, so it comes
    again after 32,768 examples.
    """

    _STRIPES = 8  # with 64 levels each
    _WINDOWS = 1 << 16

    def __init__(self, split: str, resolution: int, *, num_classes: int, num_examples: int):
        self.name, self.split, self.resolution = "synthetic", split, resolution
        self.class_names = tuple(f"class{i}" for i in range(num_classes))
        self.fingerprint = f"synthetic/{split}/{resolution}/{num_classes}/{num_examples}"
        self._length = num_examples
        self._split_number = SPLITS["synthetic"].index(split)
        self._noise = _random_bytes(0, resolution**2 * 3 + self._WINDOWS) // 4  # at most 63
        levels = _random_bytes(1, num_classes * self._STRIPES).reshape(num_classes, -1) // 4 * 3
        self._stripes = levels[:, np.arange(resolution) * self._STRIPES // resolution]

    def __len__(self) -> int:
        return self._length

    def batch(self, indices, views=None):
        indices = np.asarray(indices, np.int64)
        labels = (indices % self.num_classes).astype(np.int32)
        side = self.resolution
        images = np.empty((len(indices), side, side * 3), np.uint8)
        # An odd factor scatters the windows; even ones are the training split's.
        starts = (indices * 2 + self._split_number) * 40503 % self._WINDOWS
        for image, start, label in zip(images, starts, labels, strict=True):
            window = self._noise[start : start + image.size].reshape(image.shape)
            np.add(window, self._stripes[label][:, None], out=image)
        return {"image": images.reshape(-1, side, side, 3), "label": labels}


def _random_bytes(stream: int, count: int) -> np.ndarray:
    return np.random.Philox(key=stream).random_raw(-(-count // 8)).view(np.uint8)[:count]


# The splits of each source; the last one is held out for evaluation.
SPLITS = {
    "digits": ("train", "test"),
    "synthetic": ("train", "test"),
    "imagenet": ("train", "validation"),
}


def evaluation_split(name: str) -> str:
    """Returns the name of the held-out split of the source `name`."""
    return SPLITS[choose("data.name", name, SPLITS)][-1]


def open_source(
    name: str,
    split: str,
    *,
    resolution: int,
    data_dir: str | os.PathLike | None = None,
    num_classes: int | None = None,
    num_examples: int | None = None,
) -> Source:
    """Opens one split of a data set.

    Args:
      name: "digits" (embedded, 10 classes), "synthetic" (computed), or "imagenet" (TFDS).
      split: one of `SPLITS[name]`.
      resolution: side of the square images, in pixels.
      data_dir: imagenet only: where TFDS keeps prepared data sets; None means the environment's
        TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      num_classes: synthetic only; 10 unless given.
      num_examples: synthetic only; 1024 for "train" and 256 for "test" unless given.

    Raises:
      ValueError: an unknown name or split (the message lists the choices), a size below 1, or an
        option that this source does not have.
      imagenet.NotPrepared: the data is not there; the message says how to get it.
    """
    choose("data.name", name, SPLITS)
    choose(f"split of {name}", split, SPLITS[name])
    options = {"data_dir": data_dir, "num_classes": num_classes, "num_examples": num_examples}
    taken = {"digits": (), "synthetic": ("num_classes", "num_examples"), "imagenet": ("data_dir",)}
    for option, value in options.items():
        if value is not None and option not in taken[name]:
            raise ValueError(f"data.{option}: got {value!r}, but {name!r} has no such option")
    sizes = {"resolution": resolution, "num_classes": num_classes, "num_examples": num_examples}
    for option, value in sizes.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"data.{option}: got {value!r}, expected a whole number of at least 1")
    # Imported here, so that a run pays only for the libraries of its own source.
    if name == "digits":
        from mbv3_jax.data import digits

        return digits.Digits(split, resolution)
    if name == "imagenet":
        from mbv3_jax.data import imagenet

        return imagenet.open_split(split, resolution, data_dir)
    return Synthetic(
        split,
        resolution,
        num_classes=num_classes or 10,
        num_examples=num_examples or (1024 if split == "train" else 256),
    )
