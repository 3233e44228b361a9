"""Networks as files of a runtime: trained ones, and ones with random weights."""

from pathlib import Path

import jax
import numpy as np

from mbv3_jax.arch.spec import NetSpec, to_json
from mbv3_jax.export import tflite
from mbv3_jax.export.writing import Target, write
from mbv3_jax.nn import functional
from mbv3_jax.nn.folded import Forms, apply_folded, fold
from mbv3_jax.quant import post_training
from mbv3_jax.train.errors import UsageError
from mbv3_jax.train.model import Model, Preprocessing

_FORMATS = {"litert": "tflite", "onnxruntime": "onnx"}
_CALIBRATION_IMAGES = 8


def random_model(spec: NetSpec) -> Model:
    """The network with random weights, by NumPy: `functional.init` compiles for seconds."""
    shapes = jax.eval_shape(lambda key: functional.init(spec, key), jax.random.key(0))
    return Model(
        spec=spec,
        variables=_draw(shapes),
        preprocessing=Preprocessing(),
        class_names=tuple(map(str, range(spec.num_classes))),
    )


def write_random(folder: Path, spec: NetSpec, runtime: str, precision: str, name="model") -> Path:
    """`write_file` of random weights; without a compilation where it can."""
    if (runtime, precision) != ("litert", "float32"):
        return write_file(folder, random_model(spec), runtime, precision, name)
    folded, forms = random_folded(spec), Forms(hard_sigmoid="rescaled")  # as export.writing has
    shape = (1, spec.resolution, spec.resolution, spec.in_channels)
    file = tflite.to_tflite(
        lambda x: apply_folded(spec, folded, x, forms=forms), jax.ShapeDtypeStruct(shape, "float32")
    )
    path = folder / f"{name}.tflite"
    path.write_bytes(file)
    return path


def random_folded(spec: NetSpec) -> dict:
    """Its weights as `nn.folded.fold` has them."""
    return _draw(
        jax.eval_shape(lambda key: fold(spec, functional.init(spec, key)), jax.random.key(0))
    )


def _draw(shapes):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return (rng.standard_normal(leaf.shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        center = path[-1].key in ("scale", "var")
        return (center + rng.uniform(0, 0.1, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_file(folder: Path, model: Model, runtime: str, precision: str, name="model") -> Path:
    """Writes what `measure.measure_files` takes, for batches of one.

    Args:
      folder: where.
      model: the network.
      runtime: of `measure.RUNTIMES`.
      precision: "float32", or "int8" for "litert", with ranges from random images: they do not
        matter to the time.
      name: of the file, without its ending.

    Returns:
      Its path.

    Raises:
      UsageError: the runtime has no such precision, or is not installed.
    """
    if runtime == "xla":
        if precision != "float32":
            raise UsageError(f"--precision={precision}: XLA has float32 only; --runtime=litert")
        path = folder / f"{name}.json"
        path.write_text(to_json(model.spec.replace(quant=None)))
        return path
    target = Target(file_format=_FORMATS[runtime], precision=precision)
    network = None
    if precision == "int8":
        spec = model.spec.replace(quant=None)
        shape = (_CALIBRATION_IMAGES, spec.resolution, spec.resolution, spec.in_channels)
        images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        options = post_training.Options(observer="min_max")
        network = post_training.quantize(spec, model.variables, [images], options)
    path = folder / f"{name}.{target.file_format}"
    path.write_bytes(write(model, target, network))
    return path
