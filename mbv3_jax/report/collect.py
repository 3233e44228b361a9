"""What runs and sweeps have left on disk: finished, under way, failed or missing."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from mbv3_jax.arch.spec import NetSpec, spec_from_json
from mbv3_jax.report.search import is_search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training with one seed.

    folder: of the run.
    config: its config.json.
    spec: its network; None, if it ended before that was written.
    summary: its summary.json; None while it is unfinished.
    records: of metrics.jsonl, see `curves.read_records`.
    sessions: a dict for each time it was started, see `train.run_folder`.
    """

    folder: Path
    config: dict
    spec: NetSpec | None
    summary: dict | None
    records: list[dict]
    sessions: list[dict]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def step(self) -> int:
        """The newest step that is on record."""
        return max((record["step"] for record in self.records), default=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """Runs that differ in nothing but the seed.

    name: of the trial, without seeds.
    runs: those with a folder, by seed.
    missing: a line for each thing that is not there: runs that are unfinished, failed, not begun.
    seconds, images_per_second: of training, of all runs that are trained at once.
    """

    name: str
    runs: tuple[Run, ...]
    missing: tuple[str, ...] = ()
    seconds: float | None = None
    images_per_second: float | None = None

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.summary)

    @property
    def spec(self) -> NetSpec | None:
        return next((run.spec for run in self.runs if run.spec), None)

    def values(self, metric: str) -> list[float]:
        """A metric of the final evaluations by seed: "top1" and "top5" in percent, "loss"."""
        scale = 1 if metric == "loss" else 100
        found = [run.summary["eval"].get(metric) for run in self.finished]
        return [value * scale for value in found if value is not None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Trials that belong together: of a sweep, or run folders that were named one by one.

    title: for people.
    name: the sweep file without folder and ending, for published figures; None for loose runs.
    folder: of the sweep; None for loose runs.
    command: that started it, if it is on record.
    trials: in the order of the sweep file.
    """

    title: str
    name: str | None
    folder: Path | None
    command: str | None
    trials: tuple[Trial, ...]


def collect(folders: Iterable[Path]) -> list[Sweep]:
    """Reads sweep folders and run folders, in the order given; loose runs come together, last.

    Raises:
      ValueError: a folder that is neither, a search's among them, or a damaged file.
    """
    sweeps, loose = [], []
    for folder in folders:
        if (folder / "sweep.json").is_file():
            sweeps.append(_sweep(folder))
        elif is_search(folder):
            raise ValueError(f"{folder} is a search's folder: `report {folder}` is its report")
        elif (folder / "config.json").is_file():
            loose.append(_trial(str(folder), [folder]))
        else:
            reason = "it has neither sweep.json nor config.json" if folder.is_dir() else "no folder"
            raise ValueError(f"{folder} is no sweep's folder and no run folder: {reason}")
    if loose:
        title = loose[0].name if len(loose) == 1 else f"{len(loose)} runs"
        sweeps.append(Sweep(title=title, name=None, folder=None, command=None, trials=tuple(loose)))
    return sweeps


def _sweep(folder: Path) -> Sweep:
    stored = _json(folder / "sweep.json")
    groups: dict[str, list[str]] = {}
    for name, entry in stored["trials"].items():
        groups.setdefault(_group(name, entry["overrides"]), []).append(name)
    trials = []
    for group, names in groups.items():
        states = {folder / name: stored["trials"][name] for name in names}
        trials.append(_trial(group, list(states), states))
    file = stored["sweep"]
    name = Path(file.partition(":")[0]).stem
    return Sweep(
        title=f"{name}: {file}",
        name=name,
        folder=folder,
        command=stored.get("command"),
        trials=tuple(trials),
    )


def _group(name: str, overrides: dict) -> str:
    """The name without the part that a seed gave it, as `sweep.combinators.group_of`."""
    if "seed" not in overrides:
        return name
    parts = [part for part in name.split("-") if part != f"seed{overrides['seed']}"]
    return "-".join(parts) or "all"


def _trial(name: str, folders: Sequence[Path], states: dict[Path, dict] | None = None) -> Trial:
    runs, missing, seconds, rates = [], [], [], []
    for folder in folders:
        state = (states or {}).get(folder, {})
        if not (folder / "config.json").is_file():
            missing.append(f"{folder.name}: {state.get('state', 'not begun')}{_reason(state)}")
            continue
        config = _json(folder / "config.json")
        wanted = config.get("seeds")
        parts = [folder / f"seed{seed}" for seed in wanted] if wanted else [folder]
        begun = [_run(part) for part in parts if (part / "config.json").is_file()]
        runs += begun
        label = "" if len(folders) == 1 else f"{folder.name}: "
        if unfinished := [run for run in begun if not run.summary]:
            steps = ", ".join(f"{_which(run, wanted)}at step {run.step}" for run in unfinished)
            word = "unfinished" if state.get("state") in (None, "finished") else state["state"]
            missing.append(f"{label}{word}, {steps}{_reason(state)}")
        if absent := [part.name for part in parts if not (part / "config.json").is_file()]:
            missing.append(f"{label}not begun: {', '.join(absent)}{_reason(state)}")
        if (folder / "summary.json").is_file():
            summary = _json(folder / "summary.json")
            seconds.append(summary["seconds"])
            rates.append(summary["images_per_second"])
    return Trial(
        name=name,
        runs=tuple(sorted(runs, key=lambda run: run.seed)),
        missing=tuple(missing),
        seconds=sum(seconds) if seconds else None,
        images_per_second=statistics.fmean(rates) if rates else None,
    )


def _which(run: Run, several: Sequence[int] | None) -> str:
    return f"seed {run.seed} " if several else ""


def _reason(state: dict) -> str:
    return f" ({state['error'].strip()})" if state.get("error") else ""


def _run(folder: Path) -> Run:
    spec, summary = folder / "spec.json", folder / "summary.json"
    records = read_records(folder) if (folder / "metrics.jsonl").is_file() else []
    try:
        network = spec_from_json(spec.read_text()) if spec.is_file() else None
    except ValueError as e:
        raise ValueError(f"{spec} is damaged: {e}") from e
    return Run(
        folder=folder,
        config=_json(folder / "config.json"),
        spec=network,
        summary=_json(summary) if summary.is_file() else None,
        records=records,
        sessions=_lines(folder / "sessions.jsonl"),
    )


def _lines(path: Path) -> list[dict]:
    """Whole lines of a file that may not be there, or whose last line is being written."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()]


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as e:
        raise ValueError(f"{path} is damaged: {e}") from e


def read_records(run: Path) -> list[dict]:
    """The records of a run folder; a last line that is still being written is left out.

    Raises:
      ValueError: the folder has no metrics.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: it has no metrics.jsonl")
    complete = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]
