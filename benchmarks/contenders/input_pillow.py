"""Pillow alone: decode, then resize with box=; antialiased bilinear."""

import io
import itertools

import numpy as np
from PIL import Image, __version__

from benchmarks import photographs
from benchmarks.task import Task
from mbv3_jax.data.decode import random_box


def setup(task: Task):
    """See `benchmarks.contenders`. A step fills one batch, on one core."""
    files = itertools.cycle(photographs.read(task.images))
    side = task.resolution
    batch = np.empty((task.batch, side, side, 3), np.uint8)
    generator = np.random.default_rng(0)

    def run(steps: int) -> None:
        for _ in range(steps):
            for out, encoded in zip(batch, files, strict=False):
                image = Image.open(io.BytesIO(encoded))
                box = random_box(*image.size, generator)
                image = image.convert("RGB")
                out[:] = image.resize((side, side), Image.Resampling.BILINEAR, box=box)

    return run, f"antialiased; Pillow {__version__}"
