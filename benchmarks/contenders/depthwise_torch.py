"""One depthwise layer in PyTorch, channels_last."""

import numpy as np

from benchmarks.contenders.depthwise_shifted import layer_of
from benchmarks.task import Task


def setup(task: Task):
    """See `benchmarks.contenders`. Padding is symmetric, which costs the same."""
    import torch

    torch.set_num_threads(task.threads)
    layer = layer_of(task)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, task.dtype)
    finish = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    generator = np.random.default_rng(0)
    channels = layer.inputs[2]

    def array(batch, height, width, channels):
        values = generator.normal(size=(batch, channels, height, width)).astype(np.float32)
        moved = torch.from_numpy(values).to(device, dtype)
        return moved.to(memory_format=torch.channels_last)

    x = array(task.batch, *layer.inputs).requires_grad_(task.kind == "gradients")
    kernel = array(channels, layer.kernel, layer.kernel, 1).requires_grad_(task.kind == "gradients")
    g = array(task.batch, *layer.outputs)

    def run(steps: int) -> None:
        for _ in range(steps):
            y = torch.nn.functional.conv2d(
                x, kernel, stride=layer.stride, padding=layer.kernel // 2, groups=channels
            )
            if task.kind == "gradients":
                torch.autograd.grad(y, (x, kernel), g)
        finish()

    return run, f"torch {torch.__version__}, {device}"
