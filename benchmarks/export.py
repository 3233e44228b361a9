"""Compares our exports with those of Keras and PyTorch: python -m benchmarks.export

Reports operations, size and latency of a batch of one on one thread. Files for the same runtime
take turns in one process; "ratio" is their time over ours. Weights are random, as the time does not
depend on them.

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
    # our name: Keras' name, timm's name
    "mobilenet_v3_small": ("MobileNetV3Small", "mobilenetv3_small_100"),
    "mobilenet_v3_large": ("MobileNetV3Large", "mobilenetv3_large_100"),
}
_SHAPE = (1, 224, 224, 3)


def _model(library: str, network: str):
    """Our model of the library's network, with its padding and with random weights."""
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
    """Keras' network, exported by us."""
    from mbv3_jax.export.formats import Target, write

    return write(_model("keras", network), Target(file_format="tflite"))


def ours_int8_tflite(network: str) -> bytes:
    """Keras' network in int8, exported by us with ranges from noise."""
    from mbv3_jax.export.formats import Target, write
    from mbv3_jax.quant.post_training import quantize

    model = _model("keras", network)
    noise = np.random.default_rng(0).normal(size=(4, *_SHAPE[1:])).astype(np.float32)
    quantized = quantize(model.spec, model.variables, [noise])
    return write(model, Target(file_format="tflite", precision="int8"), quantized)


def keras_tflite(network: str) -> bytes:
    """Keras' network, exported by TensorFlow's converter."""
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
    """timm's network, exported by us."""
    from mbv3_jax.export.formats import Target, write

    return write(_model("timm", network), Target(file_format="onnx"))


def timm_onnx(network: str, dynamo: bool = False) -> bytes:
    """timm's network, exported by PyTorch."""
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
    """timm's network, exported by PyTorch's newer exporter."""
    return timm_onnx(network, dynamo=True)


GROUPS = {
    "tflite": (ours_tflite, keras_tflite, ours_int8_tflite),
    "onnx": (ours_onnx, timm_onnx, timm_onnx_dynamo),
}


def runner(file: bytes, kind: str) -> Callable[[int], None]:
    """Returns run(n), which runs the file n times on one thread."""
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
    """Times runners in turns.

    Args:
      runners: name -> run(n), see `runner`.
      rounds: how many turns each of them gets.
      seconds: roughly how long a turn lasts.

    Returns:
      Name -> milliseconds of one run, for each turn.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    counts: dict[str, int] = {}
    for turn in range(rounds + 1):
        for name, run in runners.items():
            n = counts.get(name, 20)
            began = time.perf_counter()
            run(n)
            each = (time.perf_counter() - began) / n
            if turn == 0:  # a warm-up, which also finds how many runs fill a turn
                counts[name] = max(1, round(seconds / each))
            else:
                times[name].append(each * 1e3)
    return times


def main() -> None:
    """Makes the files that do not exist yet, and times them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--folder", type=Path, default=Path("runs/export"))
    parser.add_argument("--make", action="store_true", help="only make the files")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn")
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
