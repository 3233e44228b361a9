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
