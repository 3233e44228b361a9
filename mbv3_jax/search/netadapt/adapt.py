"""NetAdapt: a trained network is narrowed, step by step, until it costs no more than a target.

Each step tries many narrower networks with a brief fine-tuning and keeps the best (NetAdapt, arXiv
1804.03230; MobileNetV3 section 4.2). `log.py` describes
the folder of a run.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.checks import check_number, check_whole, choose
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.nn.functional import Variables
from mbv3_jax.run.config import need_one_label
from mbv3_jax.run.folder import hold_inputs, read_config
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.model import Model, load_model, save_model
from mbv3_jax.search.netadapt import masks
from mbv3_jax.search.netadapt.log import Log
from mbv3_jax.search.netadapt.masks import DELTA, Kept, Proposal, proposals
from mbv3_jax.search.netadapt.tuning import Tuner, tuning_config
from mbv3_jax.train.warm_start import weights_digest

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
        hold_inputs(out, tuner.teachers, tuner.hierarchy, "choose another --out")
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
