"""The text of a report: which folders it is about, and in which format it is written."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mbv3_jax.report import search, search_report, tables
from mbv3_jax.report.collect import collect
from mbv3_jax.report.compare import compare_lines, compare_records, compare_tables, pairs
from mbv3_jax.report.rows import Latencies, Measure, rows

_BY_ENDING = {".html": "html", ".md": "md", ".csv": "csv", ".json": "json", ".tex": "latex"}


def report(
    folders: Sequence[Path],
    out: Path | None,
    *,
    form: str | None,
    measure: Measure | None,
    runtime: str = "",
) -> str:
    """The text of a report.

    Args:
      folders: of runs and sweeps, or of searches.
      out: the file it will be written to; measured latencies are kept beside it, in
        OUT.latency.json.
      form: one of `formats.FORMATS`; None takes the one that `out` ends with.
      measure, runtime: see `rows.Latencies`.

    Raises:
      ValueError: no folders, a folder that holds nothing, searches beside runs, an ending that no
        format has, HTML for a terminal.
    """
    if not folders:
        raise ValueError("name run folders or sweep folders, or --compare A B")
    form = form or _form_of(out)
    if form == "html" and out is None:
        raise ValueError("a page needs --out=FILE.html")
    searches = [folder for folder in folders if search.is_search(folder)]
    if searches:
        return _searches(folders, searches, form)
    sweeps = collect(folders)
    kept = out.with_name(out.name + ".latency.json") if out else None
    latencies = Latencies(measure, kept, runtime)
    if form == "html":
        from mbv3_jax.report.page import page

        return page(sweeps, latencies)
    return tables.write([(sweep.title, rows(sweep, latencies)) for sweep in sweeps], form)


def _searches(folders: Sequence[Path], searches: Sequence[Path], form: str) -> str:
    if others := [str(folder) for folder in folders if folder not in searches]:
        raise ValueError(
            f"searches have a report of their own: {', '.join(map(str, searches))} cannot stand "
            f"in one with {', '.join(others)}; report the runs and sweeps by another command"
        )
    found = [search.read(folder) for folder in searches]
    if form == "html":
        from mbv3_jax.report.search_report import page

        return page(found)
    return search_report.write(found, form)


def _form_of(out: Path | None) -> str:
    if out is None:
        return "md"
    if out.suffix not in _BY_ENDING:
        raise ValueError(f"--out={out}: expected an ending of {', '.join(_BY_ENDING)}, or --format")
    return _BY_ENDING[out.suffix]


def compare(a: Path, b: Path, out: Path | None, *, form: str | None, console: Console) -> str:
    """Prints A beside B on the console, or returns it in a format.

    Args:
      a, b: folders of runs or sweeps.
      out: the file it will be written to, whose ending gives the format where `form` does not.
      form: "md", "csv", "json" or "latex"; None without `out` prints.
      console: printed on.

    Raises:
      ValueError: a page, or nothing to compare.
    """
    form = form or (_form_of(out) if out else None)
    if form == "html":
        raise ValueError("--compare is printed, or --format=md, csv, json or latex")
    sides = [[trial for sweep in collect([side]) for trial in sweep.trials] for side in (a, b)]
    matched = pairs(*sides)
    if form == "json":
        return json.dumps([compare_records(*pair) for pair in matched], indent=1) + "\n"
    if form:
        return tables.plain([line for pair in matched for line in compare_lines(*pair)], form)
    for pair in matched:
        for table in compare_tables(*pair):
            console.print(table)
    return ""


def write(out: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(out)
