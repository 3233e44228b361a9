"""The confusion matrix of a run's held-out images as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mbv3_jax.report.sheet import read_predictions, shorten

_NAMED, _COUNTED = 40, 20  # so many classes at most get their names, their counts


def confusion(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Counts images by label and prediction.

    Args:
      label: int [N]; those below 0 are not counted.
      prediction: int [N].
      classes: the number of classes.

    Returns:
      int64 [label, prediction].
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (label[label >= 0], prediction[label >= 0]), 1)
    return counts


def plot_confusion(run: Path) -> Figure:
    """Draws for each class, a row, as what its images were predicted.

    Raises:
      ValueError: the run has no predictions.npz.
    """
    said, names = read_predictions(run)
    counts = confusion(said["label"], said["prediction"], len(names))
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    side = min(3.5 + 0.3 * len(names), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="share of the class", shrink=0.8)
    right, all_images = int(np.trace(counts)), int(counts.sum())
    axes.set(
        xlabel="prediction",
        ylabel="class",
        title=f"{run}, step {said['step']}: {right} of {all_images} right",
    )
    if len(names) <= _NAMED:
        ticks = range(len(names))
        axes.set_xticks(ticks, [shorten(n) for n in names], rotation=90)
        axes.set_yticks(
            ticks, [f"{shorten(n)} ({t})" for n, t in zip(names, totals[:, 0], strict=True)]
        )
    if len(names) <= _COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    return figure
