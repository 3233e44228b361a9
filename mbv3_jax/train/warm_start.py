"""Starting from trained weights: `config.init`, a run folder or an import folder.

The folder is read once, before step 0. What the run needs from it is kept in the run's own folder:
spec.json (the network, with as many classes as the data has), init.json (where the weights came
from, what is new, the preprocessing) and a checkpoint of step 0.
"""

import dataclasses
import hashlib
import inspect
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mbv3_jax.arch import build
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import RunError, UsageError, counted
from mbv3_jax.core.files import expand_user
from mbv3_jax.core.json_values import read_json
from mbv3_jax.nn import functional
from mbv3_jax.run.config import INIT_FIELDS
from mbv3_jax.run.model import (
    Model,
    Preprocessing,
    crop_options,
    load_model,
    preprocessing_of_config,
    read_init,
)

INIT_FILE = "init.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What a run takes over from the folder that it starts from.

    folder: the folder, for messages.
    spec: its network, with what the configuration changes of it; or, once the run has started, the
      network of the run.
    preprocessing: that of the folder, with what the configuration changes of it.
    model: what is in the folder; None once the run has started.
    stored: what init.json holds, once the run has started.
    """

    folder: str
    spec: NetSpec
    preprocessing: Preprocessing
    model: Model | None = None
    stored: dict[str, Any] | None = None

    def load(self) -> Model:
        """The model to start from.

        Raises:
          UsageError: the folder does not exist.
          RunError: it is damaged, or holds other weights than when the run started.
        """
        model = self.model or load_model(Path(self.folder))
        if self.stored and self.stored["digest"] != weights_digest(model.variables):
            raise RunError(
                f"config.init: {self.folder} has other weights than when this run started, "
                "which has no checkpoint yet; choose another --workdir to begin again"
            )
        return model

    def record(self, spec: NetSpec, class_names: tuple[str, ...]) -> dict[str, Any]:
        """What init.json of the run holds: origin, what is new, and the preprocessing.

        Args:
          spec: the network of the run.
          class_names: of its data, by label.

        Raises:
          UsageError, RunError: as `load`.
        """
        if self.stored:
            return self.stored
        model = self.load()
        new = _new_stages(spec, model)
        if new:
            there = f"{model.spec.num_classes} there" if model.class_names else "no head there"
            why = f"{spec.num_classes} classes, {there}"
            message = f"the weights of {self.folder}, but new {', '.join(new)} ({why})"
        elif model.class_names != tuple(class_names):
            message = (
                f"all the weights of {self.folder}; as many classes, but other names: label 0 is "
                f"{class_names[0]!r} here, {model.class_names[0]!r} there"
            )
        else:
            message = f"all the weights of {self.folder}"
        if spec.in_channels != model.spec.in_channels:
            message += "; its stem is summed over the colours, for grey images"
        return {
            "folder": self.folder,
            "digest": weights_digest(model.variables),
            "network": model.spec.name,
            "new": new,
            "message": message,
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }

    def variables(self, spec: NetSpec) -> functional.Variables:
        """The weights to start from, without those of new stages and without int8 ranges.

        Args:
          spec: the network of the run.

        Raises:
          UsageError, RunError: as `load`.
        """
        model = self.load()
        new = [*_new_stages(spec, model), "quant"]
        variables = {
            kind: {stage: tree for stage, tree in stages.items() if stage not in new}
            for kind, stages in model.variables.items()
        }
        if spec.in_channels != model.spec.in_channels:
            params = variables["params"]
            stem = params["stem"]
            grey = np.sum(stem["conv"]["kernel"], axis=2, keepdims=True)
            stem = stem | {"conv": stem["conv"] | {"kernel": grey}}
            variables["params"] = params | {"stem": stem}
        return variables


def _new_stages(spec: NetSpec, model: Model) -> list[str]:
    """The stages of the network `spec` that `model` has no weights for."""
    has_logits = model.class_names and spec.num_classes == model.spec.num_classes
    return [] if has_logits else ["logits"]


def read_warm_start(config: ConfigDict, run: Path | None = None) -> WarmStart | None:
    """Reads the folder that `config.init` names, or the run's own record of it if there is one.

    Args:
      config: the configuration.
      run: the run folder, which need not exist.

    Returns:
      None if the run does not start from trained weights.

    Raises:
      UsageError: there is no such folder, its network is of another kind, or an option contradicts
        it.
      RunError: the folder or the record is damaged.
    """
    if config.init is None:
        return None
    if run and (run / INIT_FILE).is_file():
        spec = read_json(run / "spec.json", NetSpec)
        stored, preprocessing = read_init(run)
        return WarmStart(
            folder=stored["folder"], spec=spec, preprocessing=preprocessing, stored=dict(stored)
        )
    folder = expand_user(config.init, "config.init", error=UsageError).absolute()
    try:
        model = load_model(folder)
    except UsageError as e:
        raise UsageError(f"config.init: {e}") from e
    spec = _spec(config, model.spec, folder)
    return WarmStart(
        folder=str(folder),
        spec=spec,
        preprocessing=_preprocessing(config, model.preprocessing, folder, spec.in_channels),
        model=model,
    )


def _spec(config: ConfigDict, spec: NetSpec, folder: Path) -> NetSpec:
    """The network of the folder with what config.net changes of it."""
    fields = config.net.to_dict()
    name = fields.pop("name")
    if name not in (None, spec.name):
        raise UsageError(
            f"config.init: {folder} holds a {spec.name}, but config.net.name is {name!r}; "
            "None takes the network of the folder"
        )
    # None of these changes the weights.
    changes = {field: fields.pop(field) for field in INIT_FIELDS if field != "name"}
    fields.pop("num_classes")
    parameters = inspect.signature(build).parameters
    if (channels := fields.pop("in_channels")) != parameters["in_channels"].default:
        changes["in_channels"] = _check_channels(channels, spec.in_channels, folder)
    for field, value in fields.items():
        if field not in parameters:
            raise UsageError(f"config.net: unknown field {field}")
        if value not in (None, parameters[field].default):
            raise UsageError(
                f"config.net.{field}: got {value!r}, but the network is that of "
                f"config.init={folder}; leave it at {parameters[field].default!r}"
            )
    try:
        # Whether it runs in int8 is decided by this run, not by the folder.
        return spec.replace(quant=None, **{k: v for k, v in changes.items() if v is not None})
    except ValueError as e:
        raise UsageError(f"config.net.{e}") from e


def _check_channels(asked: int | None, found: int, folder: Path) -> int | None:
    """Refuses a number of channels that the stem of the folder cannot be converted to.

    From colours to grey, timm (`adapt_input_conv`, for in_chans=1) sums a stem over the colours: a
    grey image, repeated for each colour, then gives the same as before. Nothing else is converted.
    """
    if asked in (None, found) or (asked, found) == (1, 3):
        return asked
    raise UsageError(
        f"config.net.in_channels: got {asked}, but the network of config.init={folder} takes "
        f"{counted(found, 'channel')}; set --config.net.in_channels={found}"
        + (" or 1, for grey images" if found == 3 else "")
    )


def _preprocessing(
    config: ConfigDict, stored: Preprocessing, folder: Path, channels: int
) -> Preprocessing:
    """The preprocessing of the folder with what the configuration changes of it."""
    stored = stored.for_channels(channels)
    normalize = config.augment.normalize
    try:
        if normalize is not None:
            configured = preprocessing_of_config(config, channels)
            if configured.normalize != stored.normalize:
                raise ValueError(
                    f"augment.normalize: got {normalize!r}, but the weights of {folder} expect "
                    f"mean {stored.mean} and deviation {stored.std}; None takes those"
                )
        return dataclasses.replace(stored, **crop_options(config))
    except ValueError as e:
        raise UsageError(f"config: {e}") from e


def weights_digest(tree: functional.Variables) -> str:
    """SHA-256 of all values with their paths."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
