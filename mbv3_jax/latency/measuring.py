"""Fills a latency table: a few pieces at a time, each step saved."""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax

from mbv3_jax.arch.spec import NetSpec, to_json
from mbv3_jax.export import tflite
from mbv3_jax.latency import table as tables
from mbv3_jax.latency.machine import machine
from mbv3_jax.latency.measure import Effort, measure_files, versions_of
from mbv3_jax.latency.models import write_random
from mbv3_jax.latency.pieces import Piece, function, pieces
from mbv3_jax.latency.table import Table, Whole

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
    name = f"network-{hashlib.sha256(to_json(plain).encode()).hexdigest()[:16]}"
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
    table = tables.read(path)
    table.check_same(path, **here)
    return table


def fill(
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
