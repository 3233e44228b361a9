"""TensorFlow: tf.io.decode_and_crop_jpeg and tf.image.resize in tf.data, one thread."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported

import tensorflow as tf

from benchmarks import photographs
from benchmarks.task import Task
from mbv3_jax.data.decode import AREA, RATIO


def setup(task: Task, antialias: bool = False):
    """See `benchmarks.contenders`. A step is one batch of uint8."""
    tf.config.threading.set_intra_op_parallelism_threads(task.threads)
    tf.config.threading.set_inter_op_parallelism_threads(task.threads)
    whole = tf.constant([0.0, 0, 1, 1], shape=[1, 1, 4])

    def view(encoded, number):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            whole,
            seed=[0, number],
            min_object_covered=0.0,
            aspect_ratio_range=RATIO,
            area_range=AREA,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, [task.resolution] * 2, antialias=antialias)
        return tf.cast(image + 0.5, tf.uint8)

    files = tf.data.Dataset.from_tensor_slices(photographs.read(task.images)).repeat()
    dataset = tf.data.Dataset.zip(files, tf.data.Dataset.counter())
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
