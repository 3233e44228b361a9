"""Image files and the pixels in them, all or those of a crop.

JPEG, nearly all of what is read in training, takes a short way where `simplejpeg` (libjpeg-turbo)
is installed: only the rows down to the crop's lower edge are decoded, and of photographs much
larger than needed a half, quarter or eighth size version. Everything else that Pillow reads, and
every file in which something is unusual, goes through Pillow.
"""

import io
import math

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size only if the crop then still has this many times
# the pixels a side that are asked for. At 1, the view differs from the exact one by 1.4 grey
# levels in the mean; at 2, by 0.5 (100 ImageNet photographs).
_SPARE = 2


class ImageError(ValueError):
    """The bytes are not an image that can be decoded; the message says why."""


def open_image(encoded: bytes):
    """Opens the bytes of an image file; decodes nothing yet."""
    header = jpeg_header(encoded) if simplejpeg else None
    return _Jpeg(encoded, *header) if header else _Other(encoded)


class _Other:
    """Any format, through Pillow."""

    def __init__(self, encoded: bytes):
        self._image = Image.open(io.BytesIO(encoded))
        self.size = self._image.size

    def orientation(self) -> int:
        return _orientation(self._image)

    def pixels(self) -> np.ndarray:
        """Decodes all of it, [height, width, 3]."""
        image = self._image
        if image.mode == "F":
            raise ImageError("pixels are floats of unknown range, expected 8 or 16 bits")
        if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow's own conversion clips
            grey = np.clip(np.asarray(image, np.float32), 0, 65535)
            return np.repeat(np.rint(grey / 257).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in ("P", "PA") and "transparency" in image.info:
            image = image.convert("RGBA")  # straight to RGB Pillow warns
        return np.asarray(image.convert("RGB"))

    def crop(self, box: Box, resolution: int) -> tuple[np.ndarray, Box]:
        """Returns the pixels of a box with whole-numbered edges, and the box within them."""
        left, top, right, bottom = box
        return self.pixels()[top:bottom, left:right], (0, 0, right - left, bottom - top)


class _Jpeg:
    """Grey or three-coloured JPEG, through libjpeg-turbo without Pillow around it."""

    def __init__(self, encoded: bytes, size: tuple[int, int], height_at: int | None):
        self._encoded, self.size, self._height_at = encoded, size, height_at

    def orientation(self) -> int:
        return _orientation(Image.open(io.BytesIO(self._encoded)))

    def pixels(self) -> np.ndarray:
        return simplejpeg.decode_jpeg(self._encoded, "RGB", strict=False)

    def crop(self, box: Box, resolution: int) -> tuple[np.ndarray, Box]:
        left, top, right, bottom = box
        scale = 1
        while scale < 8 and min(right - left, bottom - top) >= 2 * scale * _SPARE * resolution:
            scale *= 2
        encoded, (width, height) = self._encoded, self.size
        # A decoder that reads a smaller height stops there. Chroma, at most 4 times coarser, is
        # interpolated: one more row of it leaves the crop's last row as it would have been.
        rows = bottom + 4 * scale
        if self._height_at and rows < height:
            height = rows
            after = self._height_at + 2
            encoded = b"".join(
                (encoded[: self._height_at], height.to_bytes(2), memoryview(encoded)[after:])
            )
        pixels = simplejpeg.decode_jpeg(
            encoded,
            "RGB",
            strict=False,  # warnings, which Pillow ignores too
            min_width=-(-width // scale) if scale > 1 else 0,
            min_height=-(-height // scale) if scale > 1 else 0,
        )
        x, y = left // scale, top // scale
        pixels = pixels[y : -(-bottom // scale), x : -(-right // scale)]
        return pixels, (left / scale - x, top / scale - y, right / scale - x, bottom / scale - y)


def jpeg_header(encoded: bytes) -> tuple[tuple[int, int], int | None] | None:
    """Reads the size of a JPEG that the short way can take (ITU-T T.81, annex B).

    Returns:
      (width, height) and the position of the two bytes that hold the height, None for the
      position if all of the file must be read (progressive); None altogether for everything but a
      complete 8-bit JPEG, grey or three-coloured, of no suspicious size.
    """
    # A file that does not end as it should may be truncated: Pillow finds out.
    if encoded[:2] != b"\xff\xd8" or encoded[-2:] != b"\xff\xd9":
        return None
    at, found = 2, None
    while at + 10 < len(encoded) and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4])
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            bits, components = encoded[at + 4], encoded[at + 9]
            height, width = (int.from_bytes(encoded[i : i + 2]) for i in (at + 5, at + 7))
            limit = Image.MAX_IMAGE_PIXELS or math.inf
            usual = bits == 8 and components in (1, 3)
            if not usual or not 0 < width * height <= limit:
                return None
            found = (width, height), at + 5, components, marker
        elif marker == 0xDA:  # the first scan
            if found is None:
                return None
            size, height_at, components, kind = found
            one_scan = kind != 0xC2 and encoded[at + 4] == components
            return size, height_at if one_scan else None
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker < 0xC0:
            return None
        at += 2 + length
    return None


def _orientation(image: Image.Image) -> int:
    tag = image.getexif().get(0x0112, 1)
    return tag if tag in range(1, 9) else 1
