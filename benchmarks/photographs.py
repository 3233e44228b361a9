"""Generated JPEG files of ImageNet's size, for users without photographs."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

# The sizes of most ImageNet photographs; 500 x 375 is by far the most frequent.
_SIZES = [(500, 375), (500, 375), (375, 500), (500, 333), (500, 375), (400, 400), (640, 480)]
# Gives 110 kB a file on average, as ImageNet has (138 GB of 1,281,167 training files).
_QUALITY = 92


def read(folder: str) -> list[bytes]:
    """The files of a folder, all of them in memory, in the order of their names."""
    return [path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()]


def write(folder: str, count: int) -> None:
    """Fills a folder with noise of the 1/f spectrum of photographs and as many bytes a pixel."""
    generator = np.random.default_rng(0)
    for number in range(count):
        width, height = _SIZES[number % len(_SIZES)]
        fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
        frequency = np.maximum(np.hypot(fx, fy), 1 / max(width, height))
        noise = np.fft.rfft2(generator.normal(size=(3, height, width)))
        grey, red, blue = np.fft.irfft2(noise / frequency**1.15, (height, width))
        colours = np.stack([grey + 0.3 * red, grey, grey + 0.3 * blue], -1)
        colours = 128 + 50 * colours / colours.std()
        stream = io.BytesIO()
        Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).save(
            stream, "JPEG", quality=_QUALITY
        )
        Path(folder, f"{number:05d}.jpg").write_bytes(stream.getvalue())
