"""Checks that an exported file computes what the network does, in the file's own runtime."""

import collections
import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from mbv3_jax.arch.activations import ACTIVATIONS, GATES, Activation, Gate
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.traversal import convolutions
from mbv3_jax.core.packages import need
from mbv3_jax.export import formats, tflite
from mbv3_jax.export.formats import Target
from mbv3_jax.nn import functional
from mbv3_jax.run.model import Model

# The largest difference between logits that is accepted, relative to the largest logit. Rounding
# alone makes about 1e-6 in float32 and 1e-3 in float16.
TOLERANCE = {"float32": 1e-4, "float16": 3e-2}
# A logit of an int8 file may be several steps away from its simulation. The share of images with
# the same top-1 class that is accepted:
LEAST_AGREEMENT = 0.9
_REFERENCE_BATCH = 16
# ONNX operators that networks use outside activations too, so that their number tells nothing.
_SHARED_ONNX = ("Add", "Cast", "Conv", "Mul", "Transpose")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The logits of a file compared with the expected ones.

    images: how many images were compared.
    agreement: fraction of images with the same top-1 class.
    largest: largest absolute difference between logits.
    scale: largest absolute value of the expected logits.
    """

    images: int
    agreement: float
    largest: float
    scale: float

    @classmethod
    def of(cls, expected: np.ndarray, logits: np.ndarray) -> "Comparison":
        """Compares logits [images, num_classes]."""
        return cls(
            images=len(expected),
            agreement=float(np.mean(np.argmax(expected, 1) == np.argmax(logits, 1))),
            largest=float(np.max(np.abs(expected - logits))),
            scale=float(np.max(np.abs(expected))),
        )

    def problem(self, precision: str) -> str | None:
        """Says why a file of this precision is not accepted; None if it is."""
        if precision == "int8":
            if self.agreement < LEAST_AGREEMENT:
                return (
                    f"only {self.agreement:.1%} of its top-1 classes agree with simulated int8, "
                    f"expected at least {LEAST_AGREEMENT:.0%}"
                )
            return None
        limit = TOLERANCE[precision] * max(self.scale, 1e-3)
        if self.largest <= limit:  # False for NaN
            return None
        return (
            f"its logits differ by up to {self.largest:.3g} from the network's, which reach "
            f"{self.scale:.3g}; expected at most {limit:.2g}"
        )


def reference(model: Model, images: np.ndarray) -> np.ndarray:
    """The logits of the network itself, with BatchNorm not folded.

    Args:
      model: the network, which runs in float even if it was trained for int8.
      images: normalised, [images, height, width, channels].

    Returns:
      float32 [images, num_classes].
    """
    stats = {k: v for k, v in model.variables["batch_stats"].items() if k != "quant"}
    variables = {"params": model.variables["params"], "batch_stats": stats}
    spec = model.spec.replace(quant=None)
    run = jax.jit(lambda v, x: functional.apply(spec, v, x)[0])
    return in_batches(lambda x: run(variables, x), images, _REFERENCE_BATCH)


def in_batches(run: Callable, images: np.ndarray, batch: int) -> np.ndarray:
    """Calls `run` on full batches only; the last one is filled up with its first image."""
    outputs = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        fill = np.repeat(part[:1], batch - len(part), axis=0)
        outputs.append(np.asarray(run(np.concatenate([part, fill])))[: len(part)])
    return np.concatenate(outputs)


def of_other_sizes(images: np.ndarray) -> list[np.ndarray]:
    """Images [images, height, width, channels] of two other sizes, made of those of one.

    They are smaller and larger, odd and not square, so that a wrong padding is noticed.
    """
    height, width = images.shape[1:3]
    parts = images[:, : (3 * height // 4) | 1, : 7 * width // 8]
    pairs = np.concatenate([images, images[::-1]], axis=2)[:, :, 1:]
    return [parts, pairs]


def run_file(file: bytes, target: Target, images: np.ndarray) -> np.ndarray:
    """Runs a file in LiteRT, ONNX Runtime or XLA, on one thread.

    Args:
      file: the file.
      target: what the file is.
      images: [images, height, width, channels]: uint8 if the file normalises them, else
        normalised.

    Returns:
      float32 logits [images, num_classes].

    Raises:
      UsageError: the runtime is not installed.
    """
    batch = target.batch or _REFERENCE_BATCH
    if target.file_format == "onnx":
        runtime = need("onnxruntime", "ONNX", "export")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        channels_first = images.dtype == np.float32

        def run(x):
            x = x.transpose(0, 3, 1, 2) if channels_first else x
            return session.run(None, {"images": x})[0]
    elif target.file_format == "stablehlo":
        run = jax.jit(jax.export.deserialize(bytearray(file)).call)
    else:
        interpreter = need("ai_edge_litert.interpreter", "TFLite", "export")
        runner = interpreter.Interpreter(model_content=file, num_threads=1).get_signature_runner()

        inputs = runner.get_input_details()["images"]
        outputs = runner.get_output_details()["logits"]

        def run(x):
            return _dequantized(runner(images=_quantized(x, inputs))["logits"], outputs)

    return in_batches(run, images, batch)


def _quantized(x: np.ndarray, details: dict) -> np.ndarray:
    """Converts float32 values to the type of a TFLite input."""
    if details["dtype"] != np.int8:  # normalised, or pixels, of which uint8 holds each
        return x
    scale, zero = details["quantization"]
    return np.clip(np.round(x / np.float32(scale)) + zero, -128, 127).astype(np.int8)


def _dequantized(x: np.ndarray, details: dict) -> np.ndarray:
    """Converts values of a TFLite output to float32."""
    if details["dtype"] == np.float32:
        return x
    scale, zero = details["quantization"]
    return (x.astype(np.float32) - zero) * np.float32(scale)


def defects(file: bytes, target: Target, model: Model) -> list[str]:
    """What is wrong with the operations of a file, one line for each defect."""
    spec, lines = model.spec, []
    counts = formats.counts(file, target.file_format)
    layers = len(spec.blocks)
    depthwise = counts.get(formats.DEPTHWISE[target.file_format], 0)
    if target.file_format == "tflite" and spec.in_channels == 1:
        layers += 1  # to TFLite, any convolution of one channel is depthwise: the stem is as well
    if target.precision == "int8" and target.images_dtype == "uint8":
        layers += 1  # the normalisation
    if depthwise != layers:
        lines.append(f"{depthwise} depthwise operations for {layers} depthwise layers")
    if target.precision != "int8":
        for name, wanted in activation_counts(spec, target.file_format).items():
            if counts.get(name, 0) != wanted:
                lines.append(f"{counts.get(name, 0)} {name}, expected {wanted} for activations")
    if target.precision == "int8":
        islands = [
            op
            for op in tflite.operations(file)
            if op.dtype.startswith("FLOAT") and op.name != "DEQUANTIZE"
        ]
        lines += [f"{op.name} of {op.shape} computes in float" for op in islands]
        boundary = {
            "QUANTIZE": (target.images_dtype != "int8") + (target.logits_dtype == "uint8"),
            "DEQUANTIZE": int(target.logits_dtype == "float32"),
        }
        for name, wanted in boundary.items():
            if counts.get(name, 0) != wanted:
                lines.append(f"{counts.get(name, 0)} {name}, expected {wanted} at the boundary")
    return lines


def activation_counts(spec: NetSpec, file_format: str) -> dict[str, int]:
    """How often each operation that only activations and gates use must be in a file.

    Args:
      spec: the network.
      file_format: "tflite" or "onnx"; of others, the operations are not the entries'.

    Returns:
      The number of occurrences of every such operation of the registry, 0 for unused ones.
    """
    if file_format not in ("tflite", "onnx"):
        return {}

    def operations(entry: Activation | Gate) -> dict[str, int]:
        if file_format == "tflite":
            return dict(entry.tflite)
        return collections.Counter(n.op for n in entry.onnx if n.op not in _SHARED_ONNX)

    entries: list[Activation | Gate] = [*ACTIVATIONS.values(), *GATES.values()]
    expected = {name: 0 for entry in entries for name in operations(entry)}
    for conv in convolutions(spec):
        used = [ACTIVATIONS[conv.act]] if conv.act else [GATES[conv.gate]] if conv.gate else []
        for name, count in ((n, c) for entry in used for n, c in operations(entry).items()):
            expected[name] += count
    return expected
