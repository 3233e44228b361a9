"""Views of encoded images: against Pillow, in every format, and from broken files."""

import contextlib
import io
import math
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from mbv3_jax.core.checks import sides
from mbv3_jax.data import decode
from mbv3_jax.data.decode import ImageError, decode_view

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with the spectrum of photographs, nearly 1/f, and an edge."""
    generator = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(fx, fy), 1 / max(width, height))
    noise = np.fft.rfft2(generator.normal(size=(3, height, width)))
    channels = np.fft.irfft2(noise / frequency**1.2, (height, width))
    channels = np.stack([channels[0], 0.8 * channels[0] + 0.4 * channels[1], channels[2]], -1)
    pixels = 128 + 45 * channels / channels.std()
    pixels[height // 3 :, width // 2 :] -= 60
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def difference(one, other) -> np.ndarray:
    return np.abs(np.asarray(one, int) - np.asarray(other, int))


@pytest.fixture(params=["fast", "pillow"])
def libraries(request, monkeypatch):
    """With the libraries that make it fast, and as if they had no wheels for this machine."""
    if request.param == "pillow":
        monkeypatch.setattr(decode, "simplejpeg", None)
        monkeypatch.setattr(decode, "resizer", None)
    elif decode.simplejpeg is None or decode.resizer is None:
        pytest.skip("simplejpeg and cykooz_resizer are not installed")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resolution", [32, 96, 224, 400, (96, 160), (240, 96)])
def test_views_are_pillows_resize(libraries, resolution, interpolation):
    # Up to a crop twice as large as the view everything is decoded at its full size.
    encoded = encode(photograph(150 if resolution == 32 else 460, 130 if resolution == 32 else 345))
    image = decoded(encoded)
    options = {"resolution": resolution, "interpolation": interpolation}
    height, width = sides(resolution)
    shape, filter_ = (width, height), _PILLOW[interpolation]
    central = decode.central_box(*image.size, aspect=width / height)
    cases = [(decode_view(encoded, **options), central)]
    for seed in range(3):
        view = decode_view(encoded, **options, view=np.random.default_rng(seed))
        box = decode.random_box(*image.size, np.random.default_rng(seed))
        assert min((box[2] - box[0]) / width, (box[3] - box[1]) / height) < 4
        assert view.shape == (height, width, 3) and view.dtype == np.uint8
        cases.append((view, box))
    for view, box in cases:
        inside = all(edge == int(edge) for edge in box)
        # A training crop sees nothing outside itself: cut out, then resized.
        expected = image.crop(box).resize(shape, filter_) if inside else None
        expected = expected or image.resize(shape, filter_, box=box)
        off = difference(view, expected)
        assert off.mean() < 0.3
        # Between its two passes Pillow clips what a cubic overshoots.
        assert off.max() <= 2 if interpolation == "bilinear" else np.percentile(off, 99.9) <= 4


def test_random_crop_is_all_in_the_generator():
    encoded = encode(photograph(300, 200))
    views = [
        decode_view(encoded, resolution=48, view=np.random.default_rng(seed)) for seed in (1, 1, 2)
    ]
    assert np.array_equal(views[0], views[1])
    assert difference(views[0], views[2]).mean() > 5


def test_random_boxes_have_the_statistics_of_inception():
    generator = np.random.default_rng(0)
    boxes = np.array([decode.random_box(9000, 9000, generator) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 81e6, width / height
    assert boxes[:, :2].min() >= 0 and boxes[:, 2:].max() <= 9000
    assert 0.079 < area.min() < 0.085 and 0.9 < area.max() <= 1
    assert 0.749 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.336
    small = area < 0.5  # every shape of these fits, none is drawn again
    assert abs(area[small].mean() - 0.29) < 0.01  # uniform from 0.08 to 0.5
    assert abs(np.log(ratio[small]).mean()) < 0.01  # log-uniform
    assert abs(np.log(ratio[small]).std() - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.01
    place = boxes[:, 0] / np.maximum(9000 - width, 1)
    assert abs(place.mean() - 0.5) < 0.02 and abs(place.std() - 1 / math.sqrt(12)) < 0.02


def test_area_and_ratio_are_options():
    generator = np.random.default_rng(0)
    for _ in range(50):
        box = decode.random_box(500, 400, generator, area=(0.25, 0.25), ratio=(1, 1))
        assert box[2] - box[0] == box[3] - box[1] == round(math.sqrt(0.25 * 500 * 400))
    encoded = encode(photograph(60, 60))
    whole = decode_view(encoded, resolution=60, view=generator, area=(1, 1), ratio=(1, 1))
    assert difference(whole, decoded(encoded)).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(2000, 10), (10, 2000), (1, 1), (1, 300), (3, 2)])
def test_tiny_and_extreme_images(libraries, width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    encoded = encode(Image.fromarray(pixels))
    for seed in range(5):
        generator = np.random.default_rng(seed)
        left, top, right, bottom = decode.random_box(width, height, generator)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        if min(width, height) >= 10:
            assert 0.7 < (right - left) / (bottom - top) < 1.4
        view = decode_view(encoded, resolution=64, view=np.random.default_rng(seed))
        assert view.shape == (64, 64, 3)
    box = decode.central_box(width, height)
    expected = decoded(encoded).resize((64, 64), Image.Resampling.BILINEAR, box=box)
    assert difference(decode_view(encoded, resolution=64), expected).max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_resize_then_centre(libraries, interpolation):
    # 256 / 448 of 448 x 672 are whole numbers of pixels, so the two steps are exactly one.
    encoded = encode(photograph(672, 448), "PNG")
    whole = decoded(encoded).resize((384, 256), _PILLOW[interpolation])
    expected = whole.crop((80, 16, 304, 240))
    off = difference(decode_view(encoded, resolution=224, interpolation=interpolation), expected)
    assert off.max() <= 2 if interpolation == "bilinear" else np.percentile(off, 99.9) <= 4
    assert off.mean() < 0.3


def test_evaluation_options():
    assert decode.central_box(500, 400) == (75, 25, 425, 375)
    assert decode.central_box(500, 400, 1.0) == (50, 0, 450, 400)
    assert decode.central_box(400, 500, 0.5, "stretch") == (100, 125, 300, 375)
    # The largest box of the shape is as wide as the image, or as high.
    assert decode.central_box(500, 400, 1.0, aspect=2.0) == (0, 75, 500, 325)
    assert decode.central_box(500, 400, 0.5, aspect=0.5) == (200, 100, 300, 300)
    encoded = encode(photograph(320, 160), "PNG")
    expected = decoded(encoded).resize((64, 64), Image.Resampling.BILINEAR, box=(20, 10, 300, 150))
    view = decode_view(encoded, resolution=64, central="stretch")
    assert difference(view, expected).max() <= 2
    same = decode_view(encode(photograph(64, 64), "PNG"), resolution=64, crop_fraction=1.0)
    assert np.array_equal(same, photograph(64, 64))
    with pytest.raises(ValueError, match=r"interpolation.*'lanczos'.*bilinear"):
        decode_view(encoded, resolution=64, interpolation="lanczos")
    with pytest.raises(ValueError, match=r"central.*'middle'.*square"):
        decode_view(encoded, resolution=64, central="middle")


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "keep"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_partial_decoding_changes_nothing(subsampling, options):
    """Rows below the crop are left out; those within it are bit for bit the same."""
    pytest.importorskip("simplejpeg")
    image = photograph(200, 301)
    if subsampling == "keep":
        image = image.convert("L")
    else:
        options = {**options, "subsampling": subsampling}
    encoded = encode(image, quality=90, **options)
    size, height_at = decode.jpeg_header(encoded)
    assert size == (200, 301)
    assert (height_at is None) == ("progressive" in options)
    exact = np.asarray(decoded(encoded))
    opened = decode.open_image(encoded)
    for bottom in (1, 2, 15, 16, 17, 31, 32, 33, 100, 255, 284, 285, 286, 300, 301):
        box = (3, bottom // 2, 150, bottom)
        pixels, inner = opened.crop(box, (200, 200))
        assert inner == (0, 0, 147, bottom - bottom // 2)
        assert np.array_equal(pixels, exact[bottom // 2 : bottom, 3:150])


@pytest.mark.parametrize(("side", "scale"), [(255, 1), (256, 2), (511, 2), (512, 4), (1024, 8)])
def test_large_photographs_are_decoded_small(side, scale):
    pytest.importorskip("simplejpeg")
    encoded = encode(photograph(side + 37, side + 51), quality=92)
    box = (13, 7, 13 + side, 7 + side)
    pixels, inner = decode.open_image(encoded).crop(box, (64, 64))
    assert pixels.shape[0] in (math.ceil(side / scale), math.ceil(side / scale) + 1)
    assert inner[2] - inner[0] == side / scale and 0 <= inner[0] < 1
    view = decode._resize(pixels, inner, (64, 64), "bilinear")
    expected = decoded(encoded).crop(box).resize((64, 64), Image.Resampling.BILINEAR)
    off = difference(view, expected)
    assert off.mean() < (0.3 if scale == 1 else 2)  # noise as sharp as this is the worst case
    # Not shifted: the difference has no slope along a ramp.
    ramp = Image.fromarray(np.tile(np.linspace(20, 235, side + 37), (side + 51, 1)).astype("uint8"))
    ramp = encode(ramp.convert("RGB"), quality=95)
    pixels, inner = decode.open_image(ramp).crop(box, (64, 64))
    view = decode._resize(pixels, inner, (64, 64), "bilinear").astype(float)
    expected = np.asarray(decoded(ramp).crop(box).resize((64, 64), Image.Resampling.BILINEAR))
    assert abs((view - expected).mean()) < 0.1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(photograph(90, 60), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    assert upright.size == ((60, 90) if orientation > 4 else (90, 60))
    bilinear = Image.Resampling.BILINEAR
    for width, height in ((48, 48), (64, 40)):
        options = {"resolution": (height, width), "exif_rotate": True}
        box = decode.central_box(*upright.size, aspect=width / height)
        view = decode_view(encoded, **options)
        assert difference(view, upright.resize((width, height), bilinear, box=box)).max() <= 2
        box = decode.random_box(*upright.size, np.random.default_rng(7))
        view = decode_view(encoded, **options, view=np.random.default_rng(7))
        assert difference(view, upright.crop(box).resize((width, height), bilinear)).max() <= 2
    stored = decode_view(encoded, resolution=48)
    plain = decode_view(encode(photograph(90, 60), kind), resolution=48)
    assert np.array_equal(stored, plain)


def _formats():
    rgb = photograph(80, 60)
    grey, alpha = rgb.convert("L"), rgb.copy()
    alpha.putalpha(grey)
    levels = np.asarray(grey, np.uint16) * 257
    three_grey = grey.convert("RGB")
    return {
        "jpeg": (encode(rgb, quality=98, subsampling=0), rgb),
        "jpeg grey": (encode(grey, quality=98), three_grey),
        "jpeg progressive": (encode(rgb, quality=98, subsampling=0, progressive=True), rgb),
        "jpeg cmyk": (encode(rgb.convert("CMYK"), quality=98, subsampling=0), rgb),
        "jpeg trailing bytes": (encode(rgb, quality=98, subsampling=0) + b"\0" * 9, rgb),
        "png": (encode(rgb, "PNG"), rgb),
        "png palette": (encode(rgb.quantize(256), "PNG"), rgb.quantize(256).convert("RGB")),
        "png palette alpha": (encode(alpha.quantize(256), "PNG"), None),
        "png transparent colour": (encode(rgb.quantize(9), "PNG", transparency=b"\x07\0"), None),
        "png alpha": (encode(alpha, "PNG"), rgb),
        "png grey alpha": (encode(alpha.convert("LA"), "PNG"), three_grey),
        "png bits": (encode(grey.convert("1"), "PNG"), grey.convert("1").convert("RGB")),
        "png 16 bits": (encode(Image.fromarray(levels), "PNG"), three_grey),
        "pgm 16 bits": (b"P5 80 60 65535\n" + levels.astype(">u2").tobytes(), three_grey),
        "tiff 16 bits": (encode(Image.fromarray(levels), "TIFF"), three_grey),
        "webp": (encode(rgb, "WEBP", lossless=True), rgb),
        "gif": (encode(grey, "GIF"), three_grey),
        "bmp": (encode(rgb, "BMP"), rgb),
    }


@pytest.mark.parametrize("kind", _formats())
def test_formats(libraries, kind):
    encoded, image = _formats()[kind]
    view = decode_view(encoded, resolution=40)
    if image is None:  # what lies under a transparent colour is the encoder's choice
        image = Image.open(io.BytesIO(encoded)).convert("RGBA").convert("RGB")
    expected = image.resize((40, 40), Image.Resampling.BILINEAR, box=decode.central_box(80, 60))
    off = difference(view, expected)
    assert off.mean() < (2 if kind.startswith("jpeg") else 0.6), off.mean()


def test_cmyk_of_adobe_is_stored_inverted(libraries):
    """As Photoshop stores it: 0 is full ink, and a marker says so."""
    white_ink = np.full((40, 40, 4), (0, 0, 0, 0), np.uint8)
    white_ink[:, 20:] = (0, 255, 255, 0)
    encoded = encode(Image.fromarray(white_ink, "CMYK"), quality=98, subsampling=0)
    assert b"\xff\xee\x00\x0eAdobe" in encoded
    view = decode_view(encoded, resolution=40, crop_fraction=1.0)
    assert difference(view[:, :20], (255, 255, 255)).max() <= 2
    assert difference(view[:, 20:], (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("kept", [0, 1, 20, 0.3, 0.7, 0.97])
def test_truncated_files(libraries, kind, kept):
    encoded = encode(photograph(120, 100), kind)
    encoded = encoded[: kept if kept >= 1 else int(kept * len(encoded))]
    for view in (None, np.random.default_rng(0)):
        with pytest.raises(ImageError, match=f"cannot decode {len(encoded)} bytes as an image: .+"):
            decode_view(encoded, resolution=32, view=view)


def test_garbage(libraries):
    generator = np.random.default_rng(0)
    encoded = encode(photograph(120, 100))
    for start in (
        b"",
        encoded[:2],
        encoded[:30],
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"<svg",
    ):
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(ImageError):
                decode_view(start + generator.bytes(2000) + end, resolution=32)
    with pytest.raises(ImageError, match="float"):
        decode_view(encode(Image.new("F", (9, 9)), "TIFF"), resolution=8)
    # Damage in the middle decodes to something, or is named; it does nothing worse.
    for _ in range(100):
        broken = bytearray(encoded)
        for at in generator.integers(2, len(broken), 5):
            broken[at] = generator.integers(256)
        with contextlib.suppress(ImageError):
            assert decode_view(bytes(broken), resolution=16).shape == (16, 16, 3)


def test_absurd_sizes_are_not_allocated(libraries):
    encoded = bytearray(encode(photograph(120, 100)))
    at = decode.jpeg_header(bytes(encoded))[1]
    encoded[at : at + 4] = b"\xff\xff\xff\xff"  # 65,535 pixels square, 13 GB
    with pytest.raises(ImageError, match=r"more than the limit of 89,478,485; .* MBV3_MAX_IMAGE"):
        decode_view(bytes(encoded), resolution=32)


def _png_that_declares(width, height):
    """A few kilobytes of PNG whose pixels are all black."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + 3 * width)) for _ in range(height)) + rows.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def test_the_limit_of_pixels_is_named_and_can_be_raised(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("MBV3_MAX_IMAGE_PIXELS", "1199")
    for encoded in (_png_that_declares(40, 30), encode(photograph(40, 30))):
        with pytest.raises(ImageError, match=r"its 40 x 30 are 1,200 pixels, .* limit of 1,199"):
            decode_view(encoded, resolution=32)
    monkeypatch.setenv("MBV3_MAX_IMAGE_PIXELS", "1200")
    for encoded in (_png_that_declares(40, 30), encode(photograph(40, 30))):
        assert decode_view(encoded, resolution=32).shape == (32, 32, 3)
    large = _png_that_declares(100, 100)
    with pytest.raises(ImageError, match=r"it declares more than 2,400 pixels, more than .* 1,200"):
        decode_view(large, resolution=32)
    monkeypatch.setenv("MBV3_MAX_IMAGE_PIXELS", "10000")  # above Pillow's own limit
    assert decode_view(large, resolution=32).shape == (32, 32, 3)


def test_a_small_file_of_many_pixels(tmp_path):
    encoded = _png_that_declares(13_000, 13_000)  # 169 megapixels
    assert len(encoded) < 600_000
    (tmp_path / "z.png").write_bytes(encoded)
    # In a process of its own, because pytest has Pillow's warnings shown.
    code = """
import resource, sys
from mbv3_jax.data.decode import ImageError, decode_view
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_view(open(sys.argv[1], "rb").read(), resolution=32)
except ImageError as e:
    print(e)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "z.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, grown = done.stdout.splitlines()
    assert "its 13000 x 13000 are 169,000,000 pixels, more than the limit of 89,478,485" in said
    assert done.stderr == ""
    assert int(grown) < 50_000, "kilobytes, where the image has 500,000"


def test_threads_do_not_share_anything():
    images = [encode(photograph(150 + 10 * i, 130, seed=i)) for i in range(4)] * 8
    one_by_one = [decode_view(encoded, resolution=64) for encoded in images]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda encoded: decode_view(encoded, resolution=64), images))
    assert all(np.array_equal(a, b) for a, b in zip(one_by_one, at_once, strict=True))
