"""Image files and the pixels in them, all or those of a crop.

JPEG, nearly all of what is read in training, takes a short way where `simplejpeg` (libjpeg-turbo)
is installed: only the rows down to the crop's lower edge are decoded, and of photographs much
larger than needed a half, quarter or eighth size version. Everything else that Pillow reads, and
every file in which something is unusual, goes through Pillow.
"""

import io
import math
import threading

import numpy as np
from PIL import Image

from mbv3_jax.core.checks import choose

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


# Encoded images to square uint8 views: decode, crop, resize. Host only.
#
# `cykooz_resizer` does what Pillow's antialiased resizing does, five times as fast; without it (it
# has no wheels for Linux on arm64) Pillow itself is asked, and a value may differ by a grey level.

try:
    import cykooz_resizer as resizer
except ImportError:
    resizer = None

# Inception preprocessing (Szegedy et al. 2014, section 6): 8% to 100% of the area, aspect ratio
# 3/4 to 4/3. Ten attempts and then a central crop: torchvision's RandomResizedCrop.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
CENTRAL_FRACTION = 0.875

INTERPOLATIONS = {
    "bilinear": ("bilinear", Image.Resampling.BILINEAR),
    "bicubic": ("catmull_rom", Image.Resampling.BICUBIC),  # both a = -0.5
}
CENTRAL = ("square", "stretch")

_local = threading.local()


def random_box(width, height, rng: np.random.Generator, area=AREA, ratio=RATIO) -> Box:
    """Draws an Inception crop: area uniform, aspect ratio log-uniform, place uniform.

    A shape that does not fit is drawn again, ten times; then the largest central crop whose
    aspect ratio is allowed is taken.

    Args:
      width, height: of the image, in pixels.
      rng: where all randomness comes from.
      area: least and largest area of the crop, as a fraction of the image's.
      ratio: least and largest width / height of the crop.

    Returns:
      A box with whole-numbered edges.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        pixels = width * height * (area[0] + (area[1] - area[0]) * rng.random())
        shape = math.exp(low + (high - low) * rng.random())
        crop_width, crop_height = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.random() * (width - crop_width + 1))
            top = int(rng.random() * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = max(1, min(width, round(height * ratio[1])))
    crop_height = max(1, min(height, round(width / ratio[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def central_box(width, height, fraction: float = CENTRAL_FRACTION, central="square") -> Box:
    """Returns the box of the evaluation view.

    Args:
      width, height: of the image, in pixels.
      fraction: of the shorter side, or of both sides.
      central: "square" is the central square whose side is `fraction` of the shorter side: the
        view of resizing the shorter side to `resolution / fraction` and cutting the centre out
        (torchvision, timm, the TPU reference code), in one resampling. "stretch" takes `fraction`
        of either side, so that the view is distorted unless the image is square (slim).

    Returns:
      A box whose edges may lie between pixels.
    """
    square = choose("central", central, CENTRAL) == "square"
    crop_width = fraction * (min(width, height) if square else width)
    crop_height = fraction * (min(width, height) if square else height)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def decode_view(
    encoded: bytes,
    *,
    resolution: int,
    view: np.random.Generator | None = None,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
    interpolation: str = "bilinear",
    crop_fraction: float = CENTRAL_FRACTION,
    central: str = "square",
    exif_rotate: bool = False,
) -> np.ndarray:
    """Decodes an image file and returns one square view of it; threads may do so at once.

    Args:
      encoded: the bytes of a JPEG, PNG, WebP or other file that Pillow reads. Grey, palette and
        CMYK become RGB, 16 bits become 8, alpha is dropped; of an animation, the first frame.
      resolution: side R of the result, in pixels.
      view: draws an Inception crop for training; None gives the evaluation view.
      area, ratio: of the training crop, see `random_box`.
      interpolation: "bilinear" or "bicubic", antialiased when it makes smaller, like Pillow's.
      crop_fraction, central: of the evaluation view, see `central_box`.
      exif_rotate: turn the image upright as its EXIF tag says, if it has one.

    Returns:
      uint8 [R, R, 3], read-only.

    Raises:
      ImageError: not an image, or a truncated one.
      ValueError: an option that does not exist.
    """
    choose("interpolation", interpolation, INTERPOLATIONS)
    choose("central", central, CENTRAL)
    try:
        image = open_image(encoded)
        turn = _TURNS[image.orientation() if exif_rotate else 1]
        size = image.size[::-1] if turn[0] else image.size
        if view is None:
            box = _stored(central_box(*size, crop_fraction, central), size, turn)
            pixels = image.pixels()
        else:
            box = _stored(random_box(*size, view, area, ratio), size, turn)
            pixels, box = image.crop(box, resolution)
        return _turned(_resize(pixels, box, resolution, interpolation), turn)
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        reason = str(error).partition(" <_io.BytesIO object at")[0] or type(error).__name__
        raise ImageError(f"cannot decode {len(encoded)} bytes as an image: {reason}") from error


def _resize(pixels: np.ndarray, box: Box, resolution: int, interpolation: str) -> np.ndarray:
    names = INTERPOLATIONS[interpolation]
    left, top, right, bottom = box
    if resizer is None:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.resize((resolution, resolution), names[1], box=box))
    if not hasattr(_local, "resizer"):  # it keeps buffers, so each thread has its own
        _local.resizer = resizer.Resizer()
    kind = resizer.PixelType.U8x3
    source = resizer.ImageData(pixels.shape[1], pixels.shape[0], kind, pixels.tobytes())
    result = resizer.ImageData(resolution, resolution, kind)
    options = resizer.ResizeOptions(
        resize_alg=resizer.ResizeAlg.convolution(getattr(resizer.FilterType, names[0])),
        crop_box=resizer.CropBox(left, top, right - left, bottom - top),
    )
    _local.resizer.resize(source, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(resolution, resolution, 3)


# EXIF orientation: upright is the stored image (transposed, then left-right, then up-down).
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def _stored(box: Box, size: tuple[int, int], turn: tuple[bool, bool, bool]) -> Box:
    """Maps a box in the upright image, of this size, to the image as it is stored."""
    (left, top, right, bottom), (width, height) = box, size
    transposed, left_right, up_down = turn
    if left_right:
        left, right = width - right, width - left
    if up_down:
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if transposed else (left, top, right, bottom)


def _turned(square: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    transposed, left_right, up_down = turn
    square = square.swapaxes(0, 1) if transposed else square
    square = square[:, ::-1] if left_right else square
    return square[::-1] if up_down else square
