"""One depthwise layer as `ops.depthwise_conv(impl="pallas")`: kernels for a GPU."""

import jax

from benchmarks.contenders import depthwise_shifted
from benchmarks.task import Absent, Task


def setup(task: Task):
    """See `benchmarks.contenders`."""
    if jax.default_backend() == "cpu":
        raise Absent("not measured (interpret mode)")
    return depthwise_shifted.setup(task, impl="pallas")
