"""Images computed from their index."""

import numpy as np

from mbv3_jax.data.source import Source

SPLITS = ("train", "test")


class Synthetic(Source):
    """Stripes that tell the class, under noise: deterministic, of any size and number.

    Easy to learn, and little more than a memory copy; for tests and benchmarks. The noise of an
    example is a window into one random strip, so it comes again after 32,768 examples.
    """

    _STRIPES = 8  # with 64 levels each
    _WINDOWS = 1 << 16

    def __init__(self, split: str, resolution: int, *, num_classes: int, num_examples: int):
        self.name, self.split, self.resolution = "synthetic", split, resolution
        self.class_names = tuple(f"class{i}" for i in range(num_classes))
        self.fingerprint = f"synthetic/{split}/{resolution}/{num_classes}/{num_examples}"
        self._length = num_examples
        self._split_number = SPLITS.index(split)
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
