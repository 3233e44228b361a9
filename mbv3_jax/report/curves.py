"""Training curves of a run folder as a picture."""

import json
from pathlib import Path

from matplotlib.figure import Figure


def plot_curves(records: list[dict], title: str) -> Figure:
    """Loss on the left, top-1 on the right, over steps.

    Args:
      records: of `metrics.jsonl`, see `train.logging.Metrics`.
      title: of the picture.

    Raises:
      ValueError: there is no training record yet.
    """
    kinds = {kind: [r for r in records if r["kind"] == kind] for kind in ("train", "eval")}
    if not kinds["train"]:
        raise ValueError("no training record yet: the run has not reached its first log")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    figure.suptitle(title)
    for axes, (name, scale, label) in zip(
        figure.subplots(1, 2), (("loss", 1, "loss"), ("top1", 100, "top-1 (%)")), strict=True
    ):
        for kind, style in (("train", {"lw": 1}), ("eval", {"marker": "o", "ms": 4})):
            steps = [r["step"] for r in kinds[kind]]
            values = [r[name] * scale for r in kinds[kind]]
            label_of = {"train": "training batches", "eval": "held-out images"}
            axes.plot(steps, values, label=label_of[kind], **style)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_yscale("log")
    return figure


def plot_run(run: Path) -> Figure:
    """`plot_curves` of a run folder."""
    return plot_curves(read_records(run), title=str(run))


def read_records(run: Path) -> list[dict]:
    """The records of a run folder; a last line that is still being written is left out.

    Raises:
      ValueError: the folder has no metrics.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: it has no metrics.jsonl")
    complete = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]
