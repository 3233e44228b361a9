"""The folder of a NetAdapt run, which `adapt.shrink` writes and resumes from.

netadapt.json    the settings, the steps with all their proposals, the network and its channels now
format.json      the version of the folder's format; absent in folders of version 1
teacher.json     the teachers of the fine-tuning, if any; see `train/teacher.py`
hierarchy.csv    the hierarchy that it learns by, if any; see `train/hierarchy.py`
weights/N/       the variables after step N, zero outside of the remaining channels, with checksums
model/           the result as an import folder: eval --import=, --config.init=
spec.json        the narrow network, for configs/found.py:spec=FILE; written last
lock             held by the command that writes here

Every file is complete or absent, and netadapt.json names the weights that belong to it.
"""

import contextlib
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from etils import epath

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import RunError, UsageError, first_line
from mbv3_jax.core.files import (
    check_storable,
    is_temporary,
    read_file,
    remove_temporaries,
    replacing,
    write_atomically,
)
from mbv3_jax.core.json_values import Number, as_type, parse_json
from mbv3_jax.nn import functional
from mbv3_jax.nn.functional import Variables
from mbv3_jax.run.checkpoint import read_arrays, write_arrays
from mbv3_jax.run.config import config_differences, config_from_json
from mbv3_jax.run.digests import check_digests, write_digests
from mbv3_jax.run.folder import (
    FORMAT_FILE,
    HIERARCHY_FILE,
    LOCK,
    TEACHER_FILE,
    check_format,
    lock_folder,
    write_format,
)
from mbv3_jax.search.netadapt import masks
from mbv3_jax.search.netadapt.masks import Kept

FILE = "netadapt.json"
_BEGUN = LOCK, FORMAT_FILE, TEACHER_FILE, HIERARCHY_FILE  # what may be there before it


def _is_same(value, stored) -> bool:
    """Whether two settings are the same; costs may differ in the last digits between machines."""
    if isinstance(value, float) and isinstance(stored, int | float):
        return math.isclose(value, stored, rel_tol=1e-9)
    return value == stored


class _State(TypedDict):
    cost: Number
    accuracy: Number


class _Tried(TypedDict):
    change: str
    saved: Number
    accuracy: Number


class _Step(_State):
    change: str
    proposals: list[_Tried]


class _Network(TypedDict):
    spec: NetSpec
    kept: dict[str, list[int]]


class _Settings(TypedDict):
    config: dict[str, Any]


class _Stored(TypedDict):
    """What netadapt.json holds."""

    settings: _Settings
    seed: dict[str, Any]  # a _State, once it is known
    steps: list[_Step]
    pending: list[_Tried]
    network: _Network | None


class Log:
    """The folder of a NetAdapt run, which may be empty at first.

    Args:
      folder: The folder.
      settings: Values for JSON. A run with other settings is another run; "config" is the
        configuration of the fine-tunings.

    Attributes:
      seed: Cost and accuracy of the network at the start, once they are known.
      steps: The finished steps.
      pending: The proposals of the next step that have been tried.

    Raises:
      UsageError: The folder holds another run or something else, was written by a newer version,
        or cannot be used.
      RunError: It is damaged.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder, self.settings = folder, settings
        self.seed: dict = {}
        self.steps: list[dict] = []
        self.pending: list[dict] = []
        self._network: _Network | None = None
        check_storable(folder, "choose another --out")
        path = folder / FILE
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; choose another --out")
        if path.is_file():
            check_format(folder)
            self._compare(read_file(path, self._load, advice="choose another --out"))
        elif folder.exists():
            names = [p.name for p in folder.iterdir() if p.name not in _BEGUN]
            foreign = [name for name in names if not is_temporary(name, (FILE, *_BEGUN))]
            if foreign:
                raise UsageError(f"{folder} holds {foreign[0]} and no {FILE}; choose another --out")

    def _load(self, text: bytes) -> dict[str, Any]:
        """Takes over what netadapt.json holds; returns the settings, "config" a ConfigDict."""
        tree = parse_json(text, _Stored)
        if tree["seed"]:
            self.seed = dict(as_type(tree["seed"], _State, "seed"))
        self.steps = [dict(step) for step in tree["steps"]]
        self.pending = [dict(proposal) for proposal in tree["pending"]]
        self._network = tree["network"]
        if self.steps and not (self.seed and self._network):
            raise ValueError("seed, network: missing, expected those of the steps")
        config = config_from_json(json.dumps(tree["settings"]["config"]))
        return {**tree["settings"], "config": config}

    def _compare(self, stored: dict[str, Any]) -> None:
        different = {
            name: (value, stored.get(name))
            for name, value in self.settings.items()
            if name != "config" and not _is_same(value, stored.get(name))
        }
        config = config_from_json(json.dumps(self.settings["config"]))
        different |= config_differences(config, stored["config"])
        if different:
            listed = "\n".join(
                f"  {name}: this command {value!r}, the folder {stored_value!r}"
                for name, (value, stored_value) in different.items()
            )
            raise UsageError(
                f"{self.folder} holds another run:\n{listed}\ngive these values, or another --out"
            )

    def hold(self) -> contextlib.ExitStack:
        """Creates the folder and locks it until the result is closed.

        Raises:
          UsageError: The folder cannot be created, or another command is using it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / FILE).exists():
                write_format(self.folder)
        except OSError as e:
            raise UsageError(f"cannot write to {self.folder}: {e.strerror}") from e
        lock = lock_folder(self.folder)
        self._remove_leftovers()
        return lock

    def _remove_leftovers(self) -> None:
        """Removes what a process that was killed was writing; this one has locked the folder."""
        remove_temporaries(self.folder, (FILE, *_BEGUN, "spec.json", "model"))
        weights = self._weights(len(self.steps) + 1)
        if weights.parent.is_dir():
            remove_temporaries(weights.parent, (weights.name,))

    def network(self, seed: NetSpec) -> tuple[NetSpec, Kept]:
        """The network after the finished steps, of which there must be one, and its channels.

        Args:
          seed: The network at the start.

        Raises:
          RunError: They do not belong together.
        """
        assert self._network is not None, "no step has been finished"
        spec, kept = self._network["spec"], self._network["kept"]
        of_seed, of_spec = masks.widths(seed), masks.widths(spec)
        if {name: len(set(channels)) for name, channels in kept.items()} != of_spec or not all(
            0 <= channel < of_seed.get(name, 0)
            for name, channels in kept.items()
            for channel in channels
        ):
            raise RunError(
                f"{self.folder / FILE} is damaged: network.kept: not the channels of network.spec; "
                "choose another --out"
            )
        return spec, {name: np.array(channels) for name, channels in kept.items()}

    def weights(self, seed: NetSpec) -> Variables:
        """Reads the seed network's variables after the finished steps, of which there must be one.

        Raises:
          RunError: They are damaged.
        """
        folder = epath.Path(self._weights(len(self.steps)))
        try:
            check_digests(folder)
            return read_arrays(folder / "arrays", functional.shapes(seed))
        except Exception as e:  # whatever a damaged file makes the storage raise
            raise RunError(f"{folder} cannot be read: {first_line(e)}; choose another --out") from e

    def finish_step(self, step: dict, spec: NetSpec, kept: Kept, variables: Variables) -> None:
        """Writes a step with its weights, and then removes those of the previous step.

        Raises:
          RunError: They cannot be written.
        """
        number = len(self.steps) + 1
        new = self._weights(number)
        try:
            shutil.rmtree(new, ignore_errors=True)  # from a process that was killed
            with replacing(new.absolute()) as aside:
                aside.mkdir(parents=True)
                arrays = jax.tree.map(np.asarray, variables)
                write_arrays(epath.Path(aside) / "arrays", arrays)
                write_digests(epath.Path(aside))
        except Exception as e:  # whatever the storage raises
            raise RunError(f"cannot write {new}: {first_line(e)}") from e
        self._network = {
            "spec": spec,
            "kept": {name: channels.tolist() for name, channels in kept.items()},
        }
        self.steps, self.pending = [*self.steps, step], []
        self.write()
        shutil.rmtree(self._weights(number - 1), ignore_errors=True)

    def write(self) -> None:
        """Writes netadapt.json atomically.

        Raises:
          RunError: It cannot be written.
        """
        tree = {name: getattr(self, name) for name in ("settings", "seed", "steps", "pending")} | {
            "network": self._network
        }
        try:
            text = json.dumps(tree, indent=1, default=dataclasses.asdict)  # of the spec
            write_atomically(self.folder / FILE, text)
        except OSError as e:
            raise RunError(f"cannot write {self.folder / FILE}: {e.strerror}") from e

    def _weights(self, number: int) -> Path:
        return self.folder / "weights" / str(number)
