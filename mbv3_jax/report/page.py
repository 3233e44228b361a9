"""A report as one HTML file that needs nothing else: no network, no other file."""

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
from mbv3_jax.report import charts
from mbv3_jax.report.collect import Run, Sweep, Trial
from mbv3_jax.report.pictures import confusion, read_predictions, shorten
from mbv3_jax.report.rows import rows, runtimes
from mbv3_jax.report.tables import OURS, PUBLISHED, Column, cell

_MATRIX = 30  # classes; of more, only the most frequent confusions are listed
_MISTAKES = 12  # images of a trial


def page(sweeps: Sequence[Sweep], latencies: Callable[[NetSpec], dict | None]) -> str:
    """The HTML of a report.

    Args:
      sweeps: see `collect.collect`.
      latencies: of a network, {"ms", "runtime"} or None; see `rows.Latencies`.
    """
    return render(
        "page.html.j2",
        title=", ".join(sweep.name or sweep.title for sweep in sweeps),
        sweeps=[_sweep(sweep, latencies) for sweep in sweeps],
    )


def render(template: str, *, title: str, **values) -> str:
    """The HTML of a template of this folder, one that extends shell.html.j2."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(title=title, made=made, **values)


def _sweep(sweep: Sweep, latencies) -> dict:
    table = rows(sweep, latencies)
    finished = sum(row["runs"] for row in table)
    complete = [row for row in table if row["runs"] and not row["missing"]]
    return {
        "title": sweep.title,
        "command": sweep.command,
        "folder": sweep.folder,
        "finished": finished,
        "complete": len(complete),
        "missing": [(row["trial"], row["missing"]) for row in table if row["missing"]],
        "best": max((r for r in table if r["top1"] is not None), key=_top1, default=None),
        "ours": sortable(table, OURS),
        "published": sortable(
            [row for row in table if row["published_source"]], (*OURS[:2], *PUBLISHED)
        ),
        "runtimes": runtimes(table),
        "curves": [
            svg
            for kind, metric in (("eval", "top1"), ("train", "loss"))
            if (svg := charts.curves(sweep.trials, kind=kind, metric=metric))
        ],
        "pareto": [
            svg
            for against in ("madds", "latency_ms")
            if (svg := charts.pareto(table, against=against))
        ],
        "costs": _costs(sweep.trials),
        "trials": [_trial(trial) for trial in sweep.trials],
    }


def sortable(lines: Sequence[dict], columns: Sequence[Column]) -> dict:
    """Headings and cells, for table.html.j2, of the columns in which there is something."""
    used = [column for column in columns if any(column.show(row) for row in lines)]
    return {"columns": used, "rows": [[cell(row, column) for column in used] for row in lines]}


def _top1(row: dict) -> float:
    return row["top1"]


def _costs(trials: Sequence[Trial]) -> list[dict]:
    """A chart for all trials whose layers cost the same."""
    networks: dict[tuple, list[Trial]] = {}
    for trial in trials:
        if trial.spec:
            networks.setdefault(tuple(cost.layers(trial.spec)), []).append(trial)
    return [
        {"names": ", ".join(t.name for t in same), "svg": charts.layer_costs(same[0].spec)}
        for same in networks.values()
    ]


def _trial(trial: Trial) -> dict:
    shown = next((r for r in trial.finished if (r.folder / "predictions.npz").is_file()), None)
    return {
        "name": trial.name,
        "sessions": [(run, session) for run in trial.runs for session in run.sessions],
        "folders": [str(run.folder) for run in trial.runs],
        "predictions": _predictions(shown) if shown else None,
    }


def _predictions(run: Run) -> dict:
    said, names = read_predictions(run.folder)
    counts = confusion(said["label"], said["prediction"], len(names))
    totals = np.maximum(counts.sum(axis=1), 1)
    wrong = counts - np.diag(np.diag(counts))
    frequent = np.argsort(wrong, axis=None, kind="stable")[::-1][:15]
    pairs = [divmod(int(i), len(names)) for i in frequent]
    images = zip(said["mistakes"][:_MISTAKES], said["thumbnails"], strict=False)
    return {
        "run": run.folder,
        "names": names,
        "matrix": [
            (names[i], [(int(n), f"{n / totals[i]:.2f}") for n in row])
            for i, row in enumerate(counts)
        ]
        if len(names) <= _MATRIX
        else None,
        "pairs": [(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]],
        "mistakes": [
            {
                "image": _embedded(thumbnail),
                "file": shorten(Path(str(said["path"][i])).name),
                "label": names[said["label"][i]],
                "prediction": names[said["prediction"][i]],
                "probability": f"{said['probability'][i]:.0%}",
            }
            for i, thumbnail in images
        ],
    }


def _embedded(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
