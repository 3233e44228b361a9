"""timm on PyTorch eager, channels_last."""

import contextlib

import numpy as np

from benchmarks.task import Task

# timm's names of our networks.
NAMES = {
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v2": "mobilenetv2_100",
    "mnasnet_a1": "mnasnet_a1",
}


def make_model(task: Task):
    """(timm model, images, labels, device), channels_last, with random weights."""
    import torch

    from tests.support.torch_stub import import_torchvision

    import_torchvision()
    import timm

    torch.set_num_threads(task.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(NAMES[task.network]).to(device, memory_format=torch.channels_last)
    generator = np.random.default_rng(0)
    shape = (task.batch, 3, task.resolution, task.resolution)
    images = torch.from_numpy(generator.normal(size=shape).astype(np.float32)).to(device)
    labels = torch.from_numpy(generator.integers(0, 1000, task.batch)).to(device)
    return model, images.to(memory_format=torch.channels_last), labels, device


def setup(task: Task, compile_it: bool = False):
    """See `benchmarks.contenders`."""
    model, images, labels, device = make_model(task)
    import timm
    import torch

    info = f"timm {timm.__version__}, torch {torch.__version__}, {device}"
    finish = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    low = task.dtype == "bfloat16"
    cast = torch.autocast(device, torch.bfloat16) if low else contextlib.nullcontext()
    forward = torch.compile(model) if compile_it else model
    if task.kind == "infer":
        model.eval()

        def infer(steps: int) -> None:
            with torch.inference_mode(), cast:
                for _ in range(steps):
                    forward(images)
            finish()

        return infer, info

    from timm.optim import RMSpropTF

    model.train()
    optimizer = RMSpropTF(model.parameters(), lr=1e-4, alpha=0.9, momentum=0.9, eps=0.002)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with cast:
                loss = torch.nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
        finish()

    return train, info
