"""Handwritten digits: 1797 real 8x8 images that come inside scikit-learn. No download.

The test part of the "Optical Recognition of Handwritten Digits" data set (Alpaydin and Kaynak,
UCI repository, 1998; CC BY 4.0), values 0 to 16.
"""

import hashlib

import numpy as np

from mbv3_jax.data.source import Source

_HELD_OUT_EVERY = 5


class Digits(Source):
    """The digits at any resolution, kept in memory as one grey byte per pixel.

    Held out for "test": of each class, in the order of the file, the first image and every fifth
    after it; 364 images. The other 1433 are "train". No seed has a part in it.
    """

    def __init__(self, split: str, resolution: int):
        from sklearn.datasets import load_digits

        data = load_digits()
        held_out = np.zeros(len(data.target), bool)
        for label in range(10):
            held_out[np.flatnonzero(data.target == label)[::_HELD_OUT_EVERY]] = True
        keep = held_out if split == "test" else ~held_out
        small = data.images[keep].astype(np.float32) * (255 / 16)

        self.name, self.split, self.resolution = "digits", split, resolution
        self.class_names = tuple(str(i) for i in range(10))
        self._labels = data.target[keep].astype(np.int32)
        self._images = _resize(small, resolution)
        content = hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest()
        self.fingerprint = f"digits/{split}/{resolution}/{content[:16]}"

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices, views=None):
        indices = np.asarray(indices)
        grey = self._images[indices]
        return {"image": np.repeat(grey[..., None], 3, axis=-1), "label": self._labels[indices]}


def _resize(images: np.ndarray, side: int) -> np.ndarray:
    """Resizes float images [n, h, h] to uint8 [n, side, side]: bilinear, antialiased, separable.

    Each output pixel is the triangle-weighted mean of the input pixels around it (half-pixel
    centres, edges renormalised), as PIL's BILINEAR and `jax.image.resize` do.
    """
    old = images.shape[1]
    scale = old / side
    centre = (np.arange(side) + 0.5) * scale - 0.5
    distance = np.abs(centre[:, None] - np.arange(old)) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return np.rint(weights @ images @ weights.T).clip(0, 255).astype(np.uint8)


# Images computed from their index.

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
