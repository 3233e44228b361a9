"""The accuracy of int8: {h-swish, ReLU, swish, sigmoid gate} x {float, quantized, trained for
int8}.

python -m benchmarks.quantization --floats RUNS... --trained runs/sweeps/qat --out=FILE.json
  after the sweeps that configs/ablations/qat.py names. Every int8 figure is that of an exported
  TFLite file in LiteRT on the whole evaluation split, with that of the simulation beside it.
python -m benchmarks.quantization --observers RUN
  the ways to quantize after training, on the seeds of one run
python -m benchmarks.quantization --latency
  float and int8 files of these networks at 224 pixels, one thread
"""

import argparse
import functools
import json
import statistics
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from mbv3_jax.arch import build
from mbv3_jax.core.files import write_atomically
from mbv3_jax.export import check
from mbv3_jax.export.formats import Target
from mbv3_jax.export.tflite import to_int8_tflite
from mbv3_jax.latency.measure import Effort, describe, measure_spec
from mbv3_jax.quant.post_training import (
    Int8Network,
    Options,
    calibration_batches,
    quantize,
    trained_int8,
)
from mbv3_jax.run.folder import read_config
from mbv3_jax.run.model import load_model
from mbv3_jax.train.experiment import compile_evaluation
from mbv3_jax.train.plan import read_plan
from mbv3_jax.train.sources import open_data

WAYS = {
    "min_max": Options(observer="min_max"),
    "percentile 99.99": Options(observer="percentile"),
    "percentile 99.9": Options(observer="percentile", percentile=99.9),
    "mse": Options(),
    "mse, equalised": Options(equalize=True),
    "mse, biases corrected": Options(correct_bias=True),
    "mse, both": Options(equalize=True, correct_bias=True),
}
NETWORKS = {
    "h-swish": {},
    "ReLU": {"nonlinearity": "relu"},
    "swish": {"nonlinearity": "swish_for_h_swish"},
    "h-swish, sigmoid gate": {"se_gate": "sigmoid"},
}


@functools.cache
def held_out(data: str, resolution: int, run: Path):
    """Images uint8 and labels of the evaluation split, and the training data."""
    plan = read_plan(read_config(run), run)
    evaluation = compile_evaluation(plan, open_data(plan))
    data = evaluation.data
    loaded, problems = data.held_out.load(np.arange(len(data.held_out)))
    if problems:
        raise SystemExit(f"{run}: {len(problems)} images cannot be read")
    prepare = jax.jit(evaluation.eval_preprocess)
    images = check.in_batches(prepare, loaded["image"], 100)
    return (
        images,
        loaded["label"],
        calibration_batches(data.training, evaluation.eval_preprocess),
    )


def evaluate(network: Int8Network, images, labels) -> dict[str, float]:
    """Top-1 in percent of the exported file and of the simulation."""
    file = to_int8_tflite(network, batch=20)
    target = Target(file_format="tflite", precision="int8", batch=20)
    logits = {
        "file": check.run_file(file, target, images),
        "simulated": check.in_batches(network.simulate, images, 100),
    }
    return {name: 100 * float(np.mean(v.argmax(1) == labels)) for name, v in logits.items()}


def seeds(run: Path) -> list[Path]:
    """The run folders of a run of several seeds, or the run alone."""
    return sorted(run.glob("seed*")) or [run]


def top1(run: Path) -> float:
    """Of the last evaluation, in percent."""
    return 100 * json.loads((run / "summary.json").read_text())["eval"]["top1"]


def after_training(run: Path, options: Options = WAYS["mse"]) -> dict[str, float]:
    """`evaluate` of a float run, quantized after training."""
    config, model = read_config(run), load_model(run)
    images, labels, calibration = held_out(config.data.name, model.spec.resolution, run)
    return evaluate(quantize(model.spec, model.variables, calibration, options), images, labels)


def trained(run: Path) -> dict[str, float]:
    """`evaluate` of a run that was trained for int8."""
    config, model = read_config(run), load_model(run)
    images, labels, _ = held_out(config.data.name, model.spec.resolution, run)
    return evaluate(trained_int8(model.spec, model.variables), images, labels)


def the_table(floats: list[Path], sweep: Path, out: Path, console: Console) -> None:
    """Fills `out`, run by run, and prints it; what is there already is not evaluated again."""
    found = json.loads(out.read_text()) if out.is_file() else {}
    for run in floats:
        for folder in seeds(run):
            key = f"{run.name}/{folder.name}"
            seed = json.loads((folder / "config.json").read_text())["seed"]
            row = found.setdefault(key, {})
            if "after" not in row:
                row |= {"float": top1(folder), "after": after_training(folder)}
            longer = sweep / f"{run.name}-float-seed{seed}"
            if "longer" not in row and (longer / "summary.json").is_file():
                row |= {"longer": top1(longer), "longer_after": after_training(longer)}
            for_int8 = sweep / f"{run.name}-int8-seed{seed}"
            if "trained" not in row and (for_int8 / "summary.json").is_file():
                row["trained"] = trained(for_int8)
            write_atomically(out, json.dumps(found, indent=1))
            console.print(key, row)
    table = Table(title="top-1 %, int8 from the files", header_style="bold")
    for name in ("network", "float", "int8 after", "float, longer", "int8 after", "int8 trained"):
        table.add_column(name)
    columns = ("float", "after", "longer", "longer_after", "trained")
    for run in floats:
        rows = [row for key, row in found.items() if key.startswith(run.name + "/")]
        table.add_row(run.name, *(_mean([_file(r.get(c)) for r in rows]) for c in columns))
    console.print(table)
    both = [v for row in found.values() for v in row.values() if isinstance(v, dict)]
    apart = [abs(v["file"] - v["simulated"]) for v in both]
    console.print(f"files and simulations: {max(apart):.2f} points apart at most, of {len(apart)}")


def _file(value) -> float | None:
    return value["file"] if isinstance(value, dict) else value


def _mean(values: list) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.2f}{spread}"


def observers(run: Path, console: Console) -> None:
    """Ways of quantizing after training, side by side."""
    table = Table("way", "int8 top-1 %", title=f"{run.name}", header_style="bold")
    table.add_row("float", _mean([top1(folder) for folder in seeds(run)]))
    for name, options in WAYS.items():
        values = [after_training(folder, options)["file"] for folder in seeds(run)]
        table.add_row(name, _mean(values))
    console.print(table)


def latency(console: Console) -> None:
    """Float and int8 of V3-Small, in turns."""
    table = Table(title=f"V3-Small at 224 pixels, {describe('litert')}", header_style="bold")
    for name in ("network", "float ms", "int8 ms", "int8 / float"):
        table.add_column(name, justify="left" if name == "network" else "right")
    effort = Effort(warmup_seconds=0.2, seconds=0.5)
    for name, options in NETWORKS.items():
        spec = build("mobilenet_v3_small", **options)
        turns = [
            [measure_spec(spec, precision=p, effort=effort).ms for p in ("float32", "int8")]
            for _ in range(3)
        ]
        ms = [statistics.median(column) for column in zip(*turns, strict=True)]
        ratio = statistics.median(b / a for a, b in turns)
        table.add_row(name, f"{ms[0]:.3f}", f"{ms[1]:.3f}", f"{ratio:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--floats", nargs="+", type=Path, help="float runs")
    parser.add_argument("--trained", type=Path, help="the sweep of configs/ablations/qat.py")
    parser.add_argument("--out", type=Path, default=Path("quantization.json"))
    parser.add_argument("--observers", type=Path, help="a float run")
    parser.add_argument("--latency", action="store_true")
    flags, console = parser.parse_args(), Console(width=120)
    if flags.floats:
        the_table(flags.floats, flags.trained, flags.out, console)
    if flags.observers:
        observers(flags.observers, console)
    if flags.latency:
        latency(console)


if __name__ == "__main__":
    main()
