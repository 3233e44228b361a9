"""What runs and sweeps have left on disk: finished, under way, failed or missing."""

import dataclasses
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.json_lines import read_lines
from mbv3_jax.core.json_values import parse_json, read_json
from mbv3_jax.run.folder import SESSIONS, Summary, Times
from mbv3_jax.run.metrics import Record, read_metrics


class _Data(TypedDict):
    name: str
    eval_split: NotRequired[str | None]


class Config(TypedDict):
    """config.json, as far as a report asks for single fields."""

    seed: int
    seeds: NotRequired[list[int] | None]
    data: NotRequired[_Data]


class _Program(TypedDict):
    program: NotRequired[str]


class Session(TypedDict):
    """A line of sessions.jsonl, see `run.folder`."""

    time: str
    command: str
    host: str
    devices: str
    versions: dict[str, str]
    commit: str | None


class _TrialRecord(TypedDict):
    overrides: dict
    state: str
    error: NotRequired[str | None]


class _SweepRecord(TypedDict):
    """sweep.json, see `sweep.state`."""

    sweep: str
    command: NotRequired[str]
    trials: dict[str, _TrialRecord]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training with one seed.

    folder: the run folder.
    config: the contents of config.json.
    spec: the network; None if the run ended before spec.json was written.
    summary: the contents of summary.json; None while the run is unfinished.
    records: the records of metrics.jsonl, see `run.metrics.read_metrics`.
    sessions: one for each time the run was started.
    """

    folder: Path
    config: Config
    spec: NetSpec | None
    summary: Summary | None
    records: list[Record]
    sessions: list[Session]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def step(self) -> int:
        """The newest step in metrics.jsonl; 0 before the first record."""
        return max((record["step"] for record in self.records), default=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """Runs that differ only in their seed.

    name: the trial's name, without the seed.
    runs: the runs that have a folder, ordered by seed.
    missing: one line for each gap: a run that is unfinished, failed or has not started.
    seconds: training time of all runs; seeds that were trained together count once.
    images_per_second: training throughput, averaged over the trainings.
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

    @property
    def data(self) -> str | None:
        """What the runs were evaluated on: "folder:/photographs, validation"."""
        for run in (*self.finished, *self.runs):
            if data := run.config.get("data"):
                split = run.summary["split"] if run.summary else data.get("eval_split")
                return ", ".join(filter(None, (data["name"], split)))
        return None

    @property
    def held_out(self) -> int | None:
        """How many images that were; None while no run has finished."""
        evaluations = (run.summary["eval"] for run in self.finished if run.summary)
        return next((e["count"] + e.get("unreadable", 0) for e in evaluations), None)

    @property
    def digest(self) -> str | None:
        """The digest of the held-out images, for data at a path; None for other data."""
        for run in self.finished:
            data, digest = run.config.get("data"), run.summary and run.summary.get("held_out")
            kind, colon, _ = (data["name"] if data else "").partition(":")
            if digest and colon and digest.startswith(f"{kind}/"):
                return digest
        return None

    def values(self, metric: str) -> list[float]:
        """A metric of the final evaluations, ordered by seed.

        Args:
          metric: "loss", or a fraction such as "top1" or "macro_f1", which is returned in percent.
        """
        scale = 1 if metric == "loss" else 100
        values = [run.summary["eval"].get(metric) for run in self.runs if run.summary]
        return [value * scale for value in values if isinstance(value, int | float)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """The trials of a sweep, or run folders that were named one by one ("loose" runs).

    title: the heading that the page shows.
    name: the sweep file without folder and ending, which finds published figures; None for loose
      runs.
    folder: the sweep folder; None for loose runs.
    command: the command that started the sweep, if it is on record.
    trials: in the order of the sweep file.
    """

    title: str
    name: str | None
    folder: Path | None
    command: str | None
    trials: tuple[Trial, ...]


def collect(folders: Iterable[Path]) -> list[Sweep]:
    """Reads sweep folders and run folders, in the given order.

    Returns:
      One `Sweep` for each sweep folder, then one for all run folders together.

    Raises:
      ValueError: a folder is neither (a search folder, for example), or a file is damaged.
    """
    sweeps: list[Sweep] = []
    loose: list[Trial] = []
    for folder in folders:
        if (folder / "sweep.json").is_file():
            sweeps.append(_read_sweep(folder))
        elif is_search(folder):
            raise ValueError(
                f"{folder} is a search folder, which has a report of its own: report {folder}"
            )
        elif (folder / "config.json").is_file():
            loose.append(_read_trial(str(folder), [folder]))
        else:
            reason = (
                "it has neither sweep.json nor config.json"
                if folder.is_dir()
                else "there is no such folder"
            )
            raise ValueError(f"{folder} is neither a sweep folder nor a run folder: {reason}")
    if loose:
        title = loose[0].name if len(loose) == 1 else f"{len(loose)} runs"
        sweeps.append(Sweep(title=title, name=None, folder=None, command=None, trials=tuple(loose)))
    return sweeps


def same_data(a: Trial, b: Trial) -> bool:
    """Whether the results of two trials may be compared: they are of the same held-out images.

    For data at a path, the digest of the images decides, however the path was written; for other
    data, and for runs of older versions, the name, the split and the number of images. For a trial
    without a result, only the name or the path is compared.
    """
    if a.finished and b.finished:
        if a.digest and b.digest:
            return a.digest == b.digest
        return (a.data, a.held_out) == (b.data, b.held_out)
    names = [
        next((_absolute(r.config["data"]["name"]) for r in t.runs if "data" in r.config), None)
        for t in (a, b)
    ]
    return None in names or names[0] == names[1]


def _absolute(name: str) -> str:
    """The name of data, in which a path is absolute."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{os.path.abspath(os.path.expanduser(path))}" if colon else name  # noqa: PTH100, PTH111


def by_data(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The trials in groups of the same data, see `same_data`, in order of their first trials."""
    trials = list(trials)
    groups: list[list[int]] = []
    # Those with results make the groups, which the others then join.
    for i in sorted(range(len(trials)), key=lambda i: not trials[i].finished):
        same = (group for group in groups if same_data(trials[group[0]], trials[i]))
        if (group := next(same, None)) is None:
            groups.append([i])
        else:
            group.append(i)
    return [[trials[i] for i in group] for group in sorted(map(sorted, groups))]


def is_search(folder: Path) -> bool:
    """Whether the folder belongs to a search, ended or under way."""
    if (folder / "search.json").is_file():
        return True
    try:
        config = read_json(folder / "config.json", _Program, error=ValueError)
    except ValueError:
        return False
    return config.get("program") == "search"


def _read_sweep(folder: Path) -> Sweep:
    record = read_json(folder / "sweep.json", _SweepRecord, error=ValueError)
    members: dict[str, list[str]] = {}
    for name, entry in record["trials"].items():
        members.setdefault(_name_without_seed(name, entry["overrides"]), []).append(name)
    trials = []
    for trial_name, names in members.items():
        states = {folder / name: record["trials"][name] for name in names}
        trials.append(_read_trial(trial_name, list(states), states))
    sweep_file = record["sweep"]
    sweep_name = Path(sweep_file.partition(":")[0]).stem
    return Sweep(
        title=f"{sweep_name}: {sweep_file}",
        name=sweep_name,
        folder=folder,
        command=record.get("command"),
        trials=tuple(trials),
    )


def _name_without_seed(name: str, overrides: Mapping) -> str:
    """Drops the part of a name that a seed gave it, like `sweep.combinators.group_of`."""
    if "seed" not in overrides:
        return name
    parts = [part for part in name.split("-") if part != f"seed{overrides['seed']}"]
    return "-".join(parts) or "all"


def _read_trial(
    name: str, folders: Sequence[Path], states: Mapping[Path, _TrialRecord] | None = None
) -> Trial:
    """Reads a trial.

    Args:
      name: the trial's name.
      folders: the folders of its trainings.
      states: what sweep.json says about each folder: "state", and "error" if it failed.
    """
    runs: list[Run] = []
    missing: list[str] = []
    seconds: list[float] = []
    rates: list[float] = []
    for folder in folders:
        state: Mapping = (states or {}).get(folder, {})
        prefix = "" if len(folders) == 1 else f"{folder.name}: "
        if not (folder / "config.json").is_file():
            missing.append(f"{prefix}{state.get('state', 'not started')}{_error_of(state)}")
            continue
        # A training of several seeds at once has a run folder for each seed.
        seeds = read_json(folder / "config.json", Config, error=ValueError).get("seeds")
        run_folders = [folder / f"seed{seed}" for seed in seeds] if seeds else [folder]
        started = [_read_run(path) for path in run_folders if (path / "config.json").is_file()]
        runs += started
        if unfinished := [run for run in started if not run.summary]:
            steps = ", ".join(
                f"seed {run.seed} at step {run.step}" if seeds else f"at step {run.step}"
                for run in unfinished
            )
            word = "unfinished" if state.get("state") in (None, "finished") else state["state"]
            missing.append(f"{prefix}{word}, {steps}{_error_of(state)}")
        not_started = [path.name for path in run_folders if not (path / "config.json").is_file()]
        if not_started:
            missing.append(f"{prefix}not started: {', '.join(not_started)}{_error_of(state)}")
        if (folder / "summary.json").is_file():
            summary = read_json(folder / "summary.json", Times, error=ValueError)
            seconds.append(summary["seconds"])
            rates.append(summary["images_per_second"])
    return Trial(
        name=name,
        runs=tuple(sorted(runs, key=lambda run: run.seed)),
        missing=tuple(missing),
        seconds=sum(seconds) if seconds else None,
        images_per_second=statistics.fmean(rates) if rates else None,
    )


def _error_of(state: Mapping) -> str:
    return f" ({state['error'].strip()})" if state.get("error") else ""


def _read_run(folder: Path) -> Run:
    spec, summary = folder / "spec.json", folder / "summary.json"
    records = read_metrics(folder)
    if any("label_accuracy" in record for record in records):
        raise ValueError(
            f"{folder}: a report compares top-1, which networks of several labels per image do not "
            "have"
        )
    return Run(
        folder=folder,
        config=read_json(folder / "config.json", Config, error=ValueError),
        spec=read_json(spec, NetSpec, error=ValueError) if spec.is_file() else None,
        summary=read_json(summary, Summary, error=ValueError) if summary.is_file() else None,
        records=records,
        sessions=read_lines(folder / SESSIONS, lambda line: parse_json(line, Session)),
    )
