"""Latency tables: the latencies of the pieces of networks on one machine, as JSON and as CSV.

`fill_table` measures a few models at a time and saves the table after each time, so that an
interrupted measurement resumes.
"""

import csv
import dataclasses
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax

from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.checks import choose
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import open_atomically, read_bytes, write_atomically
from mbv3_jax.core.json_values import as_type, parse_json
from mbv3_jax.export import tflite
from mbv3_jax.latency.measure import LABELS, Effort, machine, measure_files, versions_of
from mbv3_jax.latency.pieces import KINDS, Piece, function, pieces
from mbv3_jax.latency.subjects import write_random

# Runtimes that a table can be measured with.
TARGETS = ("litert", "xla")
# How long each piece is measured.
EFFORT = Effort(warmup_seconds=0.02, seconds=0.2, runs=30, turn_seconds=0.01)
# The version of the JSON format.
_VERSION = 1
_FIELDS = dataclasses.fields(Piece)
# How many models are measured in turns, in one process.
_TOGETHER = 24


@dataclasses.dataclass(frozen=True)
class Whole:
    """A network that was measured as a whole.

    Attributes:
      spec: The network.
      ms: Its latency in milliseconds.
      held_out: Whether it is kept out of the fit of a model, to find the model's error.
    """

    spec: NetSpec
    ms: float
    held_out: bool


@dataclasses.dataclass
class Table:
    """Latencies in milliseconds, for float32 and a batch of one.

    Attributes:
      target: The runtime, one of `TARGETS`.
      threads: The number of threads.
      machine: The result of `measure.machine()`, or {"cpu": the name of a phone}.
      versions: The versions of the runtime's packages.
      pieces: The median of each piece.
      wholes: Networks that were measured as a whole, to scale and to judge a model.
    """

    target: str
    threads: int
    machine: dict
    versions: dict[str, str]
    pieces: dict[Piece, float] = dataclasses.field(default_factory=dict)
    wholes: list[Whole] = dataclasses.field(default_factory=list)

    def whole(self, spec: NetSpec) -> Whole | None:
        """Returns the measurement of a network, whatever its name; None if it was not measured."""
        plain = spec.replace(name="")
        return next((w for w in self.wholes if w.spec.replace(name="") == plain), None)

    def write(self, path: Path) -> None:
        """Writes the table as JSON, atomically.

        Raises:
          RunError: It cannot be written.
        """
        tree = {
            "version": _VERSION,
            "unit": "ms",
            "precision": "float32",
            "batch": 1,
            "target": self.target,
            "threads": self.threads,
            "machine": self.machine,
            "versions": self.versions,
            "pieces": [_fields_of(p) | {"ms": ms} for p, ms in self.pieces.items()],
            "networks": [
                {"ms": w.ms, "held_out": w.held_out, "spec": dataclasses.asdict(w.spec)}
                for w in self.wholes
            ],
        }
        try:
            write_atomically(path, json.dumps(tree))
        except OSError as e:
            raise RunError(f"cannot write {path}: {e.strerror}") from e


def read_table(path: Path) -> Table:
    """Reads what `Table.write` wrote.

    Raises:
      UsageError: The file does not exist, is damaged, or was written by a newer version.
    """
    try:
        text = read_bytes(path)
        version = parse_json(text, _Version)["version"]
        if version > _VERSION:
            raise UsageError(
                f"{path} was written by a newer version of mbv3_jax, in format {version}; this one "
                f"reads formats up to {_VERSION}"
            )
        return _table(parse_json(text, _Stored))
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    except ValueError as e:
        raise UsageError(f"{path}: not a latency table: {e}") from e


class _Version(TypedDict):
    version: int


class _Stored(TypedDict):
    unit: str
    target: str
    threads: int
    machine: dict[str, Any]
    versions: dict[str, str]
    pieces: list[dict[str, Any]]
    networks: list[Whole]


def _table(tree: _Stored) -> Table:
    choose("unit", tree["unit"], ("ms",))
    table = Table(tree["target"], tree["threads"], tree["machine"], tree["versions"])
    for i, row in enumerate(tree["pieces"]):
        where, fields = f"pieces[{i}]", {k: v for k, v in row.items() if k != "ms"}
        ms = as_type(row.get("ms"), float, f"{where}.ms")
        piece = as_type(fields, Piece, where)
        choose(f"{where}.kind", piece.kind, KINDS)
        table.pieces[piece] = _positive(ms)
    for whole in tree["networks"]:
        _positive(whole.ms)
        table.wholes.append(whole)
    return table


def describe_setup(table: Table) -> str:
    """Returns the runtime, the number of threads and the machine of a table, to print."""
    threads = "one thread" if table.threads == 1 else f"{table.threads} threads"
    machine = table.machine.get("cpu", "unknown machine")
    return f"{LABELS.get(table.target, table.target)}, {threads}, {machine}"


def _fields_of(piece: Piece) -> dict[str, Any]:
    """The fields of a piece, as tables had them before an input could be other than square."""
    fields = dataclasses.asdict(piece)
    return fields if piece.width else {k: v for k, v in fields.items() if k != "width"}


def table_to_csv(pieces: Mapping[Piece, float | None]) -> str:
    """Returns a line for each piece: its fields, `file` (as `write_piece` names it), and `ms`.

    There is a column for the width only if an input is not square.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f.name for f in _FIELDS if f.name != "width" or any(p.width for p in pieces)]
    writer.writerow([*names, "file", "ms"])
    for piece, ms in pieces.items():
        values = [getattr(piece, name) for name in names]
        writer.writerow([*values, f"{piece.name}.tflite", "" if ms is None else ms])
    return out.getvalue()


def table_from_csv(text: str, name: str = "CSV") -> dict[Piece, float]:
    """Reads what `table_to_csv` wrote, with the column `ms` filled in.

    Args:
      text: The CSV. Lines without milliseconds are left out.
      name: The name of the file, for messages.

    Raises:
      UsageError: A column is missing, or a value is wrong; the message names the line.
    """
    rows = csv.DictReader(io.StringIO(text))
    columns = {field.name for field in _FIELDS if field.name != "width"} | {"ms"}
    if missing := sorted(columns - set(rows.fieldnames or ())):
        raise UsageError(f"{name}: has no column {', '.join(missing)}")
    pieces: dict[Piece, float] = {}
    for row in rows:
        try:
            fields = {f.name: _parse(f.type, row[f.name]) for f in _FIELDS if f.name in row}
            if fields["kind"] not in KINDS:
                raise ValueError(f"kind {fields['kind']!r}, expected one of {KINDS}")
            if row["ms"].strip():
                pieces[Piece(**fields)] = _positive(float(row["ms"]))
        except (ValueError, AttributeError) as e:
            raise UsageError(f"{name}: line {rows.line_num}: {e}") from e
    return pieces


def _parse(kind, text: str):
    if kind is bool:
        if text not in ("True", "False"):
            raise ValueError(f"got {text!r}, expected True or False")
        return text == "True"
    return kind(text)


def _positive(ms: float) -> float:
    if not 0 < ms < float("inf"):
        raise ValueError(f"ms: got {ms}, expected a positive number")
    return float(ms)


def unique(specs: Iterable[NetSpec]) -> list[Piece]:
    """Returns the different pieces of networks."""
    return list(dict.fromkeys(piece for spec in specs for piece in pieces(spec)))


def write_piece(folder: Path, piece: Piece, target: str) -> Path:
    """Returns the file of a piece for `measure_files`, which is written if it does not exist."""
    suffix = "tflite" if target == "litert" else "stablehlo"
    path = folder / f"{piece.name}.{suffix}"
    if not path.is_file():
        shape = jax.ShapeDtypeStruct((1, *piece.sizes, piece.inputs), "float32")
        run = function(piece, target)
        if target == "litert":
            file = tflite.to_tflite(run, shape)
        else:
            file = bytes(jax.export.export(jax.jit(run))(shape).serialize())
        with open_atomically(path) as out:
            out.write(file)
    return path


def write_whole(folder: Path, spec: NetSpec, target: str) -> Path:
    """Returns the file of a network with random weights, which is written if it does not exist."""
    plain = spec.replace(name="")
    name = f"network-{hashlib.sha256(spec_to_json(plain).encode()).hexdigest()[:16]}"
    existing = list(folder.glob(f"{name}.*"))
    return existing[0] if existing else write_random(folder, plain, target, "float32", name)


def open_table(path: Path, target: str, threads: int) -> Table:
    """Returns the table of a file, or a new one for this machine.

    Raises:
      UsageError: The file is for another machine, runtime or number of threads, or not a table.
    """
    new = Table(target, threads, machine(), versions_of(target))
    if not path.is_file():
        return new
    table = read_table(path)
    for name in ("target", "threads", "machine", "versions"):
        stored, here = getattr(table, name), getattr(new, name)
        if stored != here:
            raise UsageError(
                f"{path}: the table is for {name} {stored}, but this is {here}. A table is for one "
                "machine: give another --out"
            )
    return table


def fill_table(
    path: Path,
    table: Table,
    folder: Path,
    needed: Sequence[Piece],
    *,
    fitted: Sequence[NetSpec] = (),
    held_out: Sequence[NetSpec] = (),
    effort: Effort = EFFORT,
    note: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Measures what the table lacks, and saves it after every few models.

    Args:
      path: The file of the table.
      table: The result of `open_table`, which grows.
      folder: The folder for the files of the models. Existing files are used.
      needed: The pieces that the table needs.
      fitted: Networks to measure as a whole, for the fit of a model.
      held_out: Networks to measure as a whole, to find the model's error.
      effort: How long each model is measured.
      note: Called with the number of models that are done and the number of all.

    Raises:
      RunError: A model cannot be run, or the table cannot be written. What was saved stays.
    """
    jobs: list[Piece | tuple[NetSpec, bool]]
    jobs = [piece for piece in needed if piece not in table.pieces]
    for specs, is_held_out in ((fitted, False), (held_out, True)):
        jobs += [(spec, is_held_out) for spec in specs if table.whole(spec) is None]
    # A machine drifts. If the jobs were sorted, one kind would be measured on a slower machine.
    random.Random(0).shuffle(jobs)
    for start in range(0, len(jobs), _TOGETHER):
        some = jobs[start : start + _TOGETHER]
        files = [
            write_piece(folder, job, table.target)
            if isinstance(job, Piece)
            else write_whole(folder, job[0], table.target)
            for job in some
        ]
        models = [(table.target, file) for file in files]
        timings = measure_files(models, threads=table.threads, effort=effort)
        # The lower quartile, as the machine may be busy for a part of the time.
        for job, timing in zip(some, timings, strict=True):
            if isinstance(job, Piece):
                table.pieces[job] = timing.low
            else:
                table.wholes.append(Whole(job[0], timing.low, job[1]))
        table.write(path)
        note(start + len(some), len(jobs))
