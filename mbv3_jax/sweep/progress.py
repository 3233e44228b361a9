"""How far a trial is, read from its run folder alone."""

import dataclasses
import json
from pathlib import Path

from ml_collections import ConfigDict

from mbv3_jax.train.durations import to_steps

_TAIL = 1 << 18  # bytes of metrics.jsonl: some epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """What is known; None: not yet.

    Attributes:
      step: of the newest training record.
      total_steps: of the whole run.
      top1: of the newest evaluation, 0 to 1.
      seconds_left: of training, at the speed of the newest record.
    """

    step: int | None = None
    total_steps: int | None = None
    top1: float | None = None
    seconds_left: float | None = None


class Reader:
    """Reads run folders, each file again only when it has changed."""

    def __init__(self):
        self._seen: dict[Path, tuple[tuple, Progress]] = {}

    def __call__(self, run: Path, config: ConfigDict) -> Progress:
        path = min(_runs(run)) / "metrics.jsonl"
        try:
            stat = path.stat()
        except OSError:
            return Progress()
        key = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._seen.get(path, (None,))[0] != key:
            self._seen[path] = (key, _progress(_tail(path), config))
        return self._seen[path][1]


def _tail(path: Path) -> list[dict]:
    """The newest whole records of metrics.jsonl."""
    with path.open("rb") as f:
        size = f.seek(0, 2)
        start = f.seek(max(0, size - _TAIL))
        lines = f.read().split(b"\n")
    records = []
    for line in lines[1 if start else 0 : -1]:  # the first may be cut, the last is being written
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _progress(records: list[dict], config: ConfigDict) -> Progress:
    last = {record["kind"]: record for record in records}
    top1 = last["eval"]["top1"] if "eval" in last else None
    if "train" not in last:
        return Progress(top1=top1)
    step, epoch = last["train"]["step"], last["train"].get("epoch")
    total = _total_steps(step, epoch, config)
    rate = last["train"].get("images_per_second")
    known = total is not None and rate
    left = (total - step) * config.batch_size / rate if known else None
    return Progress(step=step, total_steps=total, top1=top1, seconds_left=left)


def _total_steps(step: int, epoch: float | None, config: ConfigDict) -> int | None:
    """How many steps the run has; the size of its data set follows from step and epoch."""
    if epoch is None:
        return config.total_steps
    given = {unit: config[f"total_{unit}"] for unit in ("steps", "epochs", "examples")}
    examples = max(1, round(step * config.batch_size / epoch))
    return to_steps("total", **given, batch_size=config.batch_size, train_examples=examples)


def summaries(run: Path) -> dict[str, dict]:
    """The results of a trial that has ended, by seed folder; "" for an ordinary run.

    A run over `config.seeds` has a run folder for each seed inside its own; it has ended when
    all of them have.
    """
    read = {p.name if p != run else "": _summary(p) for p in _runs(run)}
    return {} if None in read.values() else read


def _runs(run: Path) -> list[Path]:
    """The run folders of a trial: that of each seed, or its own."""
    return [p for p in sorted(run.glob("seed*")) if (p / "config.json").is_file()] or [run]


def _summary(run: Path) -> dict | None:
    try:
        return json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):
        return None
