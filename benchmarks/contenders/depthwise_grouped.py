"""One depthwise layer as XLA's grouped convolution, what `nnx.Conv` comes down to."""

from benchmarks.contenders import depthwise_shifted
from benchmarks.task import Task


def setup(task: Task):
    """See `benchmarks.contenders`."""
    return depthwise_shifted.setup(task, impl="grouped")
