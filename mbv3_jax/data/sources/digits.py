"""Handwritten digits: 1797 real 8x8 images that come with scikit-learn. No download.

The test part of the "Optical Recognition of Handwritten Digits" data set (Alpaydin and Kaynak,
UCI repository, 1998; CC BY 4.0), values 0 to 16.
"""

import hashlib

import numpy as np

from mbv3_jax.core.checks import Resolution, in_pixels, sides
from mbv3_jax.data.source import Source, source

_HELD_OUT_EVERY = 5


@source("digits", splits=("train", "test"), default_recipe="digits", num_classes=10)
class Digits(Source):
    """The digits at any resolution, kept in memory as one grey byte per pixel.

    Held out for "test" are, of each class and in the order of the file, the first image and every
    fifth one after it: 364 images. The other 1433 are "train". The split does not depend on a seed.

    Args:
      split: "train" or "test".
      resolution: of the images in pixels: the side of squares, or (height, width).
      channels: any number, all alike.
    """

    def __init__(self, split: str, resolution: Resolution, *, channels: int = 3):
        from sklearn.datasets import load_digits  # takes a second to import

        data = load_digits()
        held_out = np.zeros(len(data.target), bool)
        for label in range(10):
            held_out[np.flatnonzero(data.target == label)[::_HELD_OUT_EVERY]] = True
        keep = held_out if split == "test" else ~held_out
        small = data.images[keep].astype(np.float32) * (255 / 16)

        self.name, self.split, self.resolution = "digits", split, resolution
        self.channels = channels
        self.class_names = tuple(str(i) for i in range(10))
        self._labels = data.target[keep].astype(np.int32)
        self._images = _resize(small, sides(resolution))
        content = hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest()
        self.fingerprint = f"digits/{split}/{in_pixels(resolution)}/{content[:16]}"

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> np.ndarray:
        return self._labels

    def batch(self, indices, views=None):
        indices = np.asarray(indices)
        images = np.repeat(self._images[indices][..., None], self.channels, axis=-1)
        return {"image": images, "label": self._labels[indices]}


def _resize(images: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resizes float [count, h, h] to uint8 [count, *shape]: bilinear, antialiased, separable.

    Each output pixel is the triangle-weighted mean of the input pixels around it (half-pixel
    centres, edges renormalised), as in PIL's BILINEAR and `jax.image.resize`.
    """
    rows, columns = (_weights(images.shape[1], side) for side in shape)
    return np.rint(rows @ images @ columns.T).clip(0, 255).astype(np.uint8)


def _weights(old: int, side: int) -> np.ndarray:
    """What each of `side` pixels takes of each of `old`: float32 [side, old]."""
    scale = old / side
    centre = (np.arange(side) + 0.5) * scale - 0.5
    distance = np.abs(centre[:, None] - np.arange(old)) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
