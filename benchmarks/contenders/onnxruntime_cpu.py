"""ONNX Runtime on timm's network as PyTorch exports it."""

import io

from benchmarks.contenders import timm_eager
from benchmarks.task import Task


def setup(task: Task):
    """See `benchmarks.contenders`."""
    import onnx  # noqa: F401 (the exporter needs it)
    import onnxruntime
    import torch

    model, images, _, _ = timm_eager.make_model(task)
    file = io.BytesIO()
    torch.onnx.export(
        model.eval().cpu(), (images.cpu().contiguous(),), file, opset_version=18, dynamo=False
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: images.cpu().contiguous().numpy()}

    def infer(steps: int) -> None:
        for _ in range(steps):
            session.run(None, feed)

    return infer, f"onnxruntime {onnxruntime.__version__}, timm's network"
