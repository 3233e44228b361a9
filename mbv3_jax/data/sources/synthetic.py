"""Images computed from their index, of any size and number. No files."""

import numpy as np

from mbv3_jax.core.checks import Resolution, in_pixels, sides
from mbv3_jax.data.source import Source, source

_SPLITS = {"train": 1024, "test": 256}  # and how many examples each has by default
_STRIPES = 8  # per image, with 64 levels each
_WINDOWS = 1 << 16


@source("synthetic", splits=tuple(_SPLITS), default_recipe="synthetic")
class Synthetic(Source):
    """Stripes that reveal the class, under noise.

    Easy to learn and little more work than a memory copy: for tests and benchmarks. The noise of an
    example is a window into one random strip, so it repeats after 32,768 examples.

    Args:
      split: "train" or "test".
      resolution: of the images in pixels: the side of squares, or (height, width).
      num_classes: how many classes there are.
      num_examples: how many examples either split has; None for 1024 and 256.
      channels: any number.
    """

    def __init__(
        self,
        split: str,
        resolution: Resolution,
        *,
        num_classes: int = 10,
        num_examples: int | None = None,
        channels: int = 3,
    ):
        self._length = _SPLITS[split] if num_examples is None else num_examples
        self.name, self.split, self.resolution = "synthetic", split, resolution
        self.channels = channels
        self.class_names = tuple(f"class{i}" for i in range(num_classes))
        self.fingerprint = f"synthetic/{split}/{in_pixels(resolution)}/{num_classes}/{self._length}"
        self._split_number = list(_SPLITS).index(split)
        height, width = sides(resolution)
        self._noise = _random_bytes(0, height * width * channels + _WINDOWS) // 4  # at most 63
        levels = _random_bytes(1, num_classes * _STRIPES).reshape(num_classes, -1) // 4 * 3
        self._stripes = levels[:, np.arange(height) * _STRIPES // height]

    def __len__(self) -> int:
        return self._length

    def labels(self) -> np.ndarray:
        return np.arange(len(self)) % self.num_classes

    def batch(self, indices, views=None):
        indices = np.asarray(indices, np.int64)
        labels = (indices % self.num_classes).astype(np.int32)
        height, width = sides(self.resolution)
        images = np.empty((len(indices), height, width * self.channels), np.uint8)
        # An odd factor scatters the windows; the even ones belong to the training split.
        starts = (indices * 2 + self._split_number) * 40503 % _WINDOWS
        for image, start, label in zip(images, starts, labels, strict=True):
            window = self._noise[start : start + image.size].reshape(image.shape)
            np.add(window, self._stripes[label][:, None], out=image)
        return {"image": images.reshape(-1, height, width, self.channels), "label": labels}


def _random_bytes(stream: int, count: int) -> np.ndarray:
    return np.random.Philox(key=stream).random_raw(-(-count // 8)).view(np.uint8)[:count]
