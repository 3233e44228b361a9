"""timm on PyTorch with torch.compile, channels_last."""

from benchmarks.contenders import timm_eager
from benchmarks.task import Task


def setup(task: Task):
    """See `benchmarks.contenders`."""
    run, info = timm_eager.setup(task, compile_it=True)
    return run, info + ", torch.compile"
