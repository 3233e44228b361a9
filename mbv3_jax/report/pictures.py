"""Pictures as files: training curves, confusion matrix, and images with captions."""

import functools
import itertools
import math
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from mbv3_jax.core.errors import counted, printable, printable_lines
from mbv3_jax.core.files import open_atomically
from mbv3_jax.core.json_values import read_json
from mbv3_jax.core.limits import check_archive
from mbv3_jax.report.charts import PLAIN_TEXT, choose_scale
from mbv3_jax.run import metrics

_Curve = tuple[Literal["loss", "top1", "mean_average_precision"], int, str]
_CURVES: tuple[_Curve, ...] = (("loss", 1, "loss"), ("top1", 100, "top-1 (%)"))
_SEVERAL: _Curve = ("mean_average_precision", 100, "mean average precision (%)")
_plain_text = matplotlib.rc_context(PLAIN_TEXT)
# Its letters are boxes with the name of a script.
_NO_FONT = "Last Resort"

# Sizes of an image sheet, in inches.
_COLUMNS = 6
_IMAGE_SIDE = 1.9
_GAP = 0.2  # between images
_CAPTION_POINTS = 7
_CAPTION_WIDTH = 32  # characters; longer lines are broken
_LINE_HEIGHT = 0.13  # of a caption
_CAPTION_PADDING = 0.15  # around a caption
_TITLE_HEIGHT, _TITLE_LETTER = 0.4, 0.1
# Above these numbers of classes, a confusion matrix shows no names, and no counts.
_MOST_NAMED, _MOST_COUNTED = 40, 20


def save_picture(figure: Figure, out: Path) -> Path:
    """Atomically writes a figure.

    Args:
      figure: what to write.
      out: a file; its ending decides the format, PNG without one.

    Returns:
      The file that was written.

    Raises:
      ValueError: Matplotlib does not write files with this ending.
      OSError: the file cannot be written.
    """
    if not out.suffix:
        out = out.with_name(f"{out.name}.png")
    use_fonts_for(figure)
    with open_atomically(out) as file, matplotlib.rc_context(PLAIN_TEXT), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # `use_fonts_for` has said it
        figure.savefig(file, format=out.suffix[1:].lower(), dpi=120)
    return out


def use_fonts_for(figure: Figure) -> None:
    """Chooses fonts that have the letters of all texts, such as Chinese names of classes.

    It prints one line on standard error if no font of this machine has them.
    """
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    for text in texts:
        text.set_text(printable_lines(text.get_text()))
    letters = {letter for text in texts for letter in text.get_text() if letter != "\n"}
    missing = letters - _letters(findfont("DejaVu Sans"))  # Matplotlib's own font, always there
    families = []
    for font in fontManager.ttflist if missing else ():
        if not font.name.startswith((_NO_FONT, "DejaVu Sans")) and missing & _letters(font.fname):
            families.append(font.name)
            missing -= _letters(font.fname)
    if families:
        for text in texts:
            text.set_fontfamily(["DejaVu Sans", *families])
    if missing:
        some = "".join(sorted(missing)[:10])
        print(
            f"note: no font on this machine has {len(missing)} of the letters ({some}), which are "
            "drawn as boxes; install one that has them, such as Noto Sans CJK",
            file=sys.stderr,
        )


@functools.cache
def _letters(font: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(font).get_charmap()))
    except (OSError, RuntimeError):  # a damaged font of the machine
        return frozenset()


@_plain_text
def plot_curves(run: Path) -> Figure:
    """Loss on the left and top-1 on the right, by training step.

    With several labels per image, the mean average precision of evaluations takes the place of
    top-1.

    Raises:
      ValueError: the folder is not a run folder, or has no training record yet.
    """
    if not (run / metrics.FILE).is_file():
        raise ValueError(f"{run} is not a run folder: it has no {metrics.FILE}")
    records = metrics.read_metrics(run)
    labels = {"train": "training batches", "eval": "held-out images"}
    by_kind = {kind: [r for r in records if r["kind"] == kind] for kind in labels}
    if not by_kind["train"]:
        raise ValueError(f"{run}: no training record yet: the run has not reached its first log")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    figure.suptitle(printable(str(run)))
    several = any("label_accuracy" in record for record in records)
    curves = (_CURVES[0], _SEVERAL) if several else _CURVES
    for axes, (metric, scale, label) in zip(figure.subplots(1, 2), curves, strict=True):
        for kind, line in (("train", {"lw": 1}), ("eval", {"marker": "o", "ms": 4})):
            records = [r for r in by_kind[kind] if metric in r]
            steps = [r["step"] for r in records]
            values = [r[metric] * scale for r in records]
            axes.plot(steps, values, label=labels[kind], **line)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    choose_scale(figure.axes[0], "y", figure.axes[0].dataLim.intervaly)
    return figure


@_plain_text
def plot_confusion(run: Path) -> Figure:
    """The confusion matrix of a run: a row for each class, shares of its images as colours.

    Raises:
      ValueError: the run has no predictions.npz, or it is damaged.
    """
    predictions, names = read_predictions(run)
    counts = confusion(predictions["label"], predictions["prediction"], len(names))
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    side = min(3.5 + 0.3 * len(names), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="share of the class", shrink=0.8)
    correct, total = int(np.trace(counts)), int(counts.sum())
    axes.set(
        xlabel="prediction",
        ylabel="class",
        title=f"{printable(str(run))}, step {predictions['step']}: {correct} of {total} correct",
    )
    if len(names) <= _MOST_NAMED:
        ticks = range(len(names))
        axes.set_xticks(ticks, [shorten(n) for n in names], rotation=90)
        axes.set_yticks(
            ticks, [f"{shorten(n)} ({t})" for n, t in zip(names, totals[:, 0], strict=True)]
        )
    if len(names) <= _MOST_COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    return figure


def confusion(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Counts images by label and prediction.

    Args:
      label: int [images]; images with a negative label are not counted.
      prediction: int [images].
      classes: the number of classes.

    Returns:
      int64 [label, prediction].
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (label[label >= 0], prediction[label >= 0]), 1)
    return counts


@_plain_text
def plot_mistakes(run: Path) -> Figure:
    """A sheet of a run's worst mistakes: each image with its file, its class and its prediction.

    Raises:
      ValueError: the run has no predictions.npz, it is damaged, or there was no mistake.
    """
    predictions, names = read_predictions(run)
    if not len(predictions["mistakes"]):
        raise ValueError(
            f"{run}: no mistake to draw: every held-out image was classified correctly"
        )
    captions = [
        f"{shorten(Path(str(predictions['path'][i])).name)}\n"
        f"is {shorten(names[predictions['label'][i]])}: {predictions['label_probability'][i]:.1%}\n"
        f"taken for {shorten(names[predictions['prediction'][i]])}: "
        f"{predictions['probability'][i]:.1%}"
        for i in predictions["mistakes"]
    ]
    title = f"{printable(str(run))}, step {predictions['step']}"
    return image_sheet(list(predictions["thumbnails"]), captions, title=title)


@_plain_text
def image_sheet(images: Sequence[np.ndarray], captions: Sequence[str], title: str = "") -> Figure:
    """Draws images in rows, each with its caption below.

    Args:
      images: uint8 [side, side, channels] each, at least one. One channel is drawn in grey; of any
        number other than 3, only the first is drawn.
      captions: one for each image; may have several lines, and long lines are broken.
      title: the heading of the sheet.
    """
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    captions = [_break_lines(caption) for caption in captions]
    lines = max(caption.count("\n") + 1 for caption in captions)
    row_height = _IMAGE_SIDE + _CAPTION_PADDING + _LINE_HEIGHT * lines
    heading = _TITLE_HEIGHT if title else _GAP / 2
    width = max(columns * (_IMAGE_SIDE + _GAP), _TITLE_LETTER * len(title))
    height = heading + rows * row_height
    # Places are computed: the constrained layout cuts off captions of squares that do not shrink.
    figure = Figure(figsize=(width, height))
    if title:
        figure.suptitle(title, y=1 - _TITLE_HEIGHT / 2 / height, va="center")
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(i, columns)
        left = column * (_IMAGE_SIDE + _GAP) + _GAP / 2
        bottom = height - heading - row * row_height - _IMAGE_SIDE
        place = (left / width, bottom / height, _IMAGE_SIDE / width, _IMAGE_SIDE / height)
        axes = figure.add_axes(place)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.imshow(image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2))
        axes.set_xlabel(caption, fontsize=_CAPTION_POINTS)
    return figure


def _break_lines(caption: str) -> str:
    lines = [textwrap.wrap(line, _CAPTION_WIDTH) or [""] for line in caption.splitlines()]
    return "\n".join(itertools.chain.from_iterable(lines))


def shorten(text: str, most: int = 28) -> str:
    """The text, or its beginning and its end if it is longer than `most` characters."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"


def read_predictions(run: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads predictions.npz of a run folder, and the names of the classes.

    Returns:
      The arrays, see `train.inference`; the names, by label.

    Raises:
      ValueError: there is no such file, or it is damaged.
    """
    path = run / "predictions.npz"
    if not path.is_file():
        raise ValueError(
            f"{run} has no predictions.npz: a run writes it at its end with "
            "config.save_predictions=True, as in configs/finetune.py"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive)
        with np.load(path) as file:
            predictions = dict(file)
    except Exception as e:  # NumPy raises errors of many kinds for a damaged archive
        raise ValueError(f"{path} is damaged: {e}") from e
    names = read_json(run / "classes.json", list[str], error=ValueError)
    most = max(predictions["label"].max(initial=-1), predictions["prediction"].max(initial=-1))
    if most >= len(names):
        raise ValueError(
            f"{run / 'classes.json'} is damaged: got {counted(len(names), 'name')}, but {path} has "
            f"the class {most}"
        )
    return predictions, names
