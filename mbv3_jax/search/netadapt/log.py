"""The folder of a NetAdapt run: how far it is, and the weights there.

netadapt.json    settings, the steps with all their proposals, the network and its channels now
weights/N/       variables of the seed network after step N, zero but for these channels, under
                 checksums
model/           the result as an import folder: eval --import=, --config.init=
spec.json        the narrow network, for configs/found.py:spec=FILE; written last
lock             held by the command that writes here

Each is whole or not there; netadapt.json names the weights that belong to it.
"""

import contextlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mbv3_jax.arch.spec import NetSpec, from_json, to_json
from mbv3_jax.nn import functional
from mbv3_jax.nn.functional import Variables
from mbv3_jax.search.netadapt.masks import Kept
from mbv3_jax.train import checkpoint, config, digests, run_folder
from mbv3_jax.train.errors import RunError, UsageError

FILE = "netadapt.json"


class Log:
    """What the folder holds; begun anew where there is nothing yet.

    Args:
      folder: of this run.
      settings: plain values that make another run of it, "config" among them.

    Attributes:
      seed: cost and accuracy of the network that it began with, once known.
      steps: finished ones.
      pending: proposals of the next step that have been tried.

    Raises:
      UsageError: the folder is another's, or cannot be used.
      RunError: it is damaged.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder, self.settings = folder, settings
        self.seed: dict = {}
        self.steps: list[dict] = []
        self.pending: list[dict] = []
        self._network: dict | None = None
        if wild := set("*?[") & set(str(folder.absolute())):
            raise UsageError(f"{folder}: Orbax takes {' '.join(sorted(wild))} for a pattern")
        path = folder / FILE
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is no folder; choose another --out")
        if path.is_file():
            try:
                tree = json.loads(path.read_text())
                stored = tree["settings"]
                self.seed, self.steps, self.pending, self._network = (
                    tree[name] for name in ("seed", "steps", "pending", "network")
                )
            except (OSError, ValueError, KeyError, TypeError) as e:
                raise RunError(f"{path} is damaged ({e!r}); choose another --out") from e
            self._compare(stored)
        elif folder.exists():
            ours = (run_folder.LOCK, Path(FILE).with_suffix(".tmp").name)
            foreign = [p.name for p in folder.iterdir() if p.name not in ours]
            if foreign:
                raise UsageError(f"{folder} holds {foreign[0]} and no {FILE}; choose another --out")

    def _compare(self, stored: dict) -> None:
        ours, theirs = self.settings, stored
        different = {
            name: (ours[name], theirs.get(name))
            for name in ours
            if name != "config" and ours[name] != theirs.get(name)
        }
        different |= config.differences(ConfigDict(ours["config"]), ConfigDict(theirs["config"]))
        if different:
            listed = "\n".join(
                f"  {name}: this command {a!r}, the folder {b!r}"
                for name, (a, b) in different.items()
            )
            raise UsageError(
                f"{self.folder} holds another run:\n{listed}\ngive these values, or another --out"
            )

    def hold(self) -> contextlib.ExitStack:
        """Makes the folder and holds its lock until closed.

        Raises:
          UsageError: it cannot be made, or another command uses it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(f"cannot write to {self.folder}: {e.strerror}") from e
        return run_folder.hold(self.folder)

    def network(self) -> NetSpec | None:
        """The network after the finished steps; None before the first has ended."""
        return self._network and from_json(json.dumps(self._network["spec"]))

    def kept(self) -> Kept:
        """Its channels, after at least one step."""
        return {name: np.array(found, int) for name, found in self._network["kept"].items()}

    def weights(self, seed: NetSpec) -> Variables:
        """The variables of the seed network after the finished steps, at least one.

        Raises:
          RunError: they are damaged.
        """
        folder = epath.Path(self._weights(len(self.steps)))
        try:
            digests.check(folder)
            return checkpoint.read_arrays(folder / "arrays", functional.shapes(seed))
        except Exception as e:  # whatever a damaged file makes the storage raise
            raise RunError(
                f"{folder} cannot be read: {checkpoint.first_line(e)}; choose another --out"
            ) from e

    def finish_step(self, step: dict, spec: NetSpec, kept: Kept, variables: Variables) -> None:
        """Notes a step with its weights; those of the step before are removed then.

        Raises:
          RunError: they cannot be written.
        """
        number = len(self.steps) + 1
        new, aside = self._weights(number), self._weights(number).with_suffix(".tmp")
        try:
            for left in (new, aside):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            aside.mkdir(parents=True)
            arrays = jax.tree.map(np.asarray, variables)
            checkpoint.write_arrays(epath.Path(aside.absolute()) / "arrays", arrays)
            digests.write(epath.Path(aside))
            aside.replace(new)
        except Exception as e:  # whatever the storage raises
            raise RunError(f"cannot write {new}: {checkpoint.first_line(e)}") from e
        self._network = {
            "spec": json.loads(to_json(spec)),
            "kept": {name: channels.tolist() for name, channels in kept.items()},
        }
        self.steps, self.pending = [*self.steps, step], []
        self.write()
        shutil.rmtree(self._weights(number - 1), ignore_errors=True)

    def write(self) -> None:
        """Writes netadapt.json, whole or not at all.

        Raises:
          RunError: it cannot be written.
        """
        tree = {name: getattr(self, name) for name in ("settings", "seed", "steps", "pending")} | {
            "network": self._network
        }
        try:
            run_folder.write_atomically(self.folder / FILE, json.dumps(tree, indent=1))
        except OSError as e:
            raise RunError(f"cannot write {self.folder / FILE}: {e.strerror}") from e

    def _weights(self, number: int) -> Path:
        return self.folder / "weights" / str(number)
