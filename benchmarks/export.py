"""Exports side by side with those of Keras and PyTorch: python -m benchmarks.export

Operations, size and latency of batch 1 on one thread. Files of one runtime take turns in one
process; ratio is time over ours. Random weights: the time does not depend on them.

--folder keeps the files, so that only the timing needs a quiet machine; --make stops before it.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

NETWORKS = {
    # of arch.build: Keras' name, timm's
    "mobilenet_v3_small": ("MobileNetV3Small", "mobilenetv3_small_100"),
    "mobilenet_v3_large": ("MobileNetV3Large", "mobilenetv3_large_100"),
}
_SHAPE = (1, 224, 224, 3)


def _model(library: str, network: str):
    """The network as that library has it, paddings too, with random weights."""
    import jax

    from mbv3_jax.interop import networks
    from mbv3_jax.nn import functional
    from mbv3_jax.run.model import Model, Preprocessing

    name = NETWORKS[network][library == "timm"]
    spec = networks.get(library, name).spec.replace(resolution=_SHAPE[1])
    variables = jax.jit(lambda key: functional.init(spec, key))(jax.random.key(0))
    names = tuple(map(str, range(spec.num_classes)))
    return Model(
        spec=spec,
        variables=jax.tree.map(np.asarray, variables),
        preprocessing=Preprocessing(),
        class_names=names,
    )


def ours_tflite(network: str) -> bytes:
    """Ours, Keras' network."""
    from mbv3_jax.export.formats import Target, write

    return write(_model("keras", network), Target(file_format="tflite"))


def ours_int8_tflite(network: str) -> bytes:
    """Ours in int8, ranges from noise."""
    from mbv3_jax.export.formats import Target, write
    from mbv3_jax.quant.post_training import quantize

    model = _model("keras", network)
    noise = np.random.default_rng(0).normal(size=(4, *_SHAPE[1:])).astype(np.float32)
    quantized = quantize(model.spec, model.variables, [noise])
    return write(model, Target(file_format="tflite", precision="int8"), quantized)


def keras_tflite(network: str) -> bytes:
    """keras.applications by TensorFlow's converter."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    build = getattr(keras.applications, NETWORKS[network][0])
    model = build(
        input_shape=_SHAPE[1:],
        weights=None,
        classifier_activation=None,
        include_preprocessing=False,
    )
    call = tf.function(
        lambda x: model(x, training=False), input_signature=[tf.TensorSpec(_SHAPE, tf.float32)]
    )
    function = call.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([function]).convert()


def ours_onnx(network: str) -> bytes:
    """Ours, timm's network."""
    from mbv3_jax.export.formats import Target, write

    return write(_model("timm", network), Target(file_format="onnx"))


def timm_onnx(network: str, dynamo: bool = False) -> bytes:
    """timm's network by PyTorch's exporter."""
    import io

    import torch

    from tests.support.torch_stub import import_torchvision

    import_torchvision()
    import timm

    model = timm.create_model(NETWORKS[network][1]).eval()
    images, file = torch.zeros(1, 3, *_SHAPE[1:3]), io.BytesIO()
    if dynamo:
        torch.onnx.export(model, (images,), opset_version=18, dynamo=True).save(file)
    else:
        torch.onnx.export(model, (images,), file, opset_version=18, dynamo=False)
    return file.getvalue()


def timm_onnx_dynamo(network: str) -> bytes:
    """The same by its newer exporter."""
    return timm_onnx(network, dynamo=True)


GROUPS = {
    "tflite": (ours_tflite, keras_tflite, ours_int8_tflite),
    "onnx": (ours_onnx, timm_onnx, timm_onnx_dynamo),
}


def runner(file: bytes, kind: str) -> Callable[[int], None]:
    """run(n) runs the file n times on one thread."""
    images = np.random.default_rng(0).normal(size=_SHAPE).astype(np.float32)
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
        return lambda n: [session.run(None, feed) for _ in range(n)]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    (inputs,) = interpreter.get_input_details()
    interpreter.set_tensor(inputs["index"], images.astype(inputs["dtype"]))
    return lambda n: [interpreter.invoke() for _ in range(n)]


def race(runners: dict[str, Callable], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of one run, a number for every turn; turns last about `seconds`."""
    times = {name: [] for name in runners}
    counts = {}
    for turn in range(rounds + 1):
        for name, run in runners.items():
            n = counts.get(name, 20)
            began = time.perf_counter()
            run(n)
            each = (time.perf_counter() - began) / n
            if turn == 0:  # a warm-up that also finds how many fill a turn
                counts[name] = max(1, round(seconds / each))
            else:
                times[name].append(each * 1e3)
    return times


def main() -> None:
    """Makes the files that are not there, and races them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--folder", type=Path, default=Path("runs/export"))
    parser.add_argument("--make", action="store_true", help="only make the files")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    flags = parser.parse_args()
    from rich.console import Console
    from rich.table import Table

    from mbv3_jax.export import formats

    flags.folder.mkdir(parents=True, exist_ok=True)
    table = Table("network", "file", "operations", "MB", "ms", "least-most", "ratio")
    for network in flags.networks:
        for kind, makers in GROUPS.items():
            files = {}
            for make in makers:
                path = flags.folder / f"{network}.{make.__name__}.{kind}"
                if not path.exists():
                    try:
                        path.write_bytes(make(network))
                    except ImportError as e:
                        print(f"{make.__name__} is left out: {e}", file=sys.stderr)
                        continue
                files[make.__name__] = path.read_bytes()
            if flags.make:
                continue
            runners = {name: runner(file, kind) for name, file in files.items()}
            times = race(runners, flags.rounds, flags.seconds)
            ours = statistics.median(times[makers[0].__name__])
            for name, file in files.items():
                median, spread = statistics.median(times[name]), times[name]
                table.add_row(
                    network,
                    name,
                    str(sum(formats.counts(file, kind).values())),
                    f"{len(file) / 1e6:.2f}",
                    f"{median:.3f}",
                    f"{min(spread):.3f}-{max(spread):.3f}",
                    f"{median / ours:.2f}",
                )
    if not flags.make:
        Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
