"""Starting from trained weights: `config.init`, a run folder or an import folder.

The folder is read once, before step 0. What the run needs of it is kept in its own folder:
spec.json (the network, with as many classes as the data has), init.json (where the weights came
from, what is new, the preprocessing) and a checkpoint of step 0.
"""

import dataclasses
import hashlib
import inspect
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mbv3_jax.arch import build
from mbv3_jax.arch.spec import NetSpec, spec_from_json
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.nn import functional
from mbv3_jax.run.config import OF_INIT
from mbv3_jax.run.model import (
    Model,
    Preprocessing,
    crop_options,
    load_model,
    preprocessing_of_config,
)

INIT_FILE = "init.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What a run takes over from the folder that it starts from.

    folder: the folder, for messages.
    spec: its network, with what the configuration changes of it; or, once the run has begun, the
      network of the run.
    preprocessing: its own, with what the configuration changes of it.
    model: what is in the folder; None once the run has begun.
    record: what init.json holds, once the run has begun.
    """

    folder: str
    spec: NetSpec
    preprocessing: Preprocessing
    model: Model | None = None
    record: dict | None = None

    def load(self) -> Model:
        """The weights to start from, held to be those that the run was begun with.

        Raises:
          UsageError: there is no such folder.
          RunError: it is damaged, or another one than it was.
        """
        model = self.model or load_model(Path(self.folder))
        if self.record and self.record["digest"] != weights_digest(model.variables):
            raise RunError(
                f"config.init: {self.folder} has other weights than when this run was begun, "
                "which has no checkpoint yet; choose another --workdir to begin again"
            )
        return model

    def new_stages(self, spec: NetSpec, model: Model) -> list[str]:
        """The stages of the network `spec` that `model` has no weights for."""
        return [] if spec.num_classes == model.spec.num_classes else ["logits"]


def read_start(config: ConfigDict, run: Path | None = None) -> WarmStart | None:
    """What `config.init` says; from the run's own folder if the run has begun.

    Raises:
      UsageError: no such folder, a network of another kind, or an option that contradicts it.
      RunError: it is damaged.
    """
    if config.init is None:
        return None
    if run and (run / INIT_FILE).is_file():
        try:
            stored = json.loads((run / INIT_FILE).read_text())
            return WarmStart(
                folder=stored["folder"],
                spec=spec_from_json((run / "spec.json").read_text()),
                preprocessing=Preprocessing(**stored["preprocessing"]),
                record=stored,
            )
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise RunError(f"{run / INIT_FILE} is damaged: {e}") from e
    folder = Path(config.init).expanduser().absolute()
    try:
        model = load_model(folder)
    except UsageError as e:
        raise UsageError(f"config.init: {e}") from e
    return WarmStart(
        folder=str(folder),
        spec=_spec(config, model.spec, folder),
        preprocessing=_preprocessing(config, model.preprocessing, folder),
        model=model,
    )


def _spec(config: ConfigDict, spec: NetSpec, folder: Path) -> NetSpec:
    fields = config.net.to_dict()
    name = fields.pop("name")
    if name not in (None, spec.name):
        raise UsageError(
            f"config.init: {folder} holds a {spec.name}, but config.net.name is {name!r}; "
            "None takes the network that is there"
        )
    # None of these is in the weights.
    changes = {field: fields.pop(field) for field in OF_INIT if field != "name"}
    fields.pop("num_classes")
    parameters = inspect.signature(build).parameters
    for field, value in fields.items():
        if field not in parameters:
            raise UsageError(f"config.net: unknown field {field}")
        if value not in (None, parameters[field].default):
            raise UsageError(
                f"config.net.{field}: got {value!r}, but the network is that of "
                f"config.init={folder}; leave it at {parameters[field].default!r}"
            )
    try:
        # Whether it runs in int8 is this run's affair.
        return spec.replace(quant=None, **{k: v for k, v in changes.items() if v is not None})
    except ValueError as e:
        raise UsageError(f"config.net.{e}") from e


def _preprocessing(config: ConfigDict, theirs: Preprocessing, folder: Path) -> Preprocessing:
    normalize = config.augment.normalize
    try:
        if normalize is not None:
            ours = preprocessing_of_config(config)
            if ours.normalize != theirs.normalize:
                raise ValueError(
                    f"augment.normalize: got {normalize!r}, but the weights of {folder} are used "
                    f"to mean {theirs.mean} and deviation {theirs.std}; None takes those"
                )
        return dataclasses.replace(theirs, **crop_options(config))
    except ValueError as e:
        raise UsageError(f"config: {e}") from e


def start_record(start: WarmStart, spec: NetSpec, class_names: tuple[str, ...]) -> dict:
    """What init.json holds for a run that begins: origin, what is new, and the preprocessing."""
    model = start.load()
    new = start.new_stages(spec, model)
    if new:
        why = f"{spec.num_classes} classes, {model.spec.num_classes} there"
        message = f"the weights of {start.folder}, but new {', '.join(new)} ({why})"
    elif model.class_names != tuple(class_names):
        message = (
            f"all the weights of {start.folder}; as many classes, but other names: label 0 is "
            f"{class_names[0]!r} here, {model.class_names[0]!r} there"
        )
    else:
        message = f"all the weights of {start.folder}"
    return {
        "folder": start.folder,
        "digest": weights_digest(model.variables),
        "network": model.spec.name,
        "new": new,
        "message": message,
        "preprocessing": dataclasses.asdict(start.preprocessing),
    }


def start_variables(start: WarmStart, spec: NetSpec) -> functional.Variables:
    """The weights to start from, without those of new stages and without ranges for int8.

    Raises:
      UsageError, RunError: as `Start.load`.
    """
    model = start.load()
    new = [*start.new_stages(spec, model), "quant"]
    return {
        kind: {stage: tree for stage, tree in stages.items() if stage not in new}
        for kind, stages in model.variables.items()
    }


def weights_digest(tree: functional.Variables) -> str:
    """SHA-256 of all values with their paths."""
    found = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()
