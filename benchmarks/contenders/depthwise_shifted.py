"""One depthwise layer as `ops.depthwise_conv(impl="shifted")`."""

import jax
import numpy as np

from benchmarks.task import Task
from mbv3_jax.arch import build, cost
from mbv3_jax.nn import ops


def layer_of(task: Task) -> cost.Layer:
    """The layer that the task names."""
    spec = build(task.network, resolution=task.resolution)
    return next(layer for layer in cost.layers(spec) if layer.name == task.layer)


def setup(task: Task, impl: str = "shifted"):
    """See `benchmarks.contenders`."""
    layer = layer_of(task)
    generator = np.random.default_rng(0)
    channels = layer.inputs[2]

    def array(*shape):
        return jax.device_put(generator.normal(size=shape).astype(task.dtype))

    x = array(task.batch, *layer.inputs)
    kernel = array(layer.kernel, layer.kernel, 1, channels)
    g = array(task.batch, *layer.outputs)

    def forward(x, kernel):
        return ops.depthwise_conv(x, kernel, stride=layer.stride, padding="same", impl=impl)

    def gradients(x, kernel, g):
        y, pull = jax.vjp(forward, x, kernel)
        return y, pull(g)

    function = jax.jit(gradients if task.kind == "gradients" else lambda x, k, g: forward(x, k))

    def run(steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(function(x, kernel, g))

    return run, f"jax {jax.__version__} {jax.devices()[0].device_kind}"
