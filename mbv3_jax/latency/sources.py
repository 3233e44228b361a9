"""What a person names to have it measured: a run, an import, a configuration, a file."""

import dataclasses
from pathlib import Path

from mbv3_jax.arch import from_json
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.latency.models import random_model, write_file
from mbv3_jax.train import config as configs
from mbv3_jax.train import model as models
from mbv3_jax.train.errors import UsageError

_RUNTIMES = {".tflite": "litert", ".onnx": "onnxruntime"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A file to measure, or the network to write one from.

    name: for people.
    runtime: the only one that reads the file; None of a network.
    """

    name: str
    path: Path | None = None
    runtime: str | None = None
    model: models.Model | None = None

    def prepare(self, folder: Path, runtime: str, precision: str, name: str = "model") -> Path:
        """The file for `measure.measure_files`.

        Raises:
          UsageError: it is not one of this runtime, or cannot be written for it.
        """
        if self.path is None:
            return write_file(folder, self.model, runtime, precision, name)
        if self.runtime != runtime:
            raise UsageError(f"{self.path}: a file of --runtime={self.runtime}, not of {runtime}")
        return self.path


def of_file(path: Path) -> Source:
    """A TFLite or ONNX file.

    Raises:
      UsageError: there is none, or it is of another kind.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.suffix not in _RUNTIMES:
        raise UsageError(f"{path}: expected a name that ends in .tflite or .onnx")
    return Source(name=path.name, path=path, runtime=_RUNTIMES[path.suffix])


def of_folder(folder: Path, step: int | str | None = None, weights: str = "auto") -> Source:
    """A run folder or an import folder, as `train.model.load` reads it."""
    model = models.load(folder, step=step, weights=weights)
    return Source(name=folder.absolute().name, model=model)


def of_spec(spec: NetSpec, name: str | None = None) -> Source:
    """A network, with random weights."""
    return Source(name=name or spec.name, model=random_model(spec.replace(quant=None)))


def of_config(text: str, overrides=()) -> Source:
    """The network of a configuration, FILE[:ARGUMENT], with random weights.

    Raises:
      UsageError: it is wrong, or leaves the network to a run or to data.
    """
    config = configs.parse(text, overrides)
    if config.init is not None:
        raise UsageError(f"--config={text}: takes its network from weights; give --import or --run")
    if config.net.num_classes is None:  # as many as the data has: a thousand of a thousand
        config.net.num_classes = 1000
    return of_spec(configs.spec_of(config))


def of_anything(text: str) -> Source:
    """By what is there: a folder of a run or an import, a .tflite or .onnx file, a spec (.json),
    or a configuration (.py, with an argument after a colon).

    Raises:
      UsageError: nothing of these.
    """
    path = Path(text)
    if path.is_dir():
        return of_folder(path)
    if path.suffix == ".json" and path.is_file():
        try:
            return of_spec(from_json(path.read_text()), path.stem)
        except ValueError as e:
            raise UsageError(f"{path}: {e}") from e
    if text.partition(":")[0].endswith(".py"):
        return dataclasses.replace(of_config(text), name=Path(text).name)
    return of_file(path)
