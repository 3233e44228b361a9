"""Latency tables: what the pieces of networks take on one machine, as JSON and as CSV."""

import csv
import dataclasses
import io
import json
from pathlib import Path

from mbv3_jax.arch.spec import NetSpec, from_json, to_json
from mbv3_jax.latency.pieces import KINDS, Piece
from mbv3_jax.train.errors import RunError, UsageError
from mbv3_jax.train.run_folder import write_atomically

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
                {"ms": w.ms, "held_out": w.held_out, "spec": json.loads(to_json(w.spec))}
                for w in self.wholes
            ],
        }
        try:
            write_atomically(path, json.dumps(tree))
        except OSError as e:
            raise RunError(f"cannot write {path}: {e.strerror}") from e


def read(path: Path) -> Table:
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
                Whole(from_json(json.dumps(n["spec"])), _positive(n["ms"]), n["held_out"])
                for n in tree["networks"]
            ],
        )
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    except (KeyError, TypeError, ValueError) as e:
        raise UsageError(f"{path}: not a latency table ({type(e).__name__}: {e})") from e


def to_csv(pieces: dict[Piece, float | None]) -> str:
    """A line a piece: its fields, `file` (what `measuring.write_pieces` called it), `ms`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in _FIELDS] + ["file", "ms"])
    for piece, ms in pieces.items():
        values = dataclasses.astuple(piece)
        writer.writerow([*values, f"{piece.name}.tflite", "" if ms is None else ms])
    return out.getvalue()


def from_csv(text: str, name: str = "CSV") -> dict[Piece, float]:
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
