"""The text of a report or a comparison, in the format that was asked for."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mbv3_jax.report import compare, search_report, search_result, tables
from mbv3_jax.report.collect import Trial, collect, is_search
from mbv3_jax.report.page import sweep_page
from mbv3_jax.report.rows import Latencies, Measure, rows

_FORMAT_OF_ENDING = {
    ".html": "html",
    ".md": "md",
    ".csv": "csv",
    ".json": "json",
    ".tex": "latex",
}
FORMATS = tuple(_FORMAT_OF_ENDING.values())


def format_of(out: Path) -> str:
    """The format that the ending of a file name stands for.

    Raises:
      ValueError: no format has this ending.
    """
    if out.suffix not in _FORMAT_OF_ENDING:
        endings = ", ".join(_FORMAT_OF_ENDING)
        raise ValueError(f"--out={out}: expected an ending of {endings}, or --format")
    return _FORMAT_OF_ENDING[out.suffix]


def report(
    folders: Sequence[Path],
    out: Path | None,
    *,
    form: str | None,
    measure: Measure | None,
    runtime: str = "",
) -> str:
    """The text of a report about runs and sweeps, or about searches.

    Args:
      folders: folders of runs and sweeps, or of searches.
      out: the file that the text is for; None for the terminal. Measured latencies are kept
        beside it, in OUT.latency.json.
      form: one of `FORMATS`; None takes the one that `out` ends with, or Markdown without `out`.
      measure, runtime: see `rows.Latencies`.

    Raises:
      ValueError: there are no folders, a folder holds no results, searches are mixed with runs,
        no format has the ending of `out`, or HTML was asked for without a file.
    """
    if not folders:
        raise ValueError("name run folders or sweep folders, or --compare A B")
    form = form or (format_of(out) if out else "md")
    if form == "html" and out is None:
        raise ValueError("a page needs --out=FILE.html")
    searches = [folder for folder in folders if is_search(folder)]
    if searches:
        return _search_report(folders, searches, form)
    sweeps = collect(folders)
    cache = out.with_name(out.name + ".latency.json") if out else None
    latencies = Latencies(measure, cache, runtime)
    if form == "html":
        return sweep_page(sweeps, latencies)
    return tables.write([(sweep.title, rows(sweep, latencies)) for sweep in sweeps], form)


def _search_report(folders: Sequence[Path], searches: Sequence[Path], form: str) -> str:
    if others := [str(folder) for folder in folders if folder not in searches]:
        raise ValueError(
            f"a report is about searches or about runs, not both: {', '.join(map(str, searches))} "
            f"cannot be reported together with {', '.join(others)}"
        )
    results = [search_result.read(folder) for folder in searches]
    if form == "html":
        return search_report.search_page(results)
    return search_report.write(results, form)


def comparison(a: Path, b: Path, form: str) -> str:
    """The text of a comparison of A with B.

    Args:
      a, b: folders of runs or sweeps.
      form: "md", "csv", "json" or "latex".

    Raises:
      ValueError: the format is HTML, or there is nothing to compare.
    """
    if form == "html":
        raise ValueError("--compare has no page: use --format=md, csv, json or latex, or none")
    matched = _matched_trials(a, b)
    if form == "json":
        return json.dumps([compare.as_record(*pair) for pair in matched], indent=1) + "\n"
    return tables.plain([row for pair in matched for row in compare.as_rows(*pair)], form)


def comparison_tables(a: Path, b: Path) -> list[Table]:
    """The same for a terminal: tables for a rich console."""
    return [table for pair in _matched_trials(a, b) for table in compare.as_tables(*pair)]


def _matched_trials(a: Path, b: Path) -> list[tuple[Trial, Trial]]:
    trials_a, trials_b = (
        [trial for sweep in collect([folder]) for trial in sweep.trials] for folder in (a, b)
    )
    return compare.match_trials(trials_a, trials_b)
