"""Letters among clutter: 7500 colour images rendered from their index, at any resolution. No files.

Each image shows one of fifteen capital letters made of straight strokes. The letter has shaky
strokes, is rotated, sheared, scaled and shifted, and has any colour. It stands on a striped and
blotched background, among and partly behind loose strokes like its own, under noise. Only the shape
tells the classes apart, and there are 3000 images to train on.

The task is meant for ablations, searches and tests of a network within minutes: the width, the
kernels, the depth and the resolution of a network make a larger difference than the seed does. It
does not stand for ImageNet or for other photographs. Its fifteen classes are similar, neither
texture nor context reveals a class, and networks designed for a thousand classes have more weights
than it needs. The better of two networks on this task need not be the better one on photographs.

Every image is computed by arithmetic that IEEE 754 rounds in only one way (no sines, no sums over
an axis, no random numbers or fonts of a library), so it has the same bytes on every machine.
"""

import hashlib
import itertools

import numpy as np

from mbv3_jax.core.checks import Resolution, in_pixels, sides
from mbv3_jax.data.source import Source, source

# The order decides which images a split gets.
SPLITS = {"train": 3000, "validation": 1500, "test": 3000}

# The strokes of each letter, (x, y) from -1 to 1, y downwards.
_UPRIGHT = (((-0.6, -1), (-0.6, 1)),)
_PEAKS = ((-0.8, 1), (-0.6, -1), (0, 0.5), (0.6, -1), (0.8, 1))
LETTERS = {
    "A": (((-0.8, 1), (0, -1)), ((0, -1), (0.8, 1)), ((-0.45, 0.3), (0.45, 0.3))),
    "E": (*_UPRIGHT, ((-0.6, -1), (0.6, -1)), ((-0.6, 0), (0.4, 0)), ((-0.6, 1), (0.6, 1))),
    "F": (*_UPRIGHT, ((-0.6, -1), (0.6, -1)), ((-0.6, 0), (0.4, 0))),
    "H": (*_UPRIGHT, ((0.6, -1), (0.6, 1)), ((-0.6, 0), (0.6, 0))),
    "I": (((0, -1), (0, 1)), ((-0.4, -1), (0.4, -1)), ((-0.4, 1), (0.4, 1))),
    "K": (*_UPRIGHT, ((-0.6, 0.1), (0.6, -1)), ((-0.2, -0.25), (0.6, 1))),
    "L": (*_UPRIGHT, ((-0.6, 1), (0.6, 1))),
    "M": tuple(itertools.pairwise(_PEAKS)),
    "N": (*_UPRIGHT, ((-0.6, -1), (0.6, 1)), ((0.6, 1), (0.6, -1))),
    "T": (((-0.7, -1), (0.7, -1)), ((0, -1), (0, 1))),
    "V": (((-0.75, -1), (0, 1)), ((0, 1), (0.75, -1))),
    "W": tuple(itertools.pairwise((x, -y) for x, y in _PEAKS)),
    "X": (((-0.7, -1), (0.7, 1)), ((0.7, -1), (-0.7, 1))),
    "Y": (((-0.7, -1), (0, 0)), ((0.7, -1), (0, 0)), ((0, 0), (0, 1))),
    "Z": (((-0.65, -1), (0.65, -1)), ((0.65, -1), (-0.65, 1)), ((-0.65, 1), (0.65, 1))),
}

_MOST = 4  # strokes per letter
_BEHIND, _BEFORE = 4, 1  # loose strokes behind and in front of the letter
_CHUNK = 64  # images rendered at once, so that their pixels stay in the cache
_F = np.float32


@source("clutter", splits=("train", "test", "validation"), default_recipe="clutter")
class Clutter(Source):
    """One split of the letters; every letter has the same number of images.

    Choose between networks by their accuracy on "validation", and use "test" once at the end. An
    image is rendered when it is first read and then kept, in height * width * 3 bytes.

    Args:
      split: "train" (3000 images), "validation" (1500) or "test" (3000).
      resolution: of the images in pixels: the side of squares, or (height, width).
    """

    def __init__(self, split: str, resolution: Resolution):
        self.name, self.split, self.resolution = "clutter", split, resolution
        self.class_names = tuple(LETTERS)
        before = list(SPLITS).index(split)
        self._first = sum(list(SPLITS.values())[:before])
        self._images = np.empty((SPLITS[split], *sides(resolution), 3), np.uint8)
        self._rendered = np.zeros(SPLITS[split], bool)
        content = hashlib.sha256(self.batch(range(len(LETTERS)))["image"].tobytes()).hexdigest()
        self.fingerprint = f"clutter/{split}/{in_pixels(resolution)}/{len(self)}/{content[:16]}"

    def __len__(self) -> int:
        return len(self._images)

    def labels(self) -> np.ndarray:
        return np.arange(len(self)) % self.num_classes

    def batch(self, indices, views=None):
        indices = np.asarray(indices, np.int64)
        missing = np.unique(indices[~self._rendered[indices]])
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            labels = chunk % self.num_classes
            self._images[chunk] = render(self._first + chunk, labels, sides(self.resolution))
            self._rendered[chunk] = True
        labels = (indices % self.num_classes).astype(np.int32)
        return {"image": self._images[indices], "label": labels}


def render(numbers: np.ndarray, labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Renders images.

    Args:
      numbers: int64 [batch], one number per image; different numbers give different images.
      labels: int [batch], the letter that each image shows.
      shape: height and width of the images, in pixels; the letter fits into the shorter.

    Returns:
      uint8 [batch, height, width, 3].
    """
    draw = _Draws(numbers)
    side = min(shape)
    ticks = [(np.arange(n, dtype=_F) * _F(2) + _F(1)) / _F(side) - _F(n / side) for n in shape]
    y, x = ticks[0][None, :, None], ticks[1][None, None, :]

    ground = draw(0.15, 0.85, 3)  # [batch, 3]
    image = _background(draw, ground, x, y)
    ink = _ink(draw, ground)
    letter = _letter(draw, labels)  # [batch, _MOST, 4]
    thickness = draw(0.06, 0.1)
    loose, widths, colours = _loose_strokes(draw, ink, thickness)

    def paint(strokes: np.ndarray, half_width: np.ndarray, colour: np.ndarray) -> None:
        distance = _distance(strokes, x, y)
        cover = np.clip((half_width[:, None, None] - distance) * _F(side / 2) + _F(0.5), 0, 1)
        # In place, channel by channel, to save memory: image + cover * (colour - image).
        for c in range(3):
            image[c] += cover * (colour[:, c, None, None] - image[c])

    for i in range(_BEHIND):
        paint(loose[:, i : i + 1], widths[:, i], colours[:, i])
    paint(letter, thickness, ink)
    for i in range(_BEHIND, _BEHIND + _BEFORE):
        paint(loose[:, i : i + 1], widths[:, i], colours[:, i])

    noisy = (
        image.transpose(1, 2, 3, 0)
        + draw.noise((*shape, 3)) * draw(0.03, 0.12)[:, None, None, None]
    )
    return (np.clip(noisy, 0, 1) * _F(255) + _F(0.5)).astype(np.uint8)


class _Draws:
    """Random numbers that depend only on the image's number and on the order of the draws."""

    def __init__(self, numbers: np.ndarray):
        self._keys = _mix(numbers.astype(np.uint64) + np.uint64(1))
        self._drawn = 0

    def _bits(self, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        counter = np.arange(self._drawn + 1, self._drawn + 1 + count, dtype=np.uint64)
        self._drawn += count
        keys = self._keys[:, None] + counter * np.uint64(0x9E3779B97F4A7C15)
        return _mix(keys).reshape(len(self._keys), *shape)

    def __call__(self, low: float, high: float, *shape: int) -> np.ndarray:
        """float32 [batch, *shape], uniform from `low` to `high`."""
        unit = (self._bits(shape) >> np.uint64(40)).astype(_F) * _F(2.0**-24)
        return unit * _F(high - low) + _F(low)

    def noise(self, shape: tuple[int, ...]) -> np.ndarray:
        """float32 [batch, *shape], nearly normal with deviation 1: the sum of four random bytes."""
        octets = self._bits(shape).view(np.uint8).reshape(len(self._keys), *shape, 8)
        total = octets[..., 0].astype(_F) + octets[..., 1] + octets[..., 2] + octets[..., 3]
        return (total - _F(510)) * _F(1 / 147.8)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection of uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _background(draw: _Draws, ground: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Stripes and blotches around a colour: float32 [3, batch, height, width]."""
    shape = y.size, x.size
    image = np.empty((3, len(ground), *shape), _F)
    # Triangle waves along a random direction, at most about four per side.
    across, down, shift = draw(-2, 2), draw(-2, 2), draw(0, 1)
    phase = x * across[:, None, None] + y * down[:, None, None] + shift[:, None, None]
    wave = np.abs(phase - np.floor(phase) - _F(0.5)) * _F(2) - _F(0.5)
    tint = draw(-0.3, 0.3, 3)
    coarse, fine = draw(-0.2, 0.2, 3, 5, 5), draw(-0.15, 0.15, 3, 13, 13)
    for c in range(3):
        image[c] = wave * tint[:, c, None, None] + ground[:, c, None, None]
        image[c] += _enlarged(coarse[:, c], shape)
        image[c] += _enlarged(fine[:, c], shape)
    return image


def _enlarged(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[batch, n, n] enlarged to [batch, *shape], corner to corner, bilinear."""
    cells = grid.shape[1] - 1

    def between(side: int) -> tuple[np.ndarray, np.ndarray]:
        place = (np.arange(side, dtype=_F) + _F(0.5)) * _F(cells) / _F(side)
        low = np.minimum(place.astype(np.int64), cells - 1)
        return low, place - low.astype(_F)

    low, fraction = between(shape[0])
    rows = grid[:, low] + (grid[:, low + 1] - grid[:, low]) * fraction[None, :, None]
    low, fraction = between(shape[1])
    return rows[:, :, low] + (rows[:, :, low + 1] - rows[:, :, low]) * fraction


def _ink(draw: _Draws, ground: np.ndarray) -> np.ndarray:
    """A colour that differs in brightness from the background: [batch, 3]."""
    ink, contrast = draw(0, 1, 3), draw(0.3, 0.6)
    weights = np.array([0.3, 0.6, 0.1], _F)

    def brightness(colour: np.ndarray) -> np.ndarray:
        return colour[:, 0] * weights[0] + colour[:, 1] * weights[1] + colour[:, 2] * weights[2]

    behind = brightness(ground)
    target = np.where(behind > _F(0.5), behind - contrast, behind + contrast)
    return ink + (target - brightness(ink))[:, None]


def _letter(draw: _Draws, labels: np.ndarray) -> np.ndarray:
    """The strokes of each image's letter in the image: [batch, _MOST, 4], x0 y0 x1 y1."""
    padded = [(strokes + strokes[-1:] * _MOST)[:_MOST] for strokes in LETTERS.values()]
    ends = np.array(padded, _F)[labels]  # [batch, _MOST, 2, 2]
    ends = ends + draw(-0.08, 0.08, _MOST, 2, 2)
    # A rotation given by the tangent of half its angle needs no sine; at most 17 degrees.
    half = draw(-0.15, 0.15)
    whole = _F(1) + half * half
    cos, sin = (_F(1) - half * half) / whole, (half + half) / whole
    size, narrow, slant = draw(0.5, 0.75), draw(0.75, 1.1), draw(-0.2, 0.2)
    along = _per_image(size * narrow) * ends[..., 0] + _per_image(size * slant) * ends[..., 1]
    down = _per_image(size) * ends[..., 1]
    x = _per_image(cos) * along - _per_image(sin) * down + _per_image(draw(-0.2, 0.2))
    y = _per_image(sin) * along + _per_image(cos) * down + _per_image(draw(-0.2, 0.2))
    return np.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


def _per_image(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]


def _loose_strokes(
    draw: _Draws, ink: np.ndarray, thickness: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strokes [batch, n, 4] anywhere, their half widths [batch, n] and colours [batch, n, 3].

    Every other stroke has nearly the letter's colour, so that colour does not identify them.
    """
    count = _BEHIND + _BEFORE
    start, step = draw(-1.1, 1.1, count, 2), draw(-0.6, 0.6, count, 2)
    strokes = np.concatenate([start, start + step], axis=-1)
    widths = draw(0.7, 1.3, count) * thickness[:, None]
    colours = draw(0, 1, count, 3)
    colours[:, ::2] = ink[:, None] + (colours[:, ::2] - _F(0.5)) * _F(0.3)
    return strokes, widths, colours


def _distance(strokes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """From each pixel to the nearest of the strokes [batch, n, 4]: [batch, side, side]."""
    nearest: np.ndarray = np.array(np.inf, _F)
    for i in range(strokes.shape[1]):
        x0, y0, x1, y1 = (strokes[:, i, k, None, None] for k in range(4))
        across, down = x1 - x0, y1 - y0
        length = np.maximum(across * across + down * down, _F(1e-6))
        left, above = x - x0, y - y0
        along = np.clip((left * (across / length) + above * (down / length)), 0, 1)
        left, above = left - along * across, above - along * down
        nearest = np.minimum(nearest, left * left + above * above)
    return np.sqrt(nearest)
