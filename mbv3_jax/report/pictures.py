"""Sheets of images with a few words under each."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

_COLUMNS = 6


def image_sheet(images: Sequence[np.ndarray], captions: Sequence[str], title: str = "") -> Figure:
    """Draws images in rows, each over its caption.

    Args:
      images: uint8 [S, S, 3] each, at least one.
      captions: as many; may have several lines.
      title: of the sheet.
    """
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    lines = max(caption.count("\n") + 1 for caption in captions)
    figure = Figure(figsize=(2.1 * columns, (1.9 + 0.16 * lines) * rows), layout="constrained")
    if title:
        figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image)
        axes.set_xlabel(caption, fontsize=7, parse_math=False)
    return figure


def mistakes_sheet(run: Path) -> Figure:
    """The worst mistakes of a run: the file, what it is, and what it was taken for.

    Raises:
      ValueError: the run has no predictions.npz, or made no mistake.
    """
    said, names = read_predictions(run)
    if not len(said["mistakes"]):
        raise ValueError(f"{run}: no mistake to draw: every held-out image was predicted rightly")
    captions = [
        f"{shorten(Path(str(said['path'][i])).name)}\n"
        f"is {shorten(names[said['label'][i]])}: {said['label_probability'][i]:.1%}\n"
        f"taken for {shorten(names[said['prediction'][i]])}: {said['probability'][i]:.1%}"
        for i in said["mistakes"]
    ]
    return image_sheet(said["thumbnails"], captions, title=f"{run}, step {said['step']}")


def shorten(text: str, most: int = 28) -> str:
    """The text, or its beginning and end."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"


def read_predictions(run: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """predictions.npz of a run folder, see `train.predictions`, and the names of the classes.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    path = run / "predictions.npz"
    if not path.is_file():
        raise ValueError(
            f"{run} has no predictions.npz: a run writes it at its end with "
            "config.save_predictions=True, as configs/finetune.py has it"
        )
    try:
        with np.load(path) as file:
            said = dict(file)
        names = json.loads((run / "classes.json").read_text())
    except Exception as e:  # whatever a damaged archive makes NumPy raise
        raise ValueError(f"{path} or classes.json beside it is damaged: {e}") from e
    return said, names


# The confusion matrix of a run's held-out images as a picture.

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
