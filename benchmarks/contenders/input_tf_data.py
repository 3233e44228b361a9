"""TensorFlow: tf.io.decode_and_crop_jpeg and tf.image.resize in tf.data, one thread."""

import io
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks import photographs
from benchmarks.task import Task
from mbv3_jax.data.decode import random_box


def setup(task: Task, antialias: bool = False):
    """See `benchmarks.contenders`. A step is one batch of uint8."""
    tf.config.threading.set_intra_op_parallelism_threads(task.threads)
    tf.config.threading.set_inter_op_parallelism_threads(task.threads)
    files = photographs.read(task.images)
    windows = _windows(files, 16)

    def view(encoded, window):
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, [task.resolution] * 2, antialias=antialias)
        return tf.cast(image + 0.5, tf.uint8)

    slices = tf.data.Dataset.from_tensor_slices
    dataset = tf.data.Dataset.zip(slices(files).repeat(), slices(windows).repeat())
    dataset = dataset.map(view).batch(task.batch)
    options = tf.data.Options()
    options.threading.private_threadpool_size = task.threads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    batches = dataset.with_options(options)

    def run(steps: int) -> None:
        # A fresh iterator each time: one that waits for its next turn reads ahead meanwhile.
        for batch in batches.take(steps):
            batch.numpy()

    return run, f"{'' if antialias else 'not '}antialiased; TensorFlow {tf.__version__}"


def _windows(files: list[bytes], times: int) -> np.ndarray:
    """Crops as the others draw them, (top, left, height, width) for each file again and again.

    TensorFlow's own, of sample_distorted_bounding_box, have smaller areas: less work.
    """
    generator = np.random.default_rng(0)
    boxes = [
        random_box(*Image.open(io.BytesIO(encoded)).size, generator)
        for _ in range(times)
        for encoded in files
    ]
    return np.array([(t, left, b - t, right - left) for left, t, right, b in boxes], np.int32)
