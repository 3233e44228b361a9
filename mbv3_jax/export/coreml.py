"""Core ML packages, written from the list of operations by coremltools' builder of ML programs.

Activations are the ONNX nodes of their registry entries, as the equivalent operations of ML
programs. Arrays are [N, C, H, W]; an image input is an RGB or grey picture, as cameras give it.
coremltools writes packages on every system, but only Apple's systems run them.

A package is a folder. Until `save`, it is held as the bytes of a zip archive of its files.
"""

import collections
import contextlib
import io
import logging
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbv3_jax.arch.activations import ACTIVATIONS, GATES, Activation, Gate
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.traversal import (
    IMAGES,
    ChannelScale,
    Convolution,
    Dropout,
    GlobalPool,
    ResidualAdd,
    lookup,
    traverse,
)
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.files import read_bytes, replacing
from mbv3_jax.core.packages import hidden, need
from mbv3_jax.export.tflite import affine, to_half
from mbv3_jax.nn.ops.geometry import pad_amounts

DEPTHWISE = "conv (depthwise)"
SYSTEM = "iOS15"  # the first with ML programs; macOS 12 is its equal, and later ones read them
CLASS, PROBABILITIES = "classLabel", "classLabel_probs"  # outputs of a classifier
_PROGRAM = "Data/com.apple.CoreML/model.mlmodel"
# Packages that coremltools imports to convert their models, which takes ten times as long as the
# rest, with warnings of versions.
_CONVERTED = ("sklearn", "tensorflow", "torch", "xgboost")
# ONNX operator -> operation of ML programs, and the names of its inputs. Attributes have the same
# names and defaults in both.
_OPERATIONS = {
    "Abs": ("abs", "x"),
    "Add": ("add", "xy"),
    "Clip": ("clip", ("x", "alpha", "beta")),
    "Div": ("real_div", "xy"),
    "Elu": ("elu", "x"),
    "Erf": ("erf", "x"),
    "Exp": ("exp", "x"),
    "HardSigmoid": ("sigmoid_hard", "x"),
    "LeakyRelu": ("leaky_relu", "x"),
    "Max": ("maximum", "xy"),
    "Min": ("minimum", "xy"),
    "Mul": ("mul", "xy"),
    "Relu": ("relu", "x"),
    "Sigmoid": ("sigmoid", "x"),
    "Softplus": ("softplus", "x"),
    "Softsign": ("softsign", "x"),
    "Sub": ("sub", "xy"),
    "Tanh": ("tanh", "x"),
}


def to_coreml(
    spec: NetSpec,
    folded: dict,
    *,
    batch: int = 1,
    dtype: str = "float32",
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    class_names: Sequence[str] = (),
) -> bytes:
    """Writes a network as a Core ML package.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.
      batch: number of images in a batch.
      dtype: of weights and computation, "float32" or "float16"; arrays outside stay float32.
      normalize: mean and standard deviation of each channel, for values from 0 to 1; the input is
        then one image, which is normalised inside.
      class_names: of a classifier, one per logit; none for a network that returns logits only.

    Returns:
      A zip archive of the package. Its input is called "images", its output "logits"
      [batch, num_classes]; a classifier has `CLASS` and `PROBABILITIES` as well.

    Raises:
      UsageError: coremltools is not installed, has no operation for an activation, or has no images
        with this number of channels.
      ValueError: a weight is too large for float16.
    """
    layouts = {1: "GRAYSCALE", 3: "RGB"}
    if normalize and spec.in_channels not in layouts:
        raise UsageError(
            f"--input=uint8: images of Core ML have 1 or 3 channels, the network {spec.in_channels}"
        )
    coremltools = _coremltools()
    writer = _Writer(spec, folded, np.dtype(dtype))
    height, width, channels = spec.input_shape
    shape = (batch, channels, height, width)
    with _quiet():
        program = writer.program(shape, normalize, bool(class_names))
        inputs = coremltools.TensorType(name="images", shape=shape)
        if normalize:
            layout = getattr(coremltools.colorlayout, layouts[channels])
            inputs = coremltools.ImageType(name="images", shape=shape, color_layout=layout)
        classifier = None
        if class_names:
            classifier = coremltools.ClassifierConfig(
                _distinct(class_names), CLASS, predicted_probabilities_output=PROBABILITIES
            )
        model = coremltools.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            inputs=[inputs],
            classifier_config=classifier,
            compute_precision=getattr(coremltools.precision, np.dtype(dtype).name.upper()),
            minimum_deployment_target=getattr(coremltools.target, SYSTEM),
            skip_model_load=True,
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "network.mlpackage"
            model.save(str(folder))
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return _archive(files)


def counts(package: bytes) -> dict[str, int]:
    """How often each operation occurs, the most frequent first.

    Depthwise convolutions are counted apart, as `DEPTHWISE`.
    """
    (function,) = _model(_files(package)[_PROGRAM]).mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    numbers: collections.Counter[str] = collections.Counter()
    integers = {}
    for operation in block.operations:
        if operation.type == "const":
            value = operation.attributes["val"].immediateValue.tensor.ints.values
            integers[operation.outputs[0].name] = value[0] if value else 1
            continue
        is_depthwise = operation.type == "conv" and any(
            integers[argument.name] > 1 for argument in operation.inputs["groups"].arguments
        )
        numbers[DEPTHWISE if is_depthwise else operation.type] += 1
    return dict(numbers.most_common())


def with_metadata(package: bytes, entries: Mapping[str, str]) -> bytes:
    """A copy of the package with these entries among those that a user defines."""
    files = _files(package)
    model = _model(files[_PROGRAM])
    model.description.metadata.userDefined.update(entries)
    files[_PROGRAM] = model.SerializeToString()
    return _archive(files)


def metadata(folder: Path) -> dict[str, str]:
    """The entries that `with_metadata` wrote to a package, and those of coremltools.

    Raises:
      OSError: the package cannot be read.
      ValueError: it is not a package.
    """
    data = read_bytes(folder / _PROGRAM)
    try:
        return dict(_model(data).description.metadata.userDefined)
    except UsageError:
        raise
    except Exception as e:  # of protobuf, in several versions
        raise ValueError("no Core ML model") from e


def save(package: bytes, out: Path) -> None:
    """Atomically writes a package to a folder that does not exist yet.

    Raises:
      OSError: it cannot be written.
    """
    with replacing(out.absolute()) as aside:
        for name, data in _files(package).items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(data)


class _Writer:
    """Writes the operations of a network into a program, from the list of `traverse`."""

    def __init__(self, spec: NetSpec, folded: dict, dtype: np.dtype):
        from coremltools.converters.mil import Builder

        self.spec, self.folded, self.dtype, self.mil = spec, folded, dtype, Builder

    def program(
        self,
        shape: tuple[int, ...],
        normalize: tuple[Sequence[float], Sequence[float]] | None,
        is_classifier: bool,
    ) -> Any:
        """The program from images [N, C, H, W] to logits, and to probabilities of a classifier."""
        from coremltools import target

        def network(images):
            x = self.normalized(images, *normalize) if normalize else images
            logits = self.network(x)
            if not is_classifier:
                return logits
            return logits, self.mil.softmax(x=logits, axis=-1, name=PROBABILITIES)

        specs = [self.mil.TensorSpec(shape=shape)]
        return self.mil.program(specs, opset_version=getattr(target, SYSTEM))(network)

    def network(self, x: Any) -> Any:
        tensors = {IMAGES: x}
        for op in traverse(self.spec):
            inputs = [tensors[name] for name in op.inputs]
            match op:
                case Convolution(name="logits"):
                    flat = self.mil.squeeze(x=inputs[0], axes=[2, 3], name="flat")
                    tensors[op.name] = self.dense(op, flat)
                case Convolution():
                    tensors[op.name] = self.activated(op, inputs[0])
                case GlobalPool():
                    tensors[op.name] = self.mil.reduce_mean(
                        x=inputs[0], axes=[2, 3], keep_dims=True, name=_name(op.name)
                    )
                case ChannelScale():
                    x, gate = inputs
                    tensors[op.name] = self.mil.mul(x=x, y=gate, name=_name(op.name))
                case ResidualAdd():
                    x, branch = inputs
                    tensors[op.name] = self.mil.add(x=x, y=branch, name=_name(op.name))
                case Dropout():
                    tensors[op.name] = inputs[0]
                case _:
                    raise TypeError(f"{op.name}: Core ML has no form of {type(op).__name__} yet")
        return tensors["logits"]

    def normalized(self, x: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
        """Pixels of 0 to 255 -> normalised."""
        factors, offsets = (values.reshape(1, -1, 1, 1) for values in affine(mean, std))
        scaled = self.mil.mul(x=x, y=factors, name="images_scaled")
        return self.mil.add(x=scaled, y=offsets, name="images_normalized")

    def layer(self, conv: Convolution) -> tuple[np.ndarray, np.ndarray]:
        """Kernel [k, k, in, out] and bias [out], float32."""
        layer = lookup(self.folded, conv.path)
        kernel, bias = (np.asarray(layer[leaf], np.float32) for leaf in ("kernel", "bias"))
        if self.dtype == np.float16:
            for leaf, value in (("kernel", kernel), ("bias", bias)):
                to_half(value, f"{conv.path}/{leaf}")  # coremltools would write infinity
        return kernel, bias

    def activated(self, conv: Convolution, x: Any) -> Any:
        """A convolution of [N, C, H, W] with its activation or gate."""
        kernel, bias = self.layer(conv)
        pads = [
            amount
            for size in conv.in_shape[:2]
            for amount in pad_amounts(
                size,
                kernel=conv.kernel,
                stride=conv.stride,
                dilation=1,
                padding=self.spec.padding,
            )
        ]
        y = self.mil.conv(
            x=x,
            weight=np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)),
            bias=bias,
            strides=[conv.stride, conv.stride],
            pad_type="custom",
            pad=pads,
            groups=kernel.shape[3] if conv.depthwise else 1,
            name=_name(conv.path),
        )
        if conv.gate:
            return self.elementwise(GATES[conv.gate], y)
        return self.elementwise(ACTIVATIONS[conv.act], y) if conv.act else y

    def elementwise(self, entry: Activation | Gate, x: Any) -> Any:
        """An activation or a gate, from the ONNX nodes of its entry."""
        tensors = {"x": x}
        for node in entry.onnx:
            inputs = [*(tensors[name] for name in node.inputs), *node.constants.values()]
            if node.op == "HardSwish":  # has no operation of its own
                gate = self.mil.sigmoid_hard(x=inputs[0], alpha=1 / 6, beta=0.5)
                tensors[node.output] = self.mil.mul(x=inputs[0], y=gate)
                continue
            if node.op not in _OPERATIONS:
                raise UsageError(
                    f"the activation {entry.name!r} needs {node.op}, which --format=coreml does "
                    f"not write; it writes {', '.join(sorted([*_OPERATIONS, 'HardSwish']))}"
                )
            operation, names = _OPERATIONS[node.op]
            arguments = dict(zip(names, inputs, strict=True))
            tensors[node.output] = getattr(self.mil, operation)(**arguments, **node.attributes)
        return tensors[""]

    def dense(self, conv: Convolution, x: Any) -> Any:
        """A 1x1 convolution of [N, C]."""
        kernel, bias = self.layer(conv)
        weight = np.ascontiguousarray(kernel[0, 0].T)
        return self.mil.linear(x=x, weight=weight, bias=bias, name=_name(conv.path))


def _name(path: str) -> str:
    return path.replace("/", "_")


def _distinct(names: Sequence[str]) -> list[str]:
    """The names; with their labels where several are equal, as they are keys of a dictionary."""
    several = {name for name, times in collections.Counter(names).items() if times > 1}
    return [f"{name} ({i})" if name in several else name for i, name in enumerate(names)]


def _coremltools() -> Any:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        for package in _CONVERTED:
            stack.enter_context(hidden(package))
        return need("coremltools", "Core ML", "coreml")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides coremltools' progress bars, and its warnings about other systems."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _model(data: bytes) -> Any:
    _coremltools()
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString(data)
    return model


def _archive(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _files(package: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
