"""NetAdapt: a trained network made narrower, step by step, down to a cost."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from mbv3_jax.arch.spec import NetSpec, choose, to_json
from mbv3_jax.nn.functional import Variables
from mbv3_jax.search.netadapt import masks
from mbv3_jax.search.netadapt.log import Log
from mbv3_jax.search.netadapt.masks import Kept
from mbv3_jax.search.netadapt.proposals import DELTA, Proposal, proposals
from mbv3_jax.search.netadapt.tuning import Tuner, tuning_config
from mbv3_jax.train import model as models
from mbv3_jax.train import run_folder
from mbv3_jax.train.errors import RunError, UsageError
from mbv3_jax.train.interrupt import Interrupt
from mbv3_jax.train.options import check_number, check_whole
from mbv3_jax.train.start import digest

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
    config = run_folder.read_config(run)
    model = models.load(run)
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
        "weights": digest(model.variables),
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

    model: models.Model
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
            models.save(
                folder / "model",
                dataclasses.replace(self.model, spec=spec, variables=cut),
                origin=origin,
            )
            run_folder.write_atomically(folder / "spec.json", to_json(spec))
        return {
            "spec": spec,
            "cost": last["cost"],
            "accuracy": last["accuracy"],
            "split": self.tuner.split,
            "seed": log.seed,
            "steps": log.steps,
            "model": folder / "model",
        }
