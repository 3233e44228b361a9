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
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch.spec import NetSpec, spec_from_json, spec_to_json
from mbv3_jax.core.checks import check_number, check_whole, choose
from mbv3_jax.core.errors import RunError, UsageError, first_line
from mbv3_jax.core.files import write_atomically
from mbv3_jax.nn import functional
from mbv3_jax.nn.functional import Variables
from mbv3_jax.run.checkpoint import check_digests, read_arrays, write_arrays, write_digests
from mbv3_jax.run.config import config_differences
from mbv3_jax.run.folder import LOCK, lock_folder, read_config
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.model import Model, load_model, save_model
from mbv3_jax.search.netadapt import masks
from mbv3_jax.search.netadapt.masks import DELTA, Kept, Proposal, proposals
from mbv3_jax.search.netadapt.tuning import Tuner, tuning_config
from mbv3_jax.train.warm_start import weights_digest

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
            ours = (LOCK, Path(FILE).with_suffix(".tmp").name)
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
        different |= config_differences(ConfigDict(ours["config"]), ConfigDict(theirs["config"]))
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
        return lock_folder(self.folder)

    def network(self) -> NetSpec | None:
        """The network after the finished steps; None before the first has ended."""
        return self._network and spec_from_json(json.dumps(self._network["spec"]))

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
            check_digests(folder)
            return read_arrays(folder / "arrays", functional.shapes(seed))
        except Exception as e:  # whatever a damaged file makes the storage raise
            raise RunError(f"{folder} cannot be read: {first_line(e)}; choose another --out") from e

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
            write_arrays(epath.Path(aside.absolute()) / "arrays", arrays)
            write_digests(epath.Path(aside))
            aside.replace(new)
        except Exception as e:  # whatever the storage raises
            raise RunError(f"cannot write {new}: {first_line(e)}") from e
        self._network = {
            "spec": json.loads(spec_to_json(spec)),
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
            write_atomically(self.folder / FILE, json.dumps(tree, indent=1))
        except OSError as e:
            raise RunError(f"cannot write {self.folder / FILE}: {e.strerror}") from e

    def _weights(self, number: int) -> Path:
        return self.folder / "weights" / str(number)


# NetAdapt: a trained network made narrower, step by step, down to a cost.

STEPS = 50  # of a fine-tuning; the paper has 10,000, on ImageNet


def shrink(
    run: Path,
    cost: Callable[[NetSpec], float],
    target: float,
    out: Path,
    *,
    steps: int = STEPS,
    rate: float | None = None,
    delta: float = DELTA,
    divisor: int = 8,
    max_proposals: int | None = None,
    keep: str = "norm",
    seed: int = 0,
    eval_split: str | None = None,
    console: Console | None = None,
    show: Callable[[float], str] = "{:,.6g}".format,
) -> dict:
    """Narrows the network of a run until it costs at most `target`; goes on where it was cut off.

    Each step cuts at least `delta` of the first cost. It tries all `proposals`, with their weights
    cut down and briefly fine-tuned on the same batches, and takes the one of the largest change of
    top-1 over cost saved (MobileNetV3 section 4.2). What comes out is to be trained on, or from
    scratch.

    Args:
      run: folder of a run that has a checkpoint; its data and its recipe are used.
      cost: of a network, in any unit.
      target: in that unit, below the cost of the run's network.
      out: a folder for this alone, see `log.py`.
      steps, rate: of a fine-tuning; see `tuning.tuning_config`.
      delta: fraction, above 0 and below 1.
      divisor: of new channel counts.
      max_proposals: how many a step tries, drawn at random; None for all.
      keep: which channels stay, see `masks.narrow`.
      seed: of all that is random.
      eval_split: by which to choose, so that the one that is reported later stays unseen; None
        for the run's (clutter has "validation").
      console: where progress goes; None for standard error.
      show: a cost as text.

    Returns:
      {"spec": NetSpec, "cost", "accuracy", "split", "seed": {"cost", "accuracy"}, "steps":
      [{"change", "cost", "accuracy", "proposals"}], "model": the import folder}; accuracies are
      fractions.

    Raises:
      UsageError: an option is wrong, or `out` holds another run; nothing changed.
      RunError: no proposal saves enough any more, the loss is not finite, or a file is damaged or
        cannot be written; the same command goes on from the last proposal.
      Preempted, KeyboardInterrupt: after a signal; so it does then.
    """
    try:
        check_whole("steps", steps, at_least=1)
        check_whole("divisor", divisor, at_least=1)
        if rate is not None:
            check_number("rate", rate, above=0)
        check_number("delta", delta, above=0, below=1)
        if max_proposals is not None:
            check_whole("max_proposals", max_proposals, at_least=1)
        choose("keep", keep, masks.KEEP)
    except ValueError as e:
        raise UsageError(f"{e}") from e
    config = read_config(run)
    model = load_model(run)
    if model.spec.quant:
        raise UsageError(f"{run}: a network trained in int8 cannot be narrowed; give one in float")
    whole_cost = float(cost(model.spec))
    if not 0 < target < whole_cost:
        raise UsageError(
            f"target: got {show(target)}, expected above zero and below the {show(whole_cost)} of "
            f"the network of {run}"
        )
    config = tuning_config(config, steps=steps, rate=rate, eval_split=eval_split, seed=seed)
    settings = {
        "weights": weights_digest(model.variables),
        "cost": whole_cost,
        "target": float(target),
        "delta": delta,
        "divisor": divisor,
        "max_proposals": max_proposals,
        "keep": keep,
        "config": config.to_dict(),
    }
    log = Log(out, settings)
    console = console or Console(stderr=True, markup=False, emoji=False, soft_wrap=True)
    interrupt = Interrupt()
    tuner = Tuner(run, model, config, interrupt)
    with log.hold(), interrupt:
        adapt = _Adapt(model, cost, log, tuner, interrupt, console, show)
        try:
            return adapt.run()
        except OSError as e:
            raise RunError(f"stopped in {out}: {e}; the same command goes on") from e


@dataclasses.dataclass
class _Adapt:
    """One session."""

    model: Model
    cost: Callable[[NetSpec], float]
    log: Log
    tuner: Tuner
    interrupt: Interrupt
    console: Console
    show: Callable[[float], str]

    def run(self) -> dict:
        log, settings = self.log, self.log.settings
        if not log.seed:
            accuracy = self.tuner.top1(self.model.variables)
            log.seed = {"cost": settings["cost"], "accuracy": accuracy}
            log.write()
        spec, kept, variables = self.model.spec, masks.whole(self.model.spec), self.model.variables
        last = log.seed
        self.console.print(self._line("seed", last))
        if log.steps:
            spec, kept, variables = log.network(), log.kept(), log.weights(self.model.spec)
            last = log.steps[-1]
            self.console.print(self._line(f"going on after step {len(log.steps)}", last))
        while last["cost"] > settings["target"]:
            spec, kept, variables = self._step(spec, kept, variables, last)
            last = log.steps[-1]
            text = f"step {len(log.steps)}: {last['change']}"
            self.console.print(self._line(text, last))
        return self._finish(spec, kept, variables)

    def _line(self, text: str, at: dict) -> str:
        return f"{text}: {self.show(at['cost'])}, top-1 {at['accuracy']:.2%} on {self.tuner.split}"

    def _step(self, spec: NetSpec, kept: Kept, variables: Variables, last: dict):
        """Tries the proposals that no earlier session has; notes and returns the best."""
        log, number, best = self.log, len(self.log.steps), None
        found = self._proposals(spec, number)
        before = [(p["change"], p["saved"]) for p in log.pending]
        if before != [(p.change, p.saved) for p in found[: len(before)]]:
            raise UsageError(f"{log.folder} was begun with other costs; choose another --out")
        for i, proposal in list(enumerate(found))[len(before) :]:
            self.interrupt.check()
            narrowed, tuned = self._tune(spec, kept, variables, proposal, number)
            accuracy = self.tuner.top1(tuned)
            tried = {"change": proposal.change, "saved": proposal.saved, "accuracy": accuracy}
            log.pending.append(tried)
            log.write()
            if self._best(last) == i:
                best = i, narrowed, jax.device_get(tuned)
        chosen = self._best(last)
        proposal = found[chosen]
        if best is None or best[0] != chosen:  # its weights went with that session
            best = chosen, *self._tune(spec, kept, variables, proposal, number)
        _, kept, variables = best
        step = {
            "change": proposal.change,
            "cost": float(self.cost(proposal.spec)),
            "accuracy": log.pending[chosen]["accuracy"],
            "proposals": log.pending,
        }
        log.finish_step(step, proposal.spec, kept, variables)
        return proposal.spec, kept, variables

    def _proposals(self, spec: NetSpec, number: int) -> list[Proposal]:
        settings = self.log.settings
        cut = settings["delta"] * settings["cost"]
        found = proposals(spec, self.cost, cut, divisor=settings["divisor"])
        if not found:
            raise RunError(
                f"after {number} steps no proposal saves {self.show(cut)}: reached "
                f"{self.show(self.cost(spec))}, not {self.show(settings['target'])}; a smaller "
                "delta or divisor goes further, or choose a target that is reached, in another "
                "folder"
            )
        most = settings["max_proposals"]
        if most is None or most >= len(found):
            return found
        rng = np.random.default_rng((settings["config"]["seed"], number))
        return [found[i] for i in sorted(rng.choice(len(found), most, replace=False))]

    def _tune(self, spec, kept, variables, proposal: Proposal, number: int):
        whole = self.model.spec
        narrowed = masks.narrow(
            whole, variables, kept, proposal.spec, keep=self.log.settings["keep"]
        )
        return narrowed, self.tuner.tune(variables, narrowed, number)

    def _best(self, last: dict) -> int:
        """Which proposal tried so far has the largest change of accuracy over cost saved."""
        ratios = [(p["accuracy"] - last["accuracy"]) / p["saved"] for p in self.log.pending]
        return int(np.argmax(ratios))

    def _finish(self, spec: NetSpec, kept: Kept, variables: Variables) -> dict:
        log, folder = self.log, self.log.folder
        last = log.steps[-1]
        spec = spec.replace(name=f"{spec.name}_netadapt")
        if not (folder / "spec.json").exists():
            shutil.rmtree(folder / "model", ignore_errors=True)  # of a process that was killed
            cut = masks.truncate(self.model.spec, variables, spec, kept)
            origin = {"netadapt": log.settings["weights"], "steps": len(log.steps)}
            save_model(
                folder / "model",
                dataclasses.replace(self.model, spec=spec, variables=cut),
                origin=origin,
            )
            write_atomically(folder / "spec.json", spec_to_json(spec))
        return {
            "spec": spec,
            "cost": last["cost"],
            "accuracy": last["accuracy"],
            "split": self.tuner.split,
            "seed": log.seed,
            "steps": log.steps,
            "model": folder / "model",
        }
