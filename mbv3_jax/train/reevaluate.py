"""Evaluating a checkpoint of an existing run again."""

from pathlib import Path

from mbv3_jax.data.source import BadExample
from mbv3_jax.train import run_folder
from mbv3_jax.train.checkpoint import Checkpoints, averaged
from mbv3_jax.train.errors import RunError
from mbv3_jax.train.experiment import make_experiment


def reevaluate(run: Path, *, step: int | str | None = None, weights: str = "auto") -> dict:
    """Evaluates on every held-out example exactly once.

    Args:
      run: the run folder; it is only read.
      step: which checkpoint; None for the newest, "best" for the best.
      weights: "ema" or "raw"; "auto" takes the average if the run keeps one.

    Returns:
      {"run", "step", "weights", "split", "count", "loss", "top1", maybe "top5"}.

    Raises:
      UsageError: no run folder, or no average in it.
      RunError: no such checkpoint, or it cannot be read.
    """
    experiment = make_experiment(run_folder.read_config(run), run)
    average = averaged(run, experiment.config, weights)
    checkpoints = Checkpoints(run, read_only=True)
    try:
        step = checkpoints.find(step)
        state, _ = checkpoints.restore(step, experiment.abstract_state())
    finally:
        checkpoints.close()
    try:
        values = experiment.evaluate(state.ema if average else state.variables)
    except BadExample as e:
        raise RunError(f"{e}") from e
    return {
        "run": str(run),
        "step": step,
        "weights": "ema" if average else "raw",
        "split": experiment.eval_source.split,
        **values,
    }
