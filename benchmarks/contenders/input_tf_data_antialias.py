"""TensorFlow, told to antialias."""

from benchmarks.contenders import input_tf_data
from benchmarks.task import Task


def setup(task: Task):
    """See `benchmarks.contenders`."""
    return input_tf_data.setup(task, antialias=True)
