"""Latency tables: what the pieces of networks take on one machine, as JSON and as CSV."""

import csv
import dataclasses
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax

from mbv3_jax.arch.spec import NetSpec, spec_from_json, spec_to_json
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.export import tflite
from mbv3_jax.latency.measure import LABELS, Effort, machine, measure_files, versions_of
from mbv3_jax.latency.pieces import KINDS, Piece, function, pieces
from mbv3_jax.latency.subjects import write_random

_VERSION = 1
_FIELDS = dataclasses.fields(Piece)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A network that was measured whole. held_out: kept from the fit, for its error."""

    spec: NetSpec
    ms: float
    held_out: bool


@dataclasses.dataclass
class Table:
    """Latencies in milliseconds, of float32 and a batch of one.

    machine: of `machine.machine()`, or {"cpu": a phone's name}.
    pieces: median by piece.
    wholes: networks measured whole, by which a model is scaled and judged.
    """

    target: str
    threads: int
    machine: dict
    versions: dict[str, str]
    pieces: dict[Piece, float] = dataclasses.field(default_factory=dict)
    wholes: list[Whole] = dataclasses.field(default_factory=list)

    def check_same(self, path: Path, *, target, threads, machine, versions) -> None:
        """Raises UsageError where the table is of another machine or runtime than these."""
        for name, now in (
            ("target", target),
            ("threads", threads),
            ("machine", machine),
            ("versions", versions),
        ):
            if (then := getattr(self, name)) != now:
                raise UsageError(
                    f"{path}: is of {name} {then}, this is {now}; a table is of one machine: "
                    "give another --out"
                )

    def whole(self, spec: NetSpec) -> Whole | None:
        """The measurement of a network, whatever its name."""
        plain = spec.replace(name="")
        return next((w for w in self.wholes if w.spec.replace(name="") == plain), None)

    def write(self, path: Path) -> None:
        """Writes JSON, whole or not at all.

        Raises:
          RunError: it cannot be written.
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
            "pieces": [dataclasses.asdict(p) | {"ms": ms} for p, ms in self.pieces.items()],
            "networks": [
                {"ms": w.ms, "held_out": w.held_out, "spec": json.loads(spec_to_json(w.spec))}
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
      UsageError: there is none, or it is damaged or of another version.
    """
    try:
        tree = json.loads(path.read_text())
        if tree["version"] != _VERSION or tree["unit"] != "ms":
            raise UsageError(f"{path}: version {tree['version']}, unit {tree['unit']!r}: not ours")
        rows = [dict(row) for row in tree["pieces"]]
        return Table(
            **{name: tree[name] for name in ("target", "threads", "machine", "versions")},
            pieces={Piece(**row): ms for row in rows for ms in [_positive(row.pop("ms"))]},
            wholes=[
                Whole(spec_from_json(json.dumps(n["spec"])), _positive(n["ms"]), n["held_out"])
                for n in tree["networks"]
            ],
        )
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    except (KeyError, TypeError, ValueError) as e:
        raise UsageError(f"{path}: not a latency table ({type(e).__name__}: {e})") from e


def describe_setup(table: Table) -> str:
    """Returns the runtime, the number of threads and the machine of a table, for people."""
    threads = "one thread" if table.threads == 1 else f"{table.threads} threads"
    machine = table.machine.get("cpu", "unknown machine")
    return f"{LABELS.get(table.target, table.target)}, {threads}, {machine}"


def table_to_csv(pieces: dict[Piece, float | None]) -> str:
    """A line a piece: its fields, `file` (what `measuring.write_pieces` called it), `ms`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in _FIELDS] + ["file", "ms"])
    for piece, ms in pieces.items():
        values = dataclasses.astuple(piece)
        writer.writerow([*values, f"{piece.name}.tflite", "" if ms is None else ms])
    return out.getvalue()


def table_from_csv(text: str, name: str = "CSV") -> dict[Piece, float]:
    """Reads what `to_csv` wrote, once its column `ms` is filled in; empty ones are left out.

    Raises:
      UsageError: a column is missing, or a value is wrong; the message says in which line.
    """
    rows = csv.DictReader(io.StringIO(text))
    wanted = {field.name for field in _FIELDS} | {"ms"}
    if missing := sorted(wanted - set(rows.fieldnames or ())):
        raise UsageError(f"{name}: has no column {', '.join(missing)}")
    found = {}
    for row in rows:
        try:
            fields = {f.name: _parse(f.type, row[f.name]) for f in _FIELDS}
            if fields["kind"] not in KINDS:
                raise ValueError(f"kind {fields['kind']!r}, expected one of {KINDS}")
            if row["ms"].strip():
                found[Piece(**fields)] = _positive(float(row["ms"]))
        except (ValueError, AttributeError) as e:
            raise UsageError(f"{name}: line {rows.line_num}: {e}") from e
    return found


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


# Fills a latency table: a few pieces at a time, each step saved.

TARGETS = ("litert", "xla")
EFFORT = Effort(warmup_seconds=0.01, seconds=0.06, runs=15, turn_seconds=0.01)
# In one process, in turns.
_TOGETHER = 24


def unique(specs: Iterable[NetSpec]) -> list[Piece]:
    """The different pieces of these networks."""
    return list(dict.fromkeys(piece for spec in specs for piece in pieces(spec)))


def write_piece(folder: Path, piece: Piece, target: str) -> Path:
    """The piece's file for `measure_files`, unless it is there."""
    suffix = "tflite" if target == "litert" else "stablehlo"
    path = folder / f"{piece.name}.{suffix}"
    if not path.is_file():
        shape = jax.ShapeDtypeStruct((1, piece.size, piece.size, piece.inputs), "float32")
        run = function(piece, target)
        if target == "litert":
            file = tflite.to_tflite(run, shape)
        else:
            file = bytes(jax.export.export(jax.jit(run))(shape).serialize())
        _write(path, file)
    return path


def write_whole(folder: Path, spec: NetSpec, target: str) -> Path:
    """The file of a network with random weights, unless it is there."""
    plain = spec.replace(name="")
    name = f"network-{hashlib.sha256(spec_to_json(plain).encode()).hexdigest()[:16]}"
    found = list(folder.glob(f"{name}.*"))
    return found[0] if found else write_random(folder, plain, target, "float32", name)


def _write(path: Path, file: bytes) -> None:
    """Whole or not at all: an interrupted command finds no half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(file)
    temporary.replace(path)


def open_table(path: Path, target: str, threads: int) -> Table:
    """The table of a file, or a new one for this machine.

    Raises:
      UsageError: the file is of another machine, runtime or number of threads, or no table.
    """
    here = {
        "target": target,
        "threads": threads,
        "machine": machine(),
        "versions": versions_of(target),
    }
    if not path.is_file():
        return Table(**here)
    table = read_table(path)
    table.check_same(path, **here)
    return table


def fill_table(
    path: Path,
    table: Table,
    folder: Path,
    wanted: Sequence[Piece],
    *,
    fitted: Sequence[NetSpec] = (),
    held_out: Sequence[NetSpec] = (),
    effort: Effort = EFFORT,
    note: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Measures what the table does not have yet, and saves it after every few models.

    Args:
      path: of the table.
      table: of `open_table`; it grows.
      folder: of the files of the models; those that are there are taken.
      wanted: the pieces.
      fitted: networks to measure whole, for the fit.
      held_out: and those by which it is judged.
      effort: how long, for each.
      note: called with how many of how many are done.

    Raises:
      RunError: a model cannot be run, or the table cannot be written; what was saved stays.
    """
    jobs: list = [piece for piece in wanted if piece not in table.pieces]
    for specs, kept in ((fitted, False), (held_out, True)):
        jobs += [(spec, kept) for spec in specs if table.whole(spec) is None]
    # A machine drifts: in any order of kinds one kind would be measured on a slower machine.
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
        for job, timing in zip(some, timings, strict=True):
            if isinstance(job, Piece):
                table.pieces[job] = timing.ms
            else:
                table.wholes.append(Whole(job[0], timing.ms, job[1]))
        table.write(path)
        note(start + len(some), len(jobs))
