"""The errors of predicted latencies: python -m benchmarks.cost_model --table=TABLE.json ...

--table: of `python -m mbv3_jax latency measure`: its held-out networks, predicted by its model and
by simpler ones.
--pixel1=FILE.json: the 28 networks whose latency on a Pixel 1 is published, measured here (an
  existing file is continued), and calibrations fitted to MobileNetV2 only, with MobileNetV3 held
  out.

--files keeps the models, so that only the timing needs a quiet machine; --only-files stops before.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from benchmarks import pixel1
from mbv3_jax.arch import cost
from mbv3_jax.latency import cost_model, results
from mbv3_jax.latency.cost_model import CostModel, calibrate, errors
from mbv3_jax.latency.measure import Effort
from mbv3_jax.latency.table import fill_table, open_table, read_table, write_whole

_EFFORT = Effort(warmup_seconds=0.02, seconds=0.4, runs=30, turn_seconds=0.03)


def of_table(path: Path) -> dict[str, cost_model.Errors]:
    """Errors on the held-out networks, by model."""
    table = read_table(path)
    model = cost_model.fit(table)
    held = [w for w in table.wholes if w.held_out]
    kept = [w for w in table.wholes if not w.held_out]
    ms = [w.ms for w in held]
    madds = calibrate([cost.madds(w.spec) for w in kept], [w.ms for w in kept])
    plain = CostModel(model.known, model.weights, None)
    bare = CostModel({}, model.weights, model.trees)
    print(f"{table.machine}, {table.versions}, {table.threads} thread(s)")
    print(
        f"{len(table.pieces)} pieces of {len(kept)} networks; of the pieces of a held-out network "
        f"the table has {np.mean([model.covered(w.spec) for w in held]):.0%}; "
        f"{model.whole.factor:.3f} * sum ** {model.whole.power:.3f}; "
        f"held out: {min(ms):.2f} to {max(ms):.2f} ms"
    )
    return {
        "table, work and trees, scaled": cost_model.judge(model, table),
        "the same, not scaled": errors([model.pieces_ms(w.spec) for w in held], ms),
        "without trees, not scaled": errors([plain(w.spec) for w in held], ms),
        "without the table, not scaled": errors([bare(w.spec) for w in held], ms),
        "power of MAdds": errors([madds(cost.madds(w.spec)) for w in held], ms),
    }


def of_pixel1(path: Path, folder: Path) -> dict[str, cost_model.Errors]:
    """Errors of calibrations fitted on V2, by what they are of and whose."""
    old, new = pixel1.v2(), pixel1.v3()
    table = open_table(path, "litert", 1)
    specs = [p.spec for p in (*old, *new)]
    fill_table(path, table, folder, [], fitted=specs, effort=_EFFORT)
    values = {
        "MAdds": lambda p: cost.madds(p.spec),
        "measured here": lambda p: table.whole(p.spec).ms,
    }
    found = {}
    paper = pixel1.v2(pixel1.V2_OF_THE_PAPER)
    for name, value in values.items():
        for whose, of, linear in (
            ("slim", old, True),
            ("slim", old, False),
            ("paper", paper, True),
        ):
            x = [value(p) for p in of]
            fitted = calibrate(x, [p.ms for p in of], linear=linear)
            label = f"{name}, {'factor' if linear else f'power {fitted.power:.2f}'}, {whose}'s V2"
            for which, some in (("fitted", of), ("V3, held out", new)):
                predicted = fitted([value(p) for p in some])
                found[f"{label}: {which}"] = errors(predicted, [p.ms for p in some])
            for p in new:
                print(f"{label}: {p.name}: {float(fitted(value(p))):.1f}, published {p.ms}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--pixel1", type=Path)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--only-files", action="store_true")
    flags = parser.parse_args()
    flags.files.mkdir(parents=True, exist_ok=True)
    if flags.only_files:
        for p in (*pixel1.v2(), *pixel1.v3()):
            write_whole(flags.files, p.spec, "litert")
        return
    found = of_table(flags.table) if flags.table else {}
    found |= of_pixel1(flags.pixel1, flags.files) if flags.pixel1 else {}
    results.console().print(results.errors_table(found))
    for name, e in found.items():
        print(name, dataclasses.asdict(e))


if __name__ == "__main__":
    main()
