"""Does search/small find better networks than no search? Every network here is trained.

python -m benchmarks.laptop_search --workdir=DIR --out=benchmarks/laptop_search.jsonl
  Runs the search with five seeds, for multiply-adds, about an hour each on one core. Run the same
  command again to resume. --seeds=0 runs only that seed, so that each core can run one. The
  finished trainings of seeds 2 and 3, without their weights, are in laptop_search_begun.tar.xz:
  unpack it in the folder of the repository, and leave out --workdir.
python -m benchmarks.laptop_search --describe --out=benchmarks/laptop_search.jsonl
  Prints the tables of docs/architecture_search.md.

For each target a seed compares, all at equal cost, and trained alike:

  found      what the search ends with, after NetAdapt
  random     of networks drawn at random within 5% of the target, as many for both targets together
             as the search has trained, the one with the best validation accuracy
  reference  MobileNetV3-Small, fitted to the images and to the cost of the target

The networks, chosen on validation images, are trained again, each from FINALS other initial values,
and compared on the test images, on which no choice was based.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.ending import exit_code
from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec, spec_from_json, spec_to_json
from mbv3_jax.cli import use_huge_pages
from mbv3_jax.core.files import write_atomically
from mbv3_jax.core.json_lines import append_line, parse_object, read_lines
from mbv3_jax.run.config import parse_config
from mbv3_jax.search import program
from mbv3_jax.search.candidates import Trainings
from mbv3_jax.search.evaluators import half_width
from mbv3_jax.search.objective import COUNTS, Costs
from mbv3_jax.search.space import Point, Space
from mbv3_jax.train.loop import train

FINALS = 2
NEAR = 0.05  # how far from the target a random network may cost
METHODS = ("found", "random", "reference")


class Comparison:
    """The search of a seed and what it is compared with, in a folder of its own."""

    def __init__(self, seed: int, folder: Path, console: Console):
        self.seed, self.folder, self.console = seed, folder, console
        overrides = [f"--config.seed={seed}", "--config.cost=madds"]
        self.config = parse_config("search/small", overrides)
        self.search = folder / "search"

    def run(self) -> dict:
        """Returns the row of the seed."""
        program.run(self.config, self.search, self.console)
        result = json.loads((self.search / "search.json").read_text())
        stages = program.Search(self.config, self.search, self.console)
        trained = len(result["candidates"])
        share = trained // len(result["found"])
        row: dict = {
            "seed": self.seed,
            "trained": trained,
            "agreement": result["agreement"],
            "targets": {},
        }
        for name, found in result["found"].items():
            point, best = self.random(stages.space, found["target"], share, name)
            specs = {
                "found": spec_from_json((self.search / f"{name}.json").read_text()),
                "random": stages.space.to_spec(point),
                "reference": spec_from_json(
                    (self.search / f"references/mobilenet_v3_small_for_{name}.json").read_text()
                ),
            }
            row["targets"][name] = {"target": found["target"], "random_validation": best} | {
                method: {"madds": cost.madds(spec), "top1": self.final(f"{name}_{method}", spec)}
                for method, spec in specs.items()
            }
        return row

    def random(self, space: Space, target: float, count: int, name: str) -> tuple[Point, float]:
        """Returns the best by validation of random networks at a cost, and its accuracy."""
        rng = np.random.default_rng((self.seed, *name.encode()))
        costs, near = Costs(space, COUNTS), dict[Point, None]()
        while len(near) < count:
            points = space.sample(rng, 100)
            madds = costs(points)["madds"]
            near |= dict.fromkeys(
                p for p, m in zip(points, madds, strict=True) if abs(m / target - 1) < NEAR
            )
        points = list(near)[:count]
        trainings = Trainings(space, self.config.brief, self.folder / "random", self.console)
        top1 = trainings(points, self.seed)
        return points[int(np.argmax(top1))], float(top1.max())

    def final(self, name: str, spec: NetSpec) -> list[float]:
        """Returns the test accuracies of FINALS trainings."""
        file = self.folder / "finals" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, spec_to_json(spec))
        found = []
        for repeat in range(1, FINALS + 1):
            config = self.config.final.copy_and_resolve_references()
            with config.unlocked():
                config.spec, config.seed = str(file), 1000 * repeat + self.seed
            summary = train(config.lock(), file.with_name(f"{name}_{repeat}"), self.console)
            found.append(summary["eval"]["top1"])
        return found


def describe(rows: list[dict]) -> str:
    """The tables, in Markdown."""
    lines = [
        "| target | found | best random | V3-Small, fitted | above random | above V3-Small |",
        "|-|-|-|-|-|-|",
    ]
    everything = {m: np.array([_means(row, m) for row in rows]) for m in METHODS}
    names = list(rows[0]["targets"])
    for label, columns in [(n, [i]) for i, n in enumerate(names)] + [
        ("both", list(range(len(names))))
    ]:
        top1 = {m: 100 * v[:, columns].mean(1) for m, v in everything.items()}
        cells = [_interval(top1[m]) for m in METHODS]
        cells += [_interval(top1["found"] - top1[m]) for m in METHODS[1:]]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _means(row: dict, method: str) -> list[float]:
    return [float(np.mean(target[method]["top1"])) for target in row["targets"].values()]


def _interval(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {half_width(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, default=Path("runs/laptop_search"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--describe", action="store_true")
    flags = parser.parse_args()
    if not flags.describe:
        done = {r["seed"] for r in read_lines(flags.out, parse_object)}
        for seed in flags.seeds:
            if seed not in done:
                folder = flags.workdir / str(seed)
                append_line(flags.out, Comparison(seed, folder, Console()).run())
    print(describe(list(read_lines(flags.out, parse_object))))


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(exit_code(main))
