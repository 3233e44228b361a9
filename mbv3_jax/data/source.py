"""What a source of images is: a sequence of (image, label), read by index.

Shuffling, batching, sharding and resuming are the loader's; flips and colours are the device's
(`augment.py`). What a source alone knows is how to read example `i`, and, where images are stored
encoded, how to cut a training view out of it: `batch` takes one random generator per example for
that, and without them returns the evaluation view.
"""

import abc
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

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
