"""What is measured: networks and files that the user names, and their files for a runtime.

A network may have random weights, because the time does not depend on them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.json_values import read_json
from mbv3_jax.export import tflite
from mbv3_jax.export.formats import Target, write
from mbv3_jax.nn import functional
from mbv3_jax.nn.folded import Forms, apply_folded, fold
from mbv3_jax.quant.post_training import Options, quantize
from mbv3_jax.run.config import parse_config, spec_of
from mbv3_jax.run.model import Model, Preprocessing, load_model
from mbv3_jax.run.shipped import shipped_names, split_argument

_FORMATS = {"litert": "tflite", "onnxruntime": "onnx"}
_RUNTIMES = {".tflite": "litert", ".onnx": "onnxruntime"}
_CALIBRATION_IMAGES = 8


def random_model(spec: NetSpec) -> Model:
    """Returns the network with random weights.

    NumPy draws them, because `functional.init` would compile for seconds.
    """
    shapes = jax.eval_shape(lambda key: functional.init(spec, key), jax.random.key(0))
    return Model(
        spec=spec,
        variables=_draw(shapes),
        preprocessing=Preprocessing(),
        class_names=tuple(map(str, range(spec.num_classes))),
    )


def write_random(
    folder: Path, spec: NetSpec, runtime: str, precision: str, name: str = "model"
) -> Path:
    """Writes a network with random weights as `write_file` does, if possible without compiling."""
    if (runtime, precision) != ("litert", "float32"):
        return write_file(folder, random_model(spec), runtime, precision, name)
    folded, forms = random_folded(spec), Forms(hard_sigmoid="rescaled")  # as in an export
    shape = (1, *spec.input_shape)
    file = tflite.to_tflite(
        lambda x: apply_folded(spec, folded, x, forms=forms), jax.ShapeDtypeStruct(shape, "float32")
    )
    path = folder / f"{name}.tflite"
    path.write_bytes(file)
    return path


def random_folded(spec: NetSpec) -> dict:
    """Returns random weights in the form of `nn.folded.fold`."""
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


def write_file(
    folder: Path, model: Model, runtime: str, precision: str, name: str = "model"
) -> Path:
    """Writes the file of a network, for batches of one, that `measure.measure_files` takes.

    Args:
      folder: The folder to write to.
      model: The network.
      runtime: One of `measure.RUNTIMES`.
      precision: "float32", or "int8" for "litert". The ranges of int8 are those of random images,
        which does not affect the time.
      name: The name of the file, without its ending.

    Returns:
      The path of the file.

    Raises:
      UsageError: The runtime does not have this precision, or is not installed.
    """
    if runtime == "xla":
        if precision != "float32":
            raise UsageError(f"--precision={precision}: XLA has float32 only; --runtime=litert")
        path = folder / f"{name}.json"
        path.write_text(spec_to_json(model.spec.replace(quant=None)))
        return path
    target = Target(file_format=_FORMATS[runtime], precision=precision)
    network = None
    if precision == "int8":
        spec = model.spec.replace(quant=None)
        shape = (_CALIBRATION_IMAGES, *spec.input_shape)
        images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        options = Options(observer="min_max")
        network = quantize(spec, model.variables, [images], options)
    path = folder / f"{name}.{target.file_format}"
    path.write_bytes(write(model, target, network))
    return path


@dataclasses.dataclass(frozen=True)
class Source:
    """A file to measure, or the network from which to write one.

    Attributes:
      name: The name to print.
      path: The file; None for a network.
      runtime: The only runtime that reads the file; None for a network.
      model: The network; None for a file.
    """

    name: str
    path: Path | None = None
    runtime: str | None = None
    model: Model | None = None

    def prepare(self, folder: Path, runtime: str, precision: str, name: str = "model") -> Path:
        """Returns the file for `measure.measure_files`, which it writes if it has a network.

        Raises:
          UsageError: The file is for another runtime, or cannot be written for this one.
        """
        if self.model is not None:
            return write_file(folder, self.model, runtime, precision, name)
        assert self.path is not None, "a source has a file or a network"
        if self.runtime != runtime:
            raise UsageError(f"{self.path}: a file of --runtime={self.runtime}, not of {runtime}")
        return self.path


def of_file(path: Path) -> Source:
    """Returns the source for a TFLite or ONNX file.

    Raises:
      UsageError: The file does not exist, or has another ending.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.suffix not in _RUNTIMES:
        raise UsageError(f"{path}: expected a name that ends in .tflite or .onnx")
    return Source(name=path.name, path=path, runtime=_RUNTIMES[path.suffix])


def of_folder(folder: Path, step: int | str | None = None, weights: str = "auto") -> Source:
    """Returns the source for a run folder or an import folder; see `run.model.load_model`."""
    model = load_model(folder, step=step, weights=weights)
    return Source(name=folder.absolute().name, model=model)


def of_spec(spec: NetSpec, name: str | None = None) -> Source:
    """Returns the source for a network with random weights."""
    return Source(name=name or spec.name, model=random_model(spec.replace(quant=None)))


def of_config(text: str, overrides: Sequence[str] = ()) -> Source:
    """Returns the source for the network of a configuration, FILE[:ARGUMENT], with random weights.

    Raises:
      UsageError: The configuration is wrong, or takes its network from trained weights.
    """
    config = parse_config(text, overrides)
    if config.init is not None:
        raise UsageError(f"--config={text}: takes its network from weights; give --import or --run")
    if config.net.num_classes is None:  # it would follow the data, which is not opened here
        config.net.num_classes = 1000
    return of_spec(spec_of(config))


def of_anything(text: str) -> Source:
    """Returns the source for a run or import folder, a .tflite or .onnx file, a spec (.json), or a
    configuration (a shipped name or .py, with an argument after a colon).

    Raises:
      UsageError: It is something else.
    """
    path = Path(text)
    if path.is_dir():
        return of_folder(path)
    if path.suffix == ".json" and path.is_file():
        return of_spec(read_json(path, NetSpec, error=UsageError), path.stem)
    name, _ = split_argument(text)
    if name.endswith(".py") or name in shipped_names("get_config"):
        return dataclasses.replace(of_config(text), name=Path(text).name)
    return of_file(path)
