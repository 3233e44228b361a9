"""A trained network with all that is needed to use it, from a run folder or an import folder.

An import folder holds weights that come from another program, or go to one:

format.json          the version of what is in the folder; imports of version 1 have no such file
spec.json            the network
classes.json         the names of the classes, by label
preprocessing.json   how an image becomes its input
labels.json          "multi" for several labels per image; with one label there is no such file
origin.json          where the weights come from; only printed, never parsed
weights/             parameters and BatchNorm statistics, as Orbax stores them
digests.json         checksums of the files in weights/
"""

import dataclasses
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.checks import choose, flag
from mbv3_jax.core.errors import RunError, UsageError, counted, first_line
from mbv3_jax.core.files import check_storable, read_file, replacing
from mbv3_jax.core.json_values import Number, as_type, parse_json, read_json
from mbv3_jax.data import augment
from mbv3_jax.data.decode import CENTRAL, CENTRAL_FRACTION, INTERPOLATIONS
from mbv3_jax.nn import functional
from mbv3_jax.run.checkpoint import Checkpoints, is_averaged, read_arrays, write_arrays
from mbv3_jax.run.config import is_multi_label
from mbv3_jax.run.digests import DIGESTS, check_digests, write_digests
from mbv3_jax.run.folder import check_format, write_format

WEIGHTS = ("auto", "ema", "raw")
IMPORTED_LABELS = ("single", "multi")  # of images, see `data.source.LABEL_KINDS`
_SPEC, _CLASSES, _PREPROCESSING, LABELS, _ORIGIN, _ARRAYS = (
    "spec.json",
    "classes.json",
    "preprocessing.json",
    "labels.json",
    "origin.json",
    "weights",
)
DESCRIPTION = (_SPEC, _CLASSES, _PREPROCESSING)  # the files of `description` that it always has
_FILES = (_SPEC, _CLASSES, _PREPROCESSING, _ORIGIN, _ARRAYS, DIGESTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image file becomes the input of a network; the resolution is its spec's.

    mean, std: of each channel, of values from 0 to 1: the input is (value - mean) / std. As many as
      the network's spec has channels.
    interpolation, crop_fraction, central, exif_rotate: of `data.decode.decode_view`.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_fraction: float = CENTRAL_FRACTION
    interpolation: str = "bilinear"
    central: str = "square"
    exif_rotate: bool = True

    def __post_init__(self):
        for name, other in (("mean", self.std), ("std", self.mean)):
            values = getattr(self, name)
            count = len(other) if isinstance(other, list | tuple) else 3
            if not isinstance(values, list | tuple) or not values or len(values) != count:
                raise ValueError(f"{name}: got {values!r}, expected {count or 3} numbers")
            # Values are from 0 to 1. Beyond these bounds float32 has nothing left of them.
            low, high = (1e-6, 1e6) if name == "std" else (-1e6, 1e6)
            for value in values:
                if not _is_number(value) or not low <= value <= high:
                    kind = "positive numbers" if name == "std" else "numbers"
                    bounds = f"from {low:g} to {high:g}"
                    raise ValueError(f"{name}: got {values!r}, expected {count} {kind} {bounds}")
            object.__setattr__(self, name, tuple(map(float, values)))
        if not _is_number(self.crop_fraction) or not 0 < self.crop_fraction <= 1:
            raise ValueError(
                f"crop_fraction: got {self.crop_fraction!r}, expected above 0 and at most 1"
            )
        choose("interpolation", self.interpolation, INTERPOLATIONS)
        choose("central", self.central, CENTRAL)
        flag("exif_rotate", self.exif_rotate)

    @property
    def crop(self) -> dict[str, Any]:
        """The options of `data.decode.decode_view` for the evaluation view, by name."""
        names = ("crop_fraction", "interpolation", "central", "exif_rotate")
        return {name: getattr(self, name) for name in names}

    @property
    def normalize(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation, the option of `data.augment.make_preprocess`."""
        return self.mean, self.std

    def for_channels(self, channels: int) -> "Preprocessing":
        """The same for images of another number of channels, see `data.augment.for_channels`."""
        mean, std = augment.normalization(self.normalize, channels)
        return dataclasses.replace(self, mean=mean, std=std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network.

    spec: the network.
    variables: {"params", "batch_stats"}, float32 arrays of NumPy or JAX.
    preprocessing: from an image file to its input.
    multi_label: whether an image has several labels; each logit then belongs to a sigmoid.
    class_names: one per label; none for a network without a head, whose logits mean nothing yet.
    """

    spec: NetSpec
    variables: functional.Variables
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    multi_label: bool = False

    def __post_init__(self):
        headless = not self.class_names and self.spec.num_classes == 1
        if len(self.class_names) != self.spec.num_classes and not headless:
            raise ValueError(
                f"class_names: got {len(self.class_names)}, expected the "
                f"{self.spec.num_classes} of the network {self.spec.name}"
            )
        numbers_of, channels = len(self.preprocessing.mean), self.spec.in_channels
        if numbers_of == 3:  # also of other networks, in import folders of earlier versions
            preprocessing = self.preprocessing.for_channels(channels)
            object.__setattr__(self, "preprocessing", preprocessing)
        elif numbers_of != channels:
            raise ValueError(f"mean: got {counted(numbers_of, 'number')}, expected {channels}")
        functional.check(self.spec, self.variables)

    @property
    def crop(self) -> dict[str, Any]:
        """The options of `data.decode.decode_view` for the evaluation view, by name."""
        return self.preprocessing.crop | {"channels": self.spec.in_channels}

    @property
    def probabilities(self) -> str:
        """How the logits become probabilities, for messages."""
        if self.multi_label:
            return "sigmoid gives the probability of each class, of which an image may have several"
        return "softmax gives the classes"

    @property
    def sigmoid_note(self) -> str:
        """A note on two classes that were imported from one output; else empty.

        The first logit of such a network is zero, and the softmax gives the sigmoid of the second.
        """
        logits = self.variables["params"]["logits"]
        of_one_output = not any(np.any(v[..., 0]) for v in logits.values())
        if self.multi_label or self.spec.num_classes != 2 or not of_one_output:
            return ""
        first, second = self.class_names
        return f"one output for two classes: its sigmoid is {second!r}, the rest {first!r}"

    def require_head(self, folder: Path) -> None:
        """Checks that the network has classes to choose from.

        Args:
          folder: of the model, for the message.

        Raises:
          UsageError: it was imported without a head, or has one output without two names.
        """
        if not self.class_names:
            raise UsageError(
                f"{folder}: a network without a head, so without classes; only embed and training "
                f"(--config.init={folder}) accept it"
            )
        if self.spec.num_classes == 1:
            raise UsageError(
                f"{folder}: a network of one output, whose softmax is always 100%; import it again "
                "with --classes=FILE of two names, that of small outputs first, to use its sigmoid"
            )


def save_model(folder: Path, model: Model, *, origin: Mapping) -> None:
    """Writes an import folder atomically.

    Args:
      folder: a path that does not exist yet, or an empty folder.
      model: what to write.
      origin: where the weights come from; values that JSON can hold.

    Raises:
      UsageError: the folder is not empty, or its path cannot hold checkpoints.
      RunError: it cannot be written; nothing of it is left.
    """
    folder = Path(folder)
    check_storable(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already; give a folder that is new or empty")
    texts = description(model) | {_ORIGIN: _to_json(dict(origin))}
    try:
        with replacing(folder.absolute()) as aside:
            aside.mkdir(parents=True)
            write_format(aside)
            for name, text in texts.items():
                (aside / name).write_text(text)
            arrays = jax.tree.map(np.asarray, model.variables)
            write_arrays(epath.Path(aside / _ARRAYS), arrays)
            write_digests(epath.Path(aside))
    except Exception as e:  # whatever the storage raises
        raise RunError(f"cannot write {folder}: {first_line(e)}") from e


def description(model: Model) -> dict[str, str]:
    """The files of an import folder that say all of a model but its weights: name -> text."""
    texts = {
        _SPEC: spec_to_json(model.spec),
        _CLASSES: _to_json(model.class_names),
        _PREPROCESSING: _to_json(dataclasses.asdict(model.preprocessing)),
    }
    return texts | ({LABELS: _to_json("multi")} if model.multi_label else {})


def read_description(folder: Path) -> tuple[NetSpec, list[str], Preprocessing, bool]:
    """Reads what `description` wrote.

    Returns:
      The network, the names of its classes, its preprocessing, and whether it is `multi_label`.

    Raises:
      RunError: a file is missing or damaged.
    """
    spec = read_json(folder / _SPEC, NetSpec)
    names = read_json(folder / _CLASSES, list[str])
    preprocessing = read_file(
        folder / _PREPROCESSING, lambda text: _preprocessing(parse_json(text, dict))
    )
    multi_label = False
    if (folder / LABELS).exists():
        kind = read_json(folder / LABELS, str)
        if kind not in IMPORTED_LABELS:
            raise RunError(f"{folder / LABELS} is damaged: got {kind!r}, expected 'multi'")
        multi_label = kind == "multi"
    return spec, names, preprocessing, multi_label


def load_model(folder: Path, *, step: int | str | None = None, weights: str = "auto") -> Model:
    """Reads a run folder or an import folder; its files tell which of the two it is.

    Args:
      folder: of either kind; it is only read.
      step: which checkpoint of a run; None for the newest, "best" for the best.
      weights: of a run: "ema" or "raw"; "auto" takes the average if the run keeps one.

    Returns:
      The model, its variables NumPy arrays.

    Raises:
      UsageError: no such folder, one of neither kind, or an option that it does not have.
      RunError: it is damaged, or has no such checkpoint.
    """
    folder = Path(folder)
    choose("weights", weights, WEIGHTS)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    check_format(folder)
    if (folder / "config.json").is_file():
        return _load_run(folder, step, weights)
    missing = [name for name in _FILES if not (folder / name).exists()]
    if len(missing) == len(_FILES):
        raise UsageError(
            f"{folder} is neither a run folder (it has no config.json) nor an import folder "
            f"(it has no {_PREPROCESSING})"
        )
    if missing:
        raise RunError(f"{folder} is not a complete import folder: it has no {missing[0]}")
    if step is not None or weights != "auto":
        option = "step" if step is not None else "weights"
        raise UsageError(f"--{option}: {folder} is an import folder, which has one set of weights")
    return _load_import(folder)


def preprocessing_of_config(config: ConfigDict, channels: int = 3) -> Preprocessing:
    """The preprocessing that a configuration asks for in evaluation.

    Args:
      config: the configuration.
      channels: of the network.
    """
    mean, std = augment.normalization(config.augment.normalize, channels)
    return Preprocessing(mean=mean, std=std, **crop_options(config))


def preprocessing_of_run(run: Path, config: ConfigDict, channels: int = 3) -> Preprocessing:
    """The preprocessing of a run: its configuration's, or that of the weights it started from.

    Args:
      run: the run folder.
      config: its configuration.
      channels: of its network.

    Raises:
      RunError: the run started from weights, and its init.json is damaged.
    """
    if config.init is None:
        return preprocessing_of_config(config, channels)
    return read_init(run)[1]


class InitRecord(TypedDict):
    """What init.json of a run holds, which started from trained weights; see `train.warm_start`."""

    folder: str
    digest: str
    network: str
    new: list[str]
    message: str
    preprocessing: dict[str, Any]


def read_init(run: Path) -> tuple[InitRecord, Preprocessing]:
    """Reads init.json of a run folder.

    Raises:
      RunError: it is missing or damaged.
    """

    def parse(text: bytes) -> tuple[InitRecord, Preprocessing]:
        record = parse_json(text, InitRecord)
        return record, _preprocessing(record["preprocessing"], "preprocessing")

    return read_file(run / "init.json", parse)


class _Normalization(TypedDict):
    mean: list[Number]
    std: list[Number]


def _preprocessing(tree: dict[str, Any], path: str = "") -> Preprocessing:
    """Raises ValueError for what no version has written: a lost field must not become a default."""
    as_type(tree, _Normalization, path)
    return as_type(tree, Preprocessing, path)


def crop_options(config: ConfigDict) -> dict[str, Any]:
    """The fields of `Preprocessing` that a configuration sets, except the normalisation."""
    fields = ("crop_fraction", "interpolation", "central", "exif_rotate")
    return {name: config.data[name] for name in fields if config.data[name] is not None}


def _load_run(run: Path, step: int | str | None, weights: str) -> Model:
    checkpoints = Checkpoints(run, read_only=True)
    try:
        step = checkpoints.find(step)
        spec, config = checkpoints.description(step)
        averaged = is_averaged(run, config, weights)
        variables = checkpoints.variables(step, functional.shapes(spec), averaged=averaged)
    finally:
        checkpoints.close()
    if (run / _CLASSES).exists():
        names = read_json(run / _CLASSES, list[str])
    else:  # a run of an older version
        names = [str(label) for label in range(spec.num_classes)]
    preprocessing = preprocessing_of_run(run, config, spec.in_channels)
    return _model(run, spec, variables, preprocessing, names, is_multi_label(config))


def _load_import(folder: Path) -> Model:
    check_storable(folder, "rename it", read_only=True)
    spec, names, preprocessing, multi_label = read_description(folder)
    try:
        check_digests(epath.Path(folder))
        variables = read_arrays(epath.Path(folder) / _ARRAYS, functional.shapes(spec))
    except Exception as e:  # a damaged file can make the storage raise anything
        raise RunError(f"{folder} cannot be read: {first_line(e)}") from e
    return _model(folder, spec, variables, preprocessing, names, multi_label)


def _model(
    folder: Path,
    spec: NetSpec,
    variables: functional.Variables,
    preprocessing: Preprocessing,
    names: Sequence[str],
    multi_label: bool,
) -> Model:
    try:
        return Model(
            spec=spec,
            variables=variables,
            preprocessing=preprocessing,
            class_names=tuple(names),
            multi_label=multi_label,
        )
    except ValueError as e:
        raise RunError(f"{folder} does not fit together: {e}") from e


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
