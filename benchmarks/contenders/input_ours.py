"""mbv3_jax: `data.decode.decode_view`, antialiased bilinear."""

import itertools

import numpy as np

from benchmarks import photographs
from benchmarks.task import Task
from mbv3_jax.data.decode import decode_view, resizer, simplejpeg


def setup(task: Task):
    """See `benchmarks.contenders`. A step fills one batch, on one core."""
    files = itertools.cycle(photographs.read(task.images))
    batch = np.empty((task.batch, task.resolution, task.resolution, 3), np.uint8)
    generator = np.random.default_rng(0)

    def run(steps: int) -> None:
        for _ in range(steps):
            for image, encoded in zip(batch, files, strict=False):
                image[:] = decode_view(encoded, resolution=task.resolution, view=generator)

    names = "simplejpeg" if simplejpeg else "Pillow's decoder"
    return run, f"antialiased; {names}, {'cykooz_resizer' if resizer else 'Pillow resize'}"
