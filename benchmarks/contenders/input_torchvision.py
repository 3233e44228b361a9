"""torchvision as ImageFolder uses it: Pillow decodes, RandomResizedCrop resizes, antialiased."""

import io
import itertools

import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from benchmarks import photographs
from benchmarks.task import Task


def setup(task: Task):
    """See `benchmarks.contenders`. A step is one batch of uint8, on one core."""
    torch.set_num_threads(task.threads)
    files = itertools.cycle(photographs.read(task.images))
    transform = v2.Compose([v2.RandomResizedCrop(task.resolution), v2.PILToTensor()])

    def run(steps: int) -> None:
        for _ in range(steps):
            some = itertools.islice(files, task.batch)
            torch.stack([transform(Image.open(io.BytesIO(e)).convert("RGB")) for e in some])

    return run, f"antialiased; torchvision {torchvision.__version__} on Pillow"
