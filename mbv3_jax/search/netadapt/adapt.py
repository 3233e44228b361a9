"""NetAdapt: a trained network is narrowed, step by step, until it costs no more than a target.

Each step tries many narrower networks with a brief fine-tuning and keeps the best (NetAdapt, arXiv
1804.03230; MobileNetV3 section 4.2). A run has a folder:

netadapt.json    the settings, the steps with all their proposals, the network and its channels now
format.json      the version of the folder's format; absent in folders of version 1
teacher.json     the teachers of the fine-tuning, if any; see `train/teacher.py`
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from etils import epath
from rich.console import Console

from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.checks import check_number, check_whole, choose
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
from mbv3_jax.run.config import config_differences, config_from_json, need_one_label
from mbv3_jax.run.digests import check_digests, write_digests
from mbv3_jax.run.folder import (
    FORMAT_FILE,
    LOCK,
    TEACHER_FILE,
    check_format,
    hold_teachers,
    lock_folder,
    read_config,
    write_format,
)
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.model import Model, load_model, save_model
from mbv3_jax.search.netadapt import masks
from mbv3_jax.search.netadapt.masks import DELTA, Kept, Proposal, proposals
from mbv3_jax.search.netadapt.tuning import Tuner, tuning_config
from mbv3_jax.train.warm_start import weights_digest

FILE = "netadapt.json"
_BEGUN = LOCK, FORMAT_FILE, TEACHER_FILE  # what may be there before it
STEPS = 50  # in a fine-tuning; the paper has 10,000, on ImageNet


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
    """Narrows the network of a run until it costs at most `target`, or resumes doing so.

    Each step saves at least the fraction `delta` of the initial cost. It tries all `proposals`,
    with their weights cut down and briefly fine-tuned on the same batches, and takes the one with
    the largest change of top-1 per cost saved (MobileNetV3 section 4.2). Unlike in the paper, what
    is saved beyond the target does not count. The result should be trained further, or from
    scratch.

    Args:
      run: The folder of a run that has a checkpoint. Its data and its recipe are used.
      cost: The cost of a network, in any unit.
      target: The cost to reach, below that of the run's network.
      out: The folder of this NetAdapt run.
      steps, rate: Length and learning rate of a fine-tuning; see `tuning.tuning_config`.
      delta: A fraction above 0 and below 1.
      divisor: All new channel counts are multiples of it.
      max_proposals: The number of proposals that a step tries, drawn at random; None for all.
      keep: Which channels stay; see `masks.narrow`.
      seed: Seed of everything that is random.
      eval_split: The split by which to choose, so that the one that is reported later stays unseen
        (clutter has "validation"); None for the run's.
      console: Where progress is printed; None for standard error.
      show: Formats a cost.

    Returns:
      {"spec": NetSpec, "cost", "accuracy" (a fraction), "split", "seed": {"cost", "accuracy"},
      "steps": [{"change", "cost", "accuracy", "proposals"}], "model": path of the import folder}.

    Raises:
      UsageError: An option is wrong, or `out` holds another run. Nothing has changed.
      RunError: No proposal saves enough, the loss is not finite, or a file is damaged or cannot be
        written. The same command resumes from the last proposal.
      Preempted, KeyboardInterrupt: After a signal. The same command resumes here too.
    """
    try:
        _check_options(steps, rate, delta, divisor, max_proposals, keep)
    except ValueError as e:
        raise UsageError(f"{e}") from e
    config = read_config(run)
    need_one_label(config, "NetAdapt")
    model = load_model(run)
    if model.spec.quant:
        raise UsageError(f"{run}: a network trained in int8 cannot be narrowed; give one in float")
    whole_cost = float(cost(model.spec))
    if not 0 < target < whole_cost:
        raise UsageError(
            f"target: got {show(target)}, expected above zero and below the {show(whole_cost)} of "
            f"the network in {run}"
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
        hold_teachers(out, tuner.teachers, "choose another --out")
        adapt = _Adapt(model, cost, log, tuner, interrupt, console, show)
        try:
            return adapt.run()
        except OSError as e:
            raise RunError(f"stopped in {out}: {e}; run the same command again to resume") from e


def _check_options(steps, rate, delta, divisor, max_proposals, keep) -> None:
    check_whole("steps", steps, at_least=1)
    check_whole("divisor", divisor, at_least=1)
    if rate is not None:
        check_number("rate", rate, above=0)
    check_number("delta", delta, above=0, below=1)
    if max_proposals is not None:
        check_whole("max_proposals", max_proposals, at_least=1)
    choose("keep", keep, masks.KEEP)


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
        remove_temporaries(self.folder, (FILE, FORMAT_FILE, TEACHER_FILE, "spec.json", "model"))
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


@dataclasses.dataclass
class _Adapt:
    """The work of one process, from where the log ends."""

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
            (spec, kept), variables = log.network(self.model.spec), log.weights(self.model.spec)
            last = log.steps[-1]
            self.console.print(self._line(f"resuming after step {len(log.steps)}", last))
        while last["cost"] > settings["target"]:
            spec, kept, variables = self._step(spec, kept, variables, last)
            last = log.steps[-1]
            text = f"step {len(log.steps)}: {last['change']}"
            self.console.print(self._line(text, last))
        return self._finish(spec, kept, variables)

    def _line(self, text: str, at: dict) -> str:
        return f"{text}: {self.show(at['cost'])}, top-1 {at['accuracy']:.2%} on {self.tuner.split}"

    def _step(
        self, spec: NetSpec, kept: Kept, variables: Variables, last: dict
    ) -> tuple[NetSpec, Kept, Variables]:
        """Tries the proposals that no earlier process has tried; logs and returns the best."""
        log, number, best = self.log, len(self.log.steps), None
        options = self._proposals(spec, number)
        tried_before = [(p["change"], p["saved"]) for p in log.pending]
        if tried_before != [(p.change, p.saved) for p in options[: len(tried_before)]]:
            raise UsageError(f"{log.folder} was started with other costs; choose another --out")
        for i, proposal in list(enumerate(options))[len(tried_before) :]:
            self.interrupt.check()
            narrowed, tuned = self._tune(spec, kept, variables, proposal, number)
            accuracy = self.tuner.top1(tuned)
            tried = {"change": proposal.change, "saved": proposal.saved, "accuracy": accuracy}
            log.pending.append(tried)
            log.write()
            if self._best(last) == i:
                best = i, narrowed, jax.device_get(tuned)
        chosen = self._best(last)
        proposal = options[chosen]
        if best is None or best[0] != chosen:  # an earlier process tried it, and kept no weights
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
        options = proposals(spec, self.cost, cut, divisor=settings["divisor"])
        if not options:
            raise RunError(
                f"after {number} steps no proposal saves {self.show(cut)}: reached "
                f"{self.show(self.cost(spec))}, not {self.show(settings['target'])}; use a "
                "smaller delta or divisor, or a target that is reached, in another folder"
            )
        most = settings["max_proposals"]
        if most is None or most >= len(options):
            return options
        rng = np.random.default_rng((settings["config"]["seed"], number))
        return [options[i] for i in sorted(rng.choice(len(options), most, replace=False))]

    def _tune(
        self, spec: NetSpec, kept: Kept, variables: Variables, proposal: Proposal, number: int
    ) -> tuple[Kept, Variables]:
        whole = self.model.spec
        narrowed = masks.narrow(
            whole, variables, kept, proposal.spec, keep=self.log.settings["keep"]
        )
        return narrowed, self.tuner.tune(variables, narrowed, number)

    def _best(self, last: dict) -> int:
        """Returns the tried proposal with the largest change of accuracy per cost saved.

        What is saved beyond the target does not count. In a narrow network one proposal can save
        many times what is still missing, and lose the accuracy that goes with it.
        """
        missing = last["cost"] - self.log.settings["target"]
        ratios = [
            (p["accuracy"] - last["accuracy"]) / min(p["saved"], missing) for p in self.log.pending
        ]
        return int(np.argmax(ratios))

    def _finish(self, spec: NetSpec, kept: Kept, variables: Variables) -> dict:
        log, folder = self.log, self.log.folder
        last = log.steps[-1]
        spec = spec.replace(name=f"{spec.name}_netadapt")
        if not (folder / "spec.json").exists():
            shutil.rmtree(folder / "model", ignore_errors=True)  # from a killed process
            cut = masks.truncate(self.model.spec, variables, spec, kept)
            origin = {"netadapt": log.settings["weights"], "steps": len(log.steps)}
            narrow = dataclasses.replace(self.model, spec=spec, variables=cut)
            save_model(folder / "model", narrow, origin=origin)
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
