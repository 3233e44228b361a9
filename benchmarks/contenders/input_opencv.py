"""OpenCV: imdecode, then bilinear resizing, which does not antialias."""

import itertools

import cv2
import numpy as np

from benchmarks import photographs
from benchmarks.task import Task
from mbv3_jax.data.decode import random_box


def setup(task: Task, interpolation=cv2.INTER_LINEAR, info="not antialiased"):
    """See `benchmarks.contenders`. A step fills one batch, on one core."""
    cv2.setNumThreads(task.threads)
    files = itertools.cycle(photographs.read(task.images))
    side = task.resolution
    batch = np.empty((task.batch, side, side, 3), np.uint8)
    generator = np.random.default_rng(0)

    def run(steps: int) -> None:
        for _ in range(steps):
            for out, encoded in zip(batch, files, strict=False):
                image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
                left, top, right, bottom = random_box(image.shape[1], image.shape[0], generator)
                view = image[top:bottom, left:right]
                view = cv2.resize(view, (side, side), interpolation=interpolation)
                cv2.cvtColor(view, cv2.COLOR_BGR2RGB, dst=out)

    return run, f"{info}; OpenCV {cv2.__version__}"
