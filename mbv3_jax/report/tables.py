"""The columns of a sweep's table, and tables as Markdown, CSV, JSON and LaTeX."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mbv3_jax.core.errors import printable

# (title, rows of `rows.rows`) of one sweep.
TitledRows = tuple[str, list[dict]]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column that people read.

    key: the entry of a row that the column is sorted by.
    label: the heading.
    about: a unit or a short explanation below the heading; may be "".
    show: row -> the text of its cell, "" where nothing is known.
    """

    key: str
    label: str
    about: str
    show: Callable[[dict], str]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell: the text that is shown, and the value that it is sorted by (None comes last)."""

    text: str
    sort: float | str | None


def _number(key: str, pattern: str, scale: float = 1) -> Callable[[dict], str]:
    return lambda row: "" if row[key] is None else pattern.format(row[key] * scale)


def _top1(row: dict) -> str:
    if row["top1"] is None:
        return ""
    spread = "" if row["top1_std"] is None else f" ± {row['top1_std']:.2f}"
    return f"{row['top1']:.2f}{spread}"


def _best(row: dict) -> str:
    if row["best_top1"] is None:
        return ""
    step = "" if row["best_step"] is None else f" (step {row['best_step']:,})"
    return f"{row['best_top1']:.2f}{step}"


def _time(row: dict) -> str:
    seconds = row["seconds"]
    if seconds is None:
        return ""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36000 else f"{seconds / 3600:.1f} h"


def _source(row: dict) -> str:
    parts = row["published_network"], row["published_source"]
    return ", ".join(parts) if parts[1] else ""


_TRIAL = Column("trial", "trial", "", lambda row: row["trial"])
_TOP1 = Column("top1", "top-1 %", "mean ± deviation over the seeds", _top1)
RESULTS = (
    _TRIAL,
    Column("data", "data", "held out", lambda row: row["data"] or ""),
    Column("held_out", "images", "held out", _number("held_out", "{:,}")),
    Column("resolution", "pixels", "resolution", _number("resolution", "{}")),
    _TOP1,
    Column("best_top1", "best %", "top-1 of the best checkpoint", _best),
    Column("test_top1", "test %", "top-1 on the test split", _number("test_top1", "{:.2f}")),
    Column("top5", "top-5 %", "", _number("top5", "{:.2f}")),
)
MEASURES = (
    _TRIAL,
    Column(
        "balanced_accuracy", "balanced %", "mean recall", _number("balanced_accuracy", "{:.2f}")
    ),
    Column(
        "macro_precision", "precision %", "mean of classes", _number("macro_precision", "{:.2f}")
    ),
    Column("macro_recall", "recall %", "mean of classes", _number("macro_recall", "{:.2f}")),
    Column("macro_f1", "F1 %", "mean of classes", _number("macro_f1", "{:.2f}")),
    Column("ece", "ECE %", "calibration error", _number("ece", "{:.2f}")),
)
COSTS = (
    _TRIAL,
    Column("runs", "runs", "finished", lambda row: str(row["runs"])),
    Column("params", "params M", "trainable", _number("params", "{:.2f}", 1e-6)),
    Column("madds", "MAdds M", "of one image", _number("madds", "{:.1f}", 1e-6)),
    Column("latency_ms", "latency ms", "batch of one, measured", _number("latency_ms", "{:.2f}")),
    Column("images_per_second", "images/s", "training", _number("images_per_second", "{:,.0f}")),
    Column("seconds", "time", "of training, all seeds", _time),
)
OURS = (*RESULTS, *MEASURES[1:], *COSTS[1:])
# A page shows these in a separate table, after the trial and our top-1.
PUBLISHED = (
    Column("published_network", "network", "published", _source),
    Column("published_top1", "top-1 %", "published", _number("published_top1", "{:.1f}")),
    Column("effect", "change", "against the first trial", _number("effect", "{:+.1f}")),
    Column("published_effect", "change", "published", _number("published_effect", "{:+.1f}")),
    Column("difference", "difference", "ours - published", _number("difference", "{:+.1f}")),
    Column("published_madds_m", "MAdds M", "published", _number("published_madds_m", "{:.0f}")),
    Column("published_ms", "Pixel 1 ms", "published", _number("published_ms", "{:.1f}")),
)
AGAINST_PUBLISHED = (_TRIAL, _TOP1, *PUBLISHED)
# Of the classes of one run.
CLASSES = (
    Column("class", "class", "", lambda row: row["class"]),
    Column("images", "images", "held out", lambda row: f"{row['images']:,}"),
    Column("precision", "precision %", "", _number("precision", "{:.2f}", 100)),
    Column("recall", "recall %", "", _number("recall", "{:.2f}", 100)),
    Column("f1", "F1 %", "", _number("f1", "{:.2f}", 100)),
)

COLUMNS = (*OURS, *PUBLISHED)


def cell(row: dict, column: Column) -> Cell:
    """The cell of a row in a column."""
    return Cell(column.show(row), row[column.key])


def used_columns(columns: Iterable[Column], rows: Sequence[dict]) -> list[Column]:
    """The columns in which at least one row shows something."""
    return [column for column in columns if any(column.show(row) for row in rows)]


def write(tables: Sequence[TitledRows], form: str) -> str:
    """Writes the tables of sweeps.

    Args:
      tables: the title and the rows of each sweep.
      form: "md" or "latex" for what people read; "csv" or "json" for every field, unrounded.
    """
    return {"md": _markdown, "csv": _csv, "json": _json, "latex": _latex}[form](tables)


def plain(table: Sequence[dict[str, str]], form: str) -> str:
    """Writes one table of texts.

    Args:
      table: rows with the same keys, which are the headings; at least one.
      form: "md", "csv" or "latex".
    """
    headings, values = list(table[0]), [list(row.values()) for row in table]
    if form == "md":
        return _markdown_table(headings, values) + "\n"
    if form == "latex":
        return _latex_table(headings, values) + "\n"
    text = io.StringIO()
    lines = [[_csv_cell(cell) for cell in line] for line in (headings, *values)]
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _shown(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the columns that are used."""
    columns = used_columns(COLUMNS, rows)
    # Our columns and the published ones have the same labels.
    headings = [c.label if c in OURS else f"{c.label} ({c.about})" for c in columns]
    return headings, [[column.show(row) for column in columns] for row in rows]


# What would be HTML, a link, an image, code, or the end of a cell. An underscore inside of a word,
# which many names of trials have, is none of these.
_MARKDOWN_ESCAPES = str.maketrans({c: f"\\{c}" for c in "\\`*[]|"} | {"<": "&lt;"})
_ENTITY = re.compile(r"&(?=#?\w+;)")
# What a spreadsheet computes from these is a number: our differences and intervals are such.
_HARMLESS = re.compile(r"[-+][\d.]+e[-+]?\d+|[-+][-+\d.,%() ]*(?: to [-+\d.,]*)?").fullmatch


def markdown(text: str) -> str:
    """Returns a text of one line that Markdown shows as it is."""
    return _ENTITY.sub("&amp;", printable(text)).translate(_MARKDOWN_ESCAPES)


def latex_comment(text: str) -> str:
    """Returns a comment of one line in LaTeX, whatever the text holds."""
    return f"% {printable(text)}"


def _csv_cell(value: Any) -> Any:
    """Returns a cell that spreadsheets do not take for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    is_formula = text.lstrip().startswith(("=", "+", "-", "@")) and not _HARMLESS(text)
    return f"'{text}" if is_formula else text


def _markdown(tables: Sequence[TitledRows]) -> str:
    parts = []
    for title, rows in tables:
        body = _markdown_table(*_shown(rows)) if rows else "No trials."
        part = f"## {markdown(title)}\n\n{body}"
        if missing := [f"{row['trial']}: {row['missing']}" for row in rows if row["missing"]]:
            part += "\n\nMissing:\n\n" + "\n".join(f"- {markdown(line)}" for line in missing)
        parts.append(part)
    return "\n\n".join(parts) + "\n"


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(markdown, cells)) + " |"

    return "\n".join([line(headings), "|-" * len(headings) + "|", *map(line, rows)])


def _csv(tables: Sequence[TitledRows]) -> str:
    text = io.StringIO()
    flat = [{"sweep": title, **row} for title, rows in tables for row in rows]
    writer = csv.DictWriter(text, list(flat[0]) if flat else ["sweep"], lineterminator="\n")
    writer.writeheader()
    for row in flat:
        row = {**row, "top1_values": " ".join(map(str, row["top1_values"]))}
        writer.writerow({key: _csv_cell(value) for key, value in row.items()})
    return text.getvalue()


def _json(tables: Sequence[TitledRows]) -> str:
    return json.dumps([{"sweep": title, "trials": rows} for title, rows in tables], indent=1)


_LATEX_ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"±": r"$\pm$"}
)


def _latex(tables: Sequence[TitledRows]) -> str:
    parts = [f"{latex_comment(title)}\n{_latex_table(*_shown(rows))}" for title, rows in tables]
    return "\n\n".join(parts) + "\n"


def _latex_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A tabular for \usepackage{booktabs}."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(printable(cell).translate(_LATEX_ESCAPES) for cell in cells) + r" \\"

    lines = [rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}", r"\toprule"]
    lines += [line(headings), r"\midrule", *map(line, rows), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines)
