"""Whether a file is the network: run in its own runtime, compared image by image."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from mbv3_jax.core.packages import need
from mbv3_jax.export import formats, tflite
from mbv3_jax.export.formats import Target
from mbv3_jax.nn import functional
from mbv3_jax.run.model import Model

# The largest difference of a logit, of the largest logit there is. Rounding alone makes about
# 1e-6 in float32 and 1e-3 in float16.
TOLERANCE = {"float32": 1e-4, "float16": 3e-2}
# Of int8, for which a logit may be several steps off its simulation: equal top-1 classes.
LEAST_AGREEMENT = 0.9
_REFERENCE_BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Logits of a file beside those that they should be.

    images: how many were compared.
    agreement: share of images with the same top-1 class.
    largest: largest difference of a logit.
    scale: largest logit.
    """

    images: int
    agreement: float
    largest: float
    scale: float

    @classmethod
    def of(cls, wanted: np.ndarray, got: np.ndarray) -> "Comparison":
        """wanted, got: logits [N, num_classes]."""
        return cls(
            images=len(wanted),
            agreement=float(np.mean(np.argmax(wanted, 1) == np.argmax(got, 1))),
            largest=float(np.max(np.abs(wanted - got))),
            scale=float(np.max(np.abs(wanted))),
        )

    def problem(self, precision: str) -> str | None:
        """What is wrong with it, or None."""
        if precision == "int8":
            if self.agreement < LEAST_AGREEMENT:
                return (
                    f"only {self.agreement:.1%} of its top-1 classes are those of the simulated "
                    f"int8, expected at least {LEAST_AGREEMENT:.0%}"
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
    """The network's own logits, BatchNorm not folded, float32 [N, num_classes].

    Args:
      model: the network, in float even where it was trained for int8.
      images: normalised [N, R, R, 3].
    """
    stats = {k: v for k, v in model.variables["batch_stats"].items() if k != "quant"}
    variables = {"params": model.variables["params"], "batch_stats": stats}
    spec = model.spec.replace(quant=None)
    run = jax.jit(lambda v, x: functional.apply(spec, v, x)[0])
    return in_batches(lambda x: run(variables, x), images, _REFERENCE_BATCH)


def in_batches(run: Callable, images: np.ndarray, batch: int) -> np.ndarray:
    """Calls `run` on whole batches only, the last one filled up with its first image."""
    found = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        fill = np.repeat(part[:1], batch - len(part), axis=0)
        found.append(np.asarray(run(np.concatenate([part, fill])))[: len(part)])
    return np.concatenate(found)


def run_file(file: bytes, target: Target, images: np.ndarray) -> np.ndarray:
    """The logits of a file in its own runtime, on one thread.

    Args:
      file: LiteRT, ONNX Runtime or XLA runs it.
      target: what it is.
      images: [N, R, R, 3], uint8 or normalised as the file takes them.

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
        first = images.dtype == np.float32

        def run(x):
            return session.run(None, {"images": x.transpose(0, 3, 1, 2) if first else x})[0]
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
    """Float32 as a tensor of a TFLite file takes it."""
    if details["dtype"] != np.int8:
        return x
    scale, zero = details["quantization"]
    return np.clip(np.round(x / np.float32(scale)) + zero, -128, 127).astype(np.int8)


def _dequantized(x: np.ndarray, details: dict) -> np.ndarray:
    if details["dtype"] != np.int8:
        return x
    scale, zero = details["quantization"]
    return (x.astype(np.float32) - zero) * np.float32(scale)


def defects(file: bytes, target: Target, model: Model) -> list[str]:
    """What is wrong with the graph of a file, a line each."""
    spec, found = model.spec, []
    counts = formats.counts(file, target.file_format)
    layers = len(spec.blocks)
    depthwise = counts.get(formats.DEPTHWISE[target.file_format], 0)
    if depthwise != layers:
        found.append(f"{depthwise} depthwise operations for {layers} depthwise layers")
    native = {"tflite": "HARD_SWISH", "onnx": "HardSwish"}.get(target.file_format)
    if native and target.precision != "int8":
        wanted = h_swishes(spec)
        if counts.get(native, 0) != wanted:
            found.append(f"{counts.get(native, 0)} {native} for {wanted} h-swish layers")
    if target.precision == "int8":
        islands = [
            op
            for op in tflite.operations(file)
            if op.dtype.startswith("FLOAT") and op.name != "DEQUANTIZE"
        ]
        found += [f"{op.name} of {op.shape} computes in float" for op in islands]
        for name in ("QUANTIZE", "DEQUANTIZE"):
            if counts.get(name, 0) > 1:
                found.append(f"{counts[name]} {name}, expected one at the boundary")
    return found


def h_swishes(spec) -> int:
    """How many layers have h-swish."""
    acts = [spec.stem.act, spec.last.act] + ([spec.head.act] if spec.head else [])
    gated = [spec.stem, spec.last, *spec.blocks]
    acts += [layer.se.act for layer in gated if layer.se]
    for index, block in enumerate(spec.blocks):
        acts += [block.act] * (1 + spec.has_expand(index))
    return acts.count("h_swish")
