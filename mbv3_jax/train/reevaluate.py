"""Evaluating a checkpoint of an existing run again."""

from pathlib import Path

from mbv3_jax.data.source import BadExample
from mbv3_jax.train import run_folder
from mbv3_jax.train.checkpoint import Checkpoints
from mbv3_jax.train.errors import RunError, UsageError
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.loop import evaluate_variables

WEIGHTS = ("auto", "ema", "raw")


def reevaluate(run: Path, *, step: int | None = None, weights: str = "auto") -> dict:
    """Evaluates on every held-out example exactly once.

    Args:
      run: the run folder; it is only read.
      step: which checkpoint; None for the newest.
      weights: "ema" or "raw"; "auto" takes the average if the run keeps one.

    Returns:
      {"run", "step", "weights", "split", "count", "loss", "top1", maybe "top5"}.

    Raises:
      UsageError: no run folder, or no average in it.
      RunError: no such checkpoint, or it cannot be read.
    """
    experiment = make_experiment(run_folder.read_config(run))
    has_average = experiment.config.ema_decay is not None
    if weights == "ema" and not has_average:
        raise UsageError(f"{run} keeps no average (config.ema_decay is None); use --weights=raw")
    checkpoints = Checkpoints(run, read_only=True)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise RunError(f"{run} has no checkpoint yet")
        step = steps[-1] if step is None else step
        state, _ = checkpoints.restore(step, experiment.abstract_state())
    finally:
        checkpoints.close()
    averaged = has_average and weights != "raw"
    try:
        values = evaluate_variables(experiment, state.ema if averaged else state.variables)
    except BadExample as e:
        raise RunError(f"{e}") from e
    return {
        "run": str(run),
        "step": step,
        "weights": "ema" if averaged else "raw",
        "split": experiment.eval_source.split,
        **values,
    }
