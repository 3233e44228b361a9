"""What came out of a sweep: a row a run, and mean and spread over seeds."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from mbv3_jax.sweep.plan import Job
from mbv3_jax.sweep.progress import summaries
from mbv3_jax.train.run_folder import write_atomically

FILE = "results.csv"


def rows(jobs: Iterable[Job]) -> list[dict]:
    """A flat row for each run that has ended: trial, group, seed, overrides and final metrics."""
    found = []
    for job in jobs:
        for part, summary in summaries(job.folder).items():
            seed = int(part.removeprefix("seed")) if part else job.config.seed
            metrics = {f"eval.{name}": value for name, value in summary["eval"].items()}
            kept = ("steps", "epochs", "weights", "seconds", "images_per_second")
            found.append(
                {
                    "trial": "/".join(filter(None, (job.name, part))),
                    "group": job.group,
                    "seed": seed,
                    **{f"config.{field}": value for field, value in job.overrides.items()},
                    **metrics,
                    **{name: summary[name] for name in kept if name in summary},
                }
            )
    return found


def groups(found: Iterable[Mapping]) -> dict[str, dict]:
    """Mean and spread over the seeds of each group.

    Returns:
      group -> {"runs", "top1_mean", "top1_std", "loss_mean", "loss_std"}; the spread is the
      sample standard deviation (n - 1), None for a single run.
    """
    by_group: dict[str, list[Mapping]] = {}
    for row in found:
        by_group.setdefault(row["group"], []).append(row)
    result = {}
    for group, members in by_group.items():
        result[group] = {"runs": len(members)}
        for name in ("top1", "loss"):
            values = [row[f"eval.{name}"] for row in members]
            result[group][f"{name}_mean"] = statistics.fmean(values)
            spread = statistics.stdev(values) if len(values) > 1 else None
            result[group][f"{name}_std"] = spread
    return result


def write(folder: Path, found: list[dict]) -> None:
    """Writes results.csv: a line a run, a column for each field that any of them has."""
    columns = dict.fromkeys(name for row in found for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_atomically(folder / FILE, text.getvalue())
