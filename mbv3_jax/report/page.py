"""The page of a report: one HTML file that needs no network and no other file."""

import base64
import io
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import counted
from mbv3_jax.core.json_values import read_json
from mbv3_jax.report import charts
from mbv3_jax.report.collect import Run, Sweep, Trial, by_data
from mbv3_jax.report.pictures import confusion, read_predictions, shorten
from mbv3_jax.report.rows import rows, runtimes
from mbv3_jax.report.tables import (
    AGAINST_PUBLISHED,
    CLASSES,
    COSTS,
    MEASURES,
    RESULTS,
    Column,
    cell,
    used_columns,
)

_MOST_CLASSES = 30  # above it, there is no confusion matrix, only the most frequent confusions
_MISTAKES = 12  # images of each trial
_CONFUSIONS = 15  # listed for each trial


def sweep_page(sweeps: Sequence[Sweep], latencies: Callable[[NetSpec], dict | None]) -> str:
    """The HTML of a report about sweeps and runs.

    Args:
      sweeps: see `collect.collect`.
      latencies: network -> {"ms", "runtime"}, {"error"} or None, see `rows.Latencies`.
    """
    return render(
        "page.html.j2",
        title=title_of([(sweep.name or sweep.title, sweep.title) for sweep in sweeps]),
        sweeps=[_sweep(sweep, latencies) for sweep in sweeps],
    )


def title_of(sections: Sequence[tuple[str, str]]) -> str:
    """The title of a page.

    Args:
      sections: the short name and the heading of each section.

    Returns:
      The heading of the only section, which then needs no second one; else the names of all.
    """
    if len(sections) == 1:
        return sections[0][1]
    return ", ".join(name for name, _ in sections)


def render(template: str, *, title: str, **values) -> str:
    """The HTML of a template in this folder that extends shell.html.j2."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(title=title, made=made, **values)


def _sweep(sweep: Sweep, latencies: Callable[[NetSpec], dict | None]) -> dict:
    """The values of one sweep for page.html.j2."""
    table = rows(sweep, latencies)
    finished = sum(row["runs"] for row in table)
    complete = [row for row in table if row["runs"] and not row["missing"]]
    of_trial = dict(zip(map(id, sweep.trials), table, strict=True))
    groups = [
        _group(trials, [of_trial[id(trial)] for trial in trials])
        for trials in by_data(sweep.trials)
    ]
    return {
        "title": sweep.title,
        "command": sweep.command,
        "folder": sweep.folder,
        "finished": finished,
        "complete": len(complete),
        "missing": [(row["trial"], row["missing"]) for row in table if row["missing"]],
        "best": [group["best"] for group in groups if group["best"]],
        "tables": [
            (name, sortable(table, columns))
            for name, columns in (("trials", RESULTS), ("measures", MEASURES), ("costs", COSTS))
            if any(used_columns(columns[1:], table))
        ],
        "published": sortable([r for r in table if r["published_source"]], AGAINST_PUBLISHED),
        "runtimes": runtimes(table),
        "groups": groups,
        "costs": _costs(sweep.trials),
        "trials": [_trial(trial) for trial in sweep.trials],
    }


def _group(trials: Sequence[Trial], table: Sequence[dict]) -> dict:
    """The tables and charts of trials of the same data."""
    return {
        "data": trials[0].data,
        "best": max(
            (row for row in table if row["top1"] is not None),
            key=lambda row: row["top1"],
            default=None,
        ),
        "curves": [
            svg
            for svg in (
                charts.training_curves(trials, kind="eval", metric="top1"),
                charts.training_curves(trials, kind="train", metric="loss"),
            )
            if svg
        ],
        "pareto": [
            svg
            for against in ("madds", "latency_ms")
            if (svg := charts.accuracy_against_cost(table, against=against))
        ],
    }


def sortable(table: Sequence[dict], columns: Sequence[Column]) -> dict:
    """The headings and cells for table.html.j2, without columns that show nothing.

    Returns:
      {"columns", "is_text" (for each column), "rows" of cells}.
    """
    used = used_columns(columns, table)
    return {
        "columns": used,
        "is_text": [any(isinstance(row[column.key], str) for row in table) for column in used],
        "rows": [[cell(row, column) for column in used] for row in table],
    }


def _costs(trials: Sequence[Trial]) -> list[dict]:
    """One chart for all trials whose networks have the same layers."""
    charted: dict[tuple, dict] = {}
    for trial in trials:
        if not trial.spec:
            continue
        layers = tuple(cost.layers(trial.spec))
        if layers in charted:
            charted[layers]["names"] += f", {trial.name}"
        else:
            charted[layers] = {"names": trial.name, "svg": charts.layer_costs(trial.spec)}
    return list(charted.values())


def _trial(trial: Trial) -> dict:
    with_predictions = (r for r in trial.finished if (r.folder / "predictions.npz").is_file())
    run = next(with_predictions, None)
    return {
        "name": trial.name,
        "sessions": [(run, session) for run in trial.runs for session in run.sessions],
        "folders": [str(run.folder) for run in trial.runs],
        "predictions": _predictions(run) if run else None,
        "classes": next(filter(None, map(_classes, trial.finished)), None),
    }


def _classes(run: Run) -> dict | None:
    """The measures of each class: {"run", "table"}, see `sortable`; None in older folders."""
    if not run.summary or "per_class" not in run.summary["eval"]:
        return None
    by_class = run.summary["eval"]["per_class"]
    names = read_json(run.folder / "classes.json", list[str], error=ValueError)
    values: list[Sequence] = [
        by_class["images"],
        by_class["precision"],
        by_class["recall"],
        by_class["f1"],
    ]
    if {len(names)} != {len(column) for column in values}:
        raise ValueError(
            f"{run.folder / 'summary.json'} is damaged: eval.per_class has lists of other lengths "
            f"than the {counted(len(names), 'name')} of classes.json"
        )
    table = [
        dict(zip(("class", "images", "precision", "recall", "f1"), row, strict=True))
        for row in zip(names, *values, strict=True)
    ]
    return {"run": run.folder, "table": sortable(table, CLASSES)}


def _predictions(run: Run) -> dict:
    predictions, names = read_predictions(run.folder)
    counts = confusion(predictions["label"], predictions["prediction"], len(names))
    return {
        "run": run.folder,
        "names": names,
        "matrix": _matrix(counts, names) if len(names) <= _MOST_CLASSES else None,
        "pairs": _frequent_confusions(counts, names),
        "mistakes": [
            {
                "image": _data_url(thumbnail),
                "file": shorten(Path(str(predictions["path"][i])).name),
                "label": names[predictions["label"][i]],
                "prediction": names[predictions["prediction"][i]],
                "probability": f"{predictions['probability'][i]:.0%}",
            }
            for i, thumbnail in zip(
                predictions["mistakes"][:_MISTAKES], predictions["thumbnails"], strict=False
            )
        ],
    }


def _matrix(counts: np.ndarray, names: Sequence[str]) -> list[tuple[str, list[tuple[int, str]]]]:
    """For each class its name, and the count and the share of each prediction."""
    totals = np.maximum(counts.sum(axis=1), 1)
    return [
        (name, [(int(count), f"{count / total:.2f}") for count in row])
        for name, row, total in zip(names, counts, totals, strict=True)
    ]


def _frequent_confusions(counts: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, int]]:
    """(class, prediction, count), the most frequent first."""
    wrong = counts - np.diag(np.diag(counts))
    frequent = np.argsort(wrong, axis=None, kind="stable")[::-1][:_CONFUSIONS]
    pairs = [divmod(int(i), len(names)) for i in frequent]
    return [(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def _data_url(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
