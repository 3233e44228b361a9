"""The table of a report for papers and programs: Markdown, CSV, JSON, LaTeX."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence

FORMATS = ("html", "md", "csv", "json", "latex")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column for people: its heading, its unit or meaning, and what a row shows there."""

    key: str
    label: str
    about: str
    show: Callable[[dict], str]


@dataclasses.dataclass(frozen=True)
class Cell:
    """text: as shown; sort: what it is sorted by, None last."""

    text: str
    sort: float | str | None


def _number(key: str, pattern: str, scale: float = 1) -> Callable[[dict], str]:
    return lambda row: "" if row[key] is None else pattern.format(row[key] * scale)


def _top1(row: dict) -> str:
    if row["top1"] is None:
        return ""
    spread = "" if row["top1_std"] is None else f" ± {row['top1_std']:.2f}"
    return f"{row['top1']:.2f}{spread}"


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


OURS = (
    Column("trial", "trial", "", lambda row: row["trial"]),
    Column("top1", "top-1 %", "mean ± deviation over the seeds", _top1),
    Column("runs", "runs", "finished", lambda row: str(row["runs"])),
    Column("params", "params M", "trainable", _number("params", "{:.2f}", 1e-6)),
    Column("madds", "MAdds M", "of one image", _number("madds", "{:.1f}", 1e-6)),
    Column("latency_ms", "latency ms", "batch of one, measured", _number("latency_ms", "{:.2f}")),
    Column("images_per_second", "images/s", "training", _number("images_per_second", "{:,.0f}")),
    Column("seconds", "time", "of training, all seeds", _time),
)
# A page has a table of its own for them, after the trial and our top-1.
PUBLISHED = (
    Column("published_network", "network", "published", _source),
    Column("published_top1", "top-1 %", "published", _number("published_top1", "{:.1f}")),
    Column("effect", "change", "against the first trial", _number("effect", "{:+.1f}")),
    Column("published_effect", "change", "published", _number("published_effect", "{:+.1f}")),
    Column("difference", "difference", "ours - published", _number("difference", "{:+.1f}")),
    Column("published_madds_m", "MAdds M", "published", _number("published_madds_m", "{:.0f}")),
    Column("published_ms", "Pixel 1 ms", "published", _number("published_ms", "{:.1f}")),
)


COLUMNS = (*OURS, *PUBLISHED)


def cell(row: dict, column: Column) -> Cell:
    """What `row` of `rows.rows` shows in a column."""
    return Cell(column.show(row), row[column.key])


def write(tables: Sequence[tuple[str, list[dict]]], form: str) -> str:
    """Writes tables.

    Args:
      tables: (title, rows of `rows.rows`) of each sweep.
      form: "md", "csv", "json" or "latex". The first and last show what people read; the others
        have every field, unrounded.
    """
    return {"md": _markdown, "csv": _csv, "json": _json, "latex": _latex}[form](tables)


def _used(table: list[dict]) -> list[Column]:
    return [column for column in COLUMNS if any(column.show(row) for row in table)]


def _heading(column: Column) -> str:
    """Published and our own columns have the same labels."""
    return column.label if column in OURS else f"{column.label} ({column.about})"


def plain(table: Sequence[dict[str, str]], form: str) -> str:
    """Writes rows of text with the same keys, at least one, as "md", "csv" or "latex"."""
    names, values = list(table[0]), [list(row.values()) for row in table]
    if form == "md":
        return "\n".join([_md_row(names), "|-" * len(names) + "|", *map(_md_row, values)]) + "\n"
    if form == "latex":
        return "\n".join([*_latex_table(names, values), ""])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *values])
    return text.getvalue()


def _markdown(tables) -> str:
    parts = []
    for title, table in tables:
        if not table:
            parts.append(f"## {title}\n\nNo trials.")
            continue
        columns = _used(table)
        lines = [f"## {title}", "", _md_row(map(_heading, columns)), "|-" * len(columns) + "|"]
        lines += [_md_row(c.show(row) for c in columns) for row in table]
        notes = [f"- {row['trial']}: {row['missing']}" for row in table if row["missing"]]
        parts.append("\n".join(lines + (["", "Missing:", "", *notes] if notes else [])))
    return "\n\n".join(parts) + "\n"


def _md_row(cells) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _csv(tables) -> str:
    text = io.StringIO()
    flat = [{"sweep": title, **row} for title, table in tables for row in table]
    writer = csv.DictWriter(text, list(flat[0]) if flat else ["sweep"], lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({**row, "top1_values": " ".join(map(str, row["top1_values"]))})
    return text.getvalue()


def _json(tables) -> str:
    return json.dumps([{"sweep": title, "trials": table} for title, table in tables], indent=1)


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"±": r"$\pm$"}
)


def _latex(tables) -> str:
    """A tabular of each, for \\usepackage{booktabs}."""
    parts = []
    for title, table in tables:
        columns = _used(table)
        cells = [[c.show(row) for c in columns] for row in table]
        parts.append("\n".join([f"% {title}", *_latex_table(map(_heading, columns), cells)]))
    return "\n\n".join(parts) + "\n"


def _latex_table(headings, cells) -> list[str]:
    headings = list(headings)
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}", r"\toprule"]
    lines += [_latex_row(headings), r"\midrule", *map(_latex_row, cells)]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _latex_row(cells) -> str:
    return " & ".join(text.translate(_LATEX) for text in cells) + r" \\"
