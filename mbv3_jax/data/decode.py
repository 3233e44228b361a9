"""Encoded photographs to square uint8 images: decode, crop, resize. Host only, Pillow."""

import io
import math

import numpy as np
from PIL import Image

# Inception preprocessing (Szegedy et al. 2014, section 6): 8% to 100% of the area, aspect ratio
# 3/4 to 4/3.
_AREA = (0.08, 1.0)
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_ATTEMPTS = 10
CENTRAL_FRACTION = 0.875

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draws an Inception crop: area uniform, aspect ratio log-uniform, place uniform.

    A shape that does not fit is drawn again, ten times; then the largest central crop whose
    aspect ratio is allowed is taken.
    """
    for _ in range(_ATTEMPTS):
        area = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * rng.random())
        ratio = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * rng.random())
        crop_width = round(math.sqrt(area * ratio))
        crop_height = round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.random() * (width - crop_width + 1))
            top = int(rng.random() * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    low, high = (math.exp(r) for r in _LOG_RATIO)
    crop_width, crop_height = min(width, height * high), min(height, width / low)
    return _central(width, height, crop_width, crop_height)


def central_box(width: int, height: int, fraction: float = CENTRAL_FRACTION) -> Box:
    """Returns the central square whose side is `fraction` of the shorter side.

    The same view as resizing the shorter side to `resolution / fraction` and cutting the centre
    out, with one resampling in place of two steps.
    """
    side = fraction * min(width, height)
    return _central(width, height, side, side)


def _central(width: int, height: int, crop_width: float, crop_height: float) -> Box:
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def decode(encoded: bytes, resolution: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Decodes an image file and returns one square view of it.

    Args:
      encoded: the bytes of a JPEG, PNG or other file that Pillow reads; converted to RGB.
      resolution: side R of the result, in pixels.
      rng: draws an Inception crop for training; None gives the central crop for evaluation.

    Returns:
      uint8 [R, R, 3]; resized by antialiased bilinear interpolation.

    Raises:
      OSError: not an image, or a truncated one.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        box = random_box(*image.size, rng) if rng is not None else central_box(*image.size)
        view = image.convert("RGB").resize(
            (resolution, resolution), Image.Resampling.BILINEAR, box=box
        )
    return np.asarray(view)
