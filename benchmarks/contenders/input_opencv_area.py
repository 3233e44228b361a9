"""OpenCV with the resizing that antialiases, by the mean of an area."""

import cv2

from benchmarks.contenders import input_opencv
from benchmarks.task import Task


def setup(task: Task):
    """See `benchmarks.contenders`."""
    return input_opencv.setup(task, cv2.INTER_AREA, "antialiased by area")
