"""Image files to square uint8 views: decode, crop, resize. On the host only.

JPEG, which is nearly all that training reads, takes a fast path where `simplejpeg` (libjpeg-turbo)
is installed: only the rows down to the lower edge of the crop are decoded, and photographs much
larger than needed are decoded at a half, a quarter or an eighth of their size. All other formats
that Pillow reads, and every file with something unusual in it, go through Pillow.

`cykooz_resizer` resizes like Pillow with antialiasing, five times as fast. Without it (it has no
wheels for Linux on arm64) Pillow resizes, and a value may differ by a grey level.
"""

import abc
import io
import math
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from mbv3_jax.core.checks import Resolution, choose, sides
from mbv3_jax.core.errors import counted, printable
from mbv3_jax.core.limits import check_limit, limit
from mbv3_jax.data.source import BadExample, Batch, Source

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
try:
    import cykooz_resizer as resizer
except ImportError:
    resizer = None
try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()  # Pillow then reads HEIC

# left, top, right, bottom, in pixels; the edges of a training crop are whole numbers
Box = tuple[float, float, float, float]
WholeBox = tuple[int, int, int, int]
Edge = TypeVar("Edge", int, float)

# Inception preprocessing (Szegedy et al. 2014, section 6): 8% to 100% of the area, aspect ratio
# 3/4 to 4/3. Ten attempts and then a central crop, as in torchvision's RandomResizedCrop.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
CENTRAL_FRACTION = 0.875

INTERPOLATIONS = {
    "bilinear": ("bilinear", Image.Resampling.BILINEAR),
    "bicubic": ("catmull_rom", Image.Resampling.BICUBIC),  # both a = -0.5
}
CENTRAL = ("square", "stretch")
CHANNELS = (1, 3)  # grey, RGB

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size only if its crop then still has this many times
# the needed pixels per side. With a factor of 1 the view differs from the exact one by 1.4 grey
# levels on average, with 2 by 0.5 (100 ImageNet photographs).
_SPARE = 2

# `open_image` refuses what is too large in one line; Pillow would print a warning besides.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_local = threading.local()


class ImageError(ValueError):
    """Bytes are not an image that can be decoded; the message says why."""


class Encoded(Source):
    """A source of image files, in folders or in archives; each is decoded when it is read.

    Args:
      crop: options of `decode_view`, by name.

    Raises:
      ValueError: image files are not read in this number of channels.
    """

    encoded = True

    def __init__(self, crop: Mapping[str, Any]):
        self._crop = dict(crop)
        self.channels = _check_channels(self._crop.get("channels", 3))

    @abc.abstractmethod
    def read(self, index: int) -> tuple[bytes, Any]:
        """Returns an example's image as it is stored, and its label: a number, or [classes].

        Raises:
          OSError: it cannot be read.
        """

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """Where an example is stored, for messages: its path."""

    def batch(
        self,
        indices: Sequence[int] | np.ndarray,
        views: Iterable[np.random.Generator] | None = None,
    ) -> Batch:
        batch, problems = self.load(indices, views)
        if problems:
            raise BadExample(next(iter(problems.values())))
        return batch

    def load(
        self,
        indices: Sequence[int] | np.ndarray,
        views: Iterable[np.random.Generator] | None = None,
    ) -> tuple[Batch, dict[int, str]]:
        images = np.zeros((len(indices), *sides(self.resolution), self.channels), np.uint8)
        single = self.label_kind == "single"
        labels = np.zeros(len(indices), np.int32)
        if not single:
            labels = np.zeros((len(indices), self.num_classes), np.float32)
        problems = {}
        generators = iter(views) if views is not None else None
        for row, index in enumerate(map(int, indices)):
            view = next(generators) if generators is not None else None
            try:
                encoded, label = self.read(index)
                if single and not 0 <= label < self.num_classes:
                    raise ImageError(f"label {label}, expected 0 to {self.num_classes - 1}")
                images[row] = decode_view(
                    encoded, resolution=self.resolution, view=view, **self._crop
                )
                labels[row] = label
            except (ImageError, OSError) as error:
                # Without the path that an OSError puts into its text: `where` has it already.
                reason = getattr(error, "strerror", None) or str(error)
                problems[row] = printable(f"{self.where(index)}: {reason}")
        return {"image": images, "label": labels}, problems


def decode_view(
    encoded: bytes,
    *,
    resolution: Resolution,
    view: np.random.Generator | None = None,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
    interpolation: str = "bilinear",
    crop_fraction: float = CENTRAL_FRACTION,
    central: str = "square",
    exif_rotate: bool = False,
    channels: int = 3,
) -> np.ndarray:
    """Decodes an image file and returns one view of it; threads may call it concurrently.

    Args:
      encoded: the bytes of a JPEG, PNG, WebP or other file that Pillow reads. Grey, palette and
        CMYK images become RGB, 16 bits become 8, alpha is dropped, and an animation is read as its
        first frame.
      resolution: of the result in pixels: its side, or (height, width).
      view: the generator that draws an Inception crop for training; None for the evaluation view.
      area, ratio: of the training crop, see `random_box`.
      interpolation: "bilinear" or "bicubic", antialiased when it shrinks, as in Pillow.
      crop_fraction, central: of the evaluation view, see `central_box`.
      exif_rotate: whether to turn the image upright by its EXIF tag.
      channels: 3 for RGB; 1 for the luminance of it, as Pillow's convert("L"), which a grey image
        is already.

    Returns:
      uint8 [height, width, channels], read-only.

    Raises:
      ImageError: the bytes are not an image, or a truncated one.
      ValueError: an unknown value of an option.
    """
    choose("interpolation", interpolation, INTERPOLATIONS)
    choose("central", central, CENTRAL)
    _check_channels(channels)
    try:
        image = open_image(encoded)
        turn = _TURNS[image.orientation() if exif_rotate else 1]
        size = image.size[::-1] if turn[0] else image.size
        shape = sides(resolution)
        stored = shape[::-1] if turn[0] else shape
        box: Box
        if view is None:
            box = central_box(size[0], size[1], crop_fraction, central, shape[1] / shape[0])
            box = _stored(box, size, turn)
            pixels = image.pixels()
        else:
            drawn = random_box(size[0], size[1], view, area, ratio)
            pixels, box = image.crop(_stored(drawn, size, turn), stored)
        if channels == 1:  # before it is resized, as if the file were grey
            pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
            pixels = pixels[..., None]
        return _turned(_resize(pixels, box, stored, interpolation), turn)
    except Exception as error:  # on broken files the plugins of Pillow raise almost anything
        reason = str(error).partition(" <_io.BytesIO object at")[0] or type(error).__name__
        raise ImageError(f"cannot decode {len(encoded)} bytes as an image: {reason}") from error


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    area: tuple[float, float] = AREA,
    ratio: tuple[float, float] = RATIO,
) -> WholeBox:
    """Draws an Inception crop: uniform area, log-uniform aspect ratio, uniform position.

    A shape that does not fit is drawn again, up to ten times; after that the result is the largest
    central crop with an allowed aspect ratio.

    Args:
      width, height: of the image, in pixels.
      rng: the generator that supplies all randomness.
      area: least and largest area of the crop, as a fraction of the image's.
      ratio: least and largest width / height of the crop.

    Returns:
      A box whose edges are whole numbers.
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


def central_box(
    width: int,
    height: int,
    fraction: float = CENTRAL_FRACTION,
    central: str = "square",
    aspect: float = 1.0,
) -> Box:
    """Returns the box of the evaluation view.

    Args:
      width, height: of the image, in pixels.
      fraction: of the sides of the largest box of the wanted shape, or of both sides of the image.
      central: "square" is the central box of the wanted shape, for a square one with a side that is
        `fraction` of the shorter side. This equals resizing the shorter side to
        `resolution / fraction` and then cutting out the centre (torchvision, timm, the TPU
        reference code), but takes a single resampling. "stretch" takes `fraction` of both sides,
        which distorts images of another shape (slim).
      aspect: width / height of the view.

    Returns:
      A box whose edges may lie between pixels.
    """
    square = choose("central", central, CENTRAL) == "square"
    crop_width = fraction * (min(width, height * aspect) if square else width)
    crop_height = fraction * (min(height, width / aspect) if square else height)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def _check_channels(channels: int) -> int:
    if channels not in CHANNELS:
        raise ValueError(
            f"net.in_channels: image files are read in 1 channel (grey) or 3 (RGB), but the "
            f"network takes {counted(channels, 'channel')}; a source of your own may have them"
        )
    return channels


def _resize(pixels: np.ndarray, box: Box, shape: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes a box of pixels to a height and a width."""
    names, channels = INTERPOLATIONS[interpolation], pixels.shape[2]
    left, top, right, bottom = box
    height, width = shape
    if resizer is None:
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels))
        resized = np.asarray(image.resize((width, height), names[1], box=box))
        return resized.reshape(height, width, channels)
    if not hasattr(_local, "resizer"):  # it keeps buffers, so each thread needs its own
        _local.resizer = resizer.Resizer()
    kind = resizer.PixelType.U8 if channels == 1 else resizer.PixelType.U8x3
    source = resizer.ImageData(pixels.shape[1], pixels.shape[0], kind, pixels.tobytes())
    result = resizer.ImageData(width, height, kind)
    options = resizer.ResizeOptions(
        resize_alg=resizer.ResizeAlg.convolution(getattr(resizer.FilterType, names[0])),
        crop_box=resizer.CropBox(left, top, right - left, bottom - top),
    )
    _local.resizer.resize(source, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(height, width, channels)


# EXIF orientation -> how the stored image becomes upright: whether it is transposed, then mirrored
# left to right, then top to bottom.
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


def _stored(
    box: tuple[Edge, Edge, Edge, Edge], size: tuple[int, int], turn: tuple[bool, bool, bool]
) -> tuple[Edge, Edge, Edge, Edge]:
    """Maps a box in the upright image, whose size is given, to the image as it is stored."""
    (left, top, right, bottom), (width, height) = box, size
    transposed, left_right, up_down = turn
    if left_right:
        left, right = width - right, width - left
    if up_down:
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if transposed else (left, top, right, bottom)


def _turned(view: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    transposed, left_right, up_down = turn
    view = view.swapaxes(0, 1) if transposed else view
    view = view[:, ::-1] if left_right else view
    return view[::-1] if up_down else view


# The files, before anything is cropped.


def open_image(encoded: bytes) -> "_Pillow | _Jpeg":
    """Opens the bytes of an image file without decoding them yet.

    Raises:
      OverLimit: It declares more pixels than MBV3_MAX_IMAGE_PIXELS.
    """
    header = jpeg_header(encoded) if simplejpeg else None
    image = _Jpeg(encoded, *header) if header else _Pillow(encoded)
    width, height = image.size
    check_limit("MBV3_MAX_IMAGE_PIXELS", width * height, f"its {width} x {height} are")
    return image


class _Pillow:
    """An image file of any format, read by Pillow."""

    def __init__(self, encoded: bytes):
        allowed = limit("MBV3_MAX_IMAGE_PIXELS")
        if Image.MAX_IMAGE_PIXELS and allowed > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = allowed  # else Pillow would keep to its own limit
        try:
            self._image = Image.open(io.BytesIO(encoded))
        except Image.DecompressionBombError:  # from twice its limit on; it does not say the size
            at_least = 2 * (Image.MAX_IMAGE_PIXELS or allowed)
            check_limit("MBV3_MAX_IMAGE_PIXELS", at_least, "it declares more than")
            raise
        self.size = self._image.size

    def orientation(self) -> int:
        return _orientation(self._image)

    def pixels(self) -> np.ndarray:
        """Decodes the whole image: uint8 [height, width, 3]."""
        image: Image.Image = self._image
        if image.mode == "F":
            raise ImageError("pixels are floats of unknown range, expected 8 or 16 bits")
        if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip instead of scale
            grey = np.clip(np.asarray(image, np.float32), 0, 65535)
            return np.repeat(np.rint(grey / 257).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in ("P", "PA") and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns if it is converted to RGB directly
        return np.asarray(image.convert("RGB"))

    def crop(self, box: WholeBox, shape: tuple[int, int]) -> tuple[np.ndarray, Box]:
        """Decodes what a crop needs.

        Args:
          box: the crop.
          shape: height and width in pixels to which the crop will be resized.

        Returns:
          uint8 [height, width, 3], and the crop as a box in these pixels.
        """
        left, top, right, bottom = box
        return self.pixels()[top:bottom, left:right], (0, 0, right - left, bottom - top)


class _Jpeg:
    """A JPEG file with one or three colour channels, read by libjpeg-turbo directly."""

    def __init__(self, encoded: bytes, size: tuple[int, int], height_at: int | None):
        """`size` and `height_at` are what `jpeg_header` returns."""
        self._encoded, self.size, self._height_at = encoded, size, height_at

    def orientation(self) -> int:
        return _orientation(Image.open(io.BytesIO(self._encoded)))

    def pixels(self) -> np.ndarray:
        return simplejpeg.decode_jpeg(self._encoded, "RGB", strict=False)

    def crop(self, box: WholeBox, shape: tuple[int, int]) -> tuple[np.ndarray, Box]:
        """See `_Pillow.crop`."""
        left, top, right, bottom = box
        scale, spare = 1, min((bottom - top) / shape[0], (right - left) / shape[1])
        while scale < 8 and spare >= 2 * scale * _SPARE:
            scale *= 2
        encoded, (width, height) = self._encoded, self.size
        # A decoder that finds a smaller height in the header stops there. Chroma, at most 4 times
        # coarser, is interpolated: one more row of it keeps the last row of the crop unchanged.
        rows = bottom + 4 * scale
        if self._height_at and rows < height:
            height = rows
            before, after = encoded[: self._height_at], memoryview(encoded)[self._height_at + 2 :]
            encoded = b"".join((before, height.to_bytes(2), after))
        pixels = simplejpeg.decode_jpeg(
            encoded,
            "RGB",
            strict=False,  # ignores warnings, as Pillow does
            min_width=-(-width // scale) if scale > 1 else 0,
            min_height=-(-height // scale) if scale > 1 else 0,
        )
        x, y = left // scale, top // scale
        pixels = pixels[y : -(-bottom // scale), x : -(-right // scale)]
        return pixels, (left / scale - x, top / scale - y, right / scale - x, bottom / scale - y)


def jpeg_header(encoded: bytes) -> tuple[tuple[int, int], int | None] | None:
    """Reads the size of a JPEG that can take the fast path (ITU-T T.81, annex B).

    Returns:
      (width, height) and the position of the two bytes that hold the height. The position is None
      if the whole file must be read (progressive). The result is None for anything but a complete
      8-bit JPEG with one or three channels.
    """
    # A file without the end marker may be truncated: Pillow finds out.
    if encoded[:2] != b"\xff\xd8" or encoded[-2:] != b"\xff\xd9":
        return None
    at, frame = 2, None
    while at + 10 < len(encoded) and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4])
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            bits, components = encoded[at + 4], encoded[at + 9]
            height, width = (int.from_bytes(encoded[i : i + 2]) for i in (at + 5, at + 7))
            usual = bits == 8 and components in (1, 3)
            if not usual or not width * height:
                return None
            frame = (width, height), at + 5, components, marker
        elif marker == 0xDA:  # the first scan
            if frame is None:
                return None
            size, height_at, components, kind = frame
            one_scan = kind != 0xC2 and encoded[at + 4] == components
            return size, height_at if one_scan else None
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker < 0xC0:
            return None
        at += 2 + length
    return None


def _orientation(image: Image.Image) -> int:
    tag = image.getexif().get(0x0112, 1)
    return tag if tag in range(1, 9) else 1
