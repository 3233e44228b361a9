"""The page of `benchmarks.search` and `benchmarks.toy_search`: tables and plots of what was run.

python -m benchmarks.search_page --rows=search.jsonl --page=benchmarks/SEARCH.md
  benchmarks/search.jsonl has the rows of the page in the repository; the rows and the table of
  `benchmarks.toy_search` are those that stand beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import search, toy_search, toy_supernet, toy_truth
from benchmarks.toy_table import ToyTable
from mbv3_jax.search.evaluators import half_width


class Results:
    """Rows of many seeds, by setting, method and budget; figures are in points."""

    def __init__(self, rows: Sequence[dict]):
        done = {(row["seed"], row["setting"]) for row in rows}
        seeds = {seed for seed, _ in done}
        # Only those of which every setting was run.
        self.seeds = [
            s for s in sorted(seeds) if all((s, setting) in done for setting in search.SETTINGS)
        ]
        self._rows = {(r["setting"], r["method"], r["budget"], r["seed"]): r for r in rows}

    def values(self, setting: str, method: str, budget: int, key: str) -> np.ndarray:
        rows = [self._rows[setting, method, budget, seed] for seed in self.seeds]
        return 100 * np.array([row[key] for row in rows])

    def against(self, setting: str, method: str, budget: int, other: str, key: str) -> np.ndarray:
        """How much more a method has than another, seed by seed."""
        ours = self.values(setting, method, budget, key)
        return ours - self.values(setting, other, budget, key)

    def fronts(self, method: str, budget: int) -> list[list[list[float]]]:
        return [self._rows[search.TWO_COSTS, method, budget, seed]["front"] for seed in self.seeds]


def interval(values) -> str:
    """A mean and half of its 95% interval (Student's t)."""
    return f"{np.mean(values):.2f} ± {half_width(values):.2f}"


PAGE = """# Comparison of searchers

    mbv3 search table accel_nasbench --out=accel_nasbench.json
    export OPENBLAS_NUM_THREADS=1
    python -m benchmarks.search --table=accel_nasbench.json --out=search.jsonl
    python -m benchmarks.search_page --rows=search.jsonl --page=benchmarks/SEARCH.md

On the table of Accel-NASBench: ImageNet top-1 after a short recipe, and times on devices. It
has 5,138 results of 5,125 networks, of a space of 10^11. A search is told the accuracy of any
network of the space by a predictor that is fitted to one half of the table, with the noise of
one training ({noise} points; `benchmarks/search.py` says where it is from). Nothing that it was
told judges what it found:

- *regret* is by the same predictor without noise, the mean of all seeds there could be: how many
  points the best network of the space has more, as far as any search has found it.
- *by the other half* is by a predictor of the networks that the first has not seen.

{seeds} seeds, each with halves, noise and a search of its own; means with 95% intervals (Student's
t), differences in pairs of a seed. All seeds halve one table, so that the intervals are of searches
and halves, not of tables. The world is a predictor's: smoother than real trainings, and of the kind
that the proxy is.

*With proxy* trains in rounds (`mbv3_jax.search.rounds`): a quarter of the networks are random, and
the searcher proposes the others on a predictor of what was trained before (1,024 evaluations,
refined by 1,024 of a local search; `random` too). The choice is the best trained network by the
predictor; the front is of all networks that the searcher visits in the end. Without, every network
that a searcher asks for is trained, and the best training is the choice.

## Without a constraint

Regret in points of top-1:

{regret}

Points above random search, by the other half:

{over_random}

![regret against trainings](search_regret.png)

## At a target cost

The reward is accuracy {exponent} |cost / target - 1|; targets are {part} of the space's median. Of
two costs the mean of the relative ones counts. Regret in points of reward at {last} trainings:

{at_targets}

Points of reward above the best of as many random networks within {near}% of the target, by the
other half, at {last} trainings:

{over_cost}

## The front of accuracy and cost

The area that the front of a search dominates ({two}), by the other half: in points above {worst}%
top-1, times relative cost below {most}.

{areas}

![fronts](search_fronts.png)
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = (head, ["-"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def document(rows: Sequence[dict]) -> str:
    """The page, from what was run."""
    results = Results(rows)
    free, *targets = search.SETTINGS
    budgets = search.BUDGETS[free]
    trainings = [f"{b} trainings" for b in budgets]
    regret = [
        [name, *(interval(results.values(free, name, b, "regret")) for b in budgets)]
        for name in search.ALL
    ]
    regret.append(
        [search.MADDS + ", no training", interval(results.values(free, search.MADDS, 0, "regret"))]
        + [""] * (len(budgets) - 1)
    )
    over_random = [
        [name, *(interval(results.against(free, name, b, "random", "half")) for b in budgets)]
        for name in search.ALL
        if name != "random"
    ]
    last = max(search.BUDGETS[targets[0]])
    at_targets = [
        [name, *(interval(results.values(t, name, last, "regret")) for t in targets)]
        for name in [*search.ALL, search.AT_COST]
    ] + [
        [f"{name}, no training", *(interval(results.values(t, name, 0, "regret")) for t in targets)]
        for name in (search.NEAREST, search.MADDS)
    ]
    over_cost = [
        [name, *(interval(results.against(t, name, last, search.AT_COST, "half")) for t in targets)]
        for name in search.ALL
    ]
    areas = [
        [name]
        + [
            interval(results.values(search.TWO_COSTS, name, b, "hypervolume"))
            for b in search.BUDGETS[search.TWO_COSTS]
        ]
        + [interval(results.against(search.TWO_COSTS, name, last, "NSGA-II", "hypervolume"))]
        for name in search.ALL
    ]
    return PAGE.format(
        noise=f"{100 * search.NOISE:.2f}",
        seeds=len(results.seeds),
        exponent=search.EXPONENT,
        part=search.PART,
        near=f"{100 * search.NEAR:.0f}",
        last=last,
        two=search.TWO_COSTS,
        worst=f"{100 * search.WORST:.0f}",
        most=f"{search.MOST:g}",
        regret=_table(["", *trainings], regret),
        over_random=_table(["", *trainings], over_random),
        at_targets=_table(["", *targets], at_targets),
        over_cost=_table(["", *targets], over_cost),
        areas=_table(
            [
                "",
                *(f"{b} trainings" for b in search.BUDGETS[search.TWO_COSTS]),
                f"above NSGA-II at {last}",
            ],
            areas,
        ),
    )


TOYS = """
## On networks that were all trained

    python -m benchmarks.toy_truth && python -m benchmarks.toy_supernet
    python -m benchmarks.toy_search

Here nothing is predicted: a space of 128 networks for the embedded letters at 32 pixels, trained
one by one. {described}

A search is told the validation accuracy of one training of a network, which its seed draws among
{trainings}; the mean test accuracy of the others judges it. The reward is accuracy {exponent}
|MAdds / target - 1|, and {near} networks cost within {part}% of the three targets. {seeds} seeds,
{some} of the supernets; means with 95% intervals (Student's t), which are of searches, and not of
tables. Regret is in points against the network that the judge holds for the best, which is in part
noise of its own: no search can be expected to have none.

{regret}

Points of reward above the best of as many random networks near the target cost, mean of the three
targets, in pairs of a seed; a supernet counts as {shared} trainings, all of it for each target, and
is compared with the next larger number:

{over}

Spearman's correlation with the truth, mean over the seeds (from the lowest to the highest):

{correlations}
"""


def toy_part(rows: Sequence[dict], table: ToyTable) -> str:
    """The part of the page about `benchmarks.toy_search`, from what was run."""
    found = {(r["method"], r["budget"], r["target"], r["seed"]): 100 * r["regret"] for r in rows}
    seeds = sorted({r["seed"] for r in rows})
    shared = sorted({r["seed"] for r in rows if r["method"] in toy_search.SUPERNETS})
    supernets = {name: (budget, shared) for name, (_, budget) in toy_search.SUPERNETS.items()}

    def regrets(method: str, budget: int, target: str, some: Sequence[int]) -> np.ndarray:
        return np.array([found[method, budget, target, seed] for seed in some])

    def mean(method: str, budget: int, some: Sequence[int]) -> np.ndarray:
        return np.mean([regrets(method, budget, t, some) for t in toy_truth.TARGETS], axis=0)

    ways = [(n, b, seeds) for n in toy_search.METHODS for b in toy_search.BUDGETS]
    ways += [(name, *budget_and_seeds) for name, budget_and_seeds in supernets.items()]
    ways += [(name, 0, seeds) for name in toy_search.UNTRAINED]
    regret = [
        [
            name,
            str(budget),
            *(interval(regrets(name, budget, t, some)) for t in toy_truth.TARGETS),
            interval(mean(name, budget, some)),
        ]
        for name, budget, some in ways
    ]
    over = []
    for name, budget, some in ways:
        if budget and name != toy_search.AT_COST:
            equal = min(b for b in toy_search.BUDGETS if b >= budget)
            more = mean(toy_search.AT_COST, equal, some) - mean(name, budget, some)
            over.append([name, str(budget), interval(more)])
    problem = toy_search.make_problem()
    tasks = [toy_search.Task(table, problem, seed) for seed in seeds]
    correlations = [
        [name, f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"]
        for name, values in toy_search.correlations(tasks).items()
    ]
    near = [str(len(tasks[0].near(t))) for t in toy_truth.TARGETS]
    return TOYS.format(
        described=table.describe(),
        trainings=table.test.shape[1],
        exponent=toy_supernet.EXPONENT,
        near=" / ".join(near),
        part=f"{100 * toy_search.NEAR:.0f}",
        seeds=len(seeds),
        some=len(shared),
        shared=toy_supernet.TRAININGS,
        regret=_table(["", "trainings", *toy_truth.TARGETS, "mean"], regret),
        over=_table(["", "trainings", "above"], over),
        correlations=_table(["", "Spearman"], correlations),
    )


_DRAWN = ("policy gradient, with proxy", "evolution, with proxy", "local search, with proxy",
          "NSGA-II, with proxy", "policy gradient", "evolution", "NSGA-II", "random")  # fmt: skip


def draw(rows: Sequence[dict], folder: Path) -> None:
    """Writes search_regret.png and search_fronts.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    results, (free, *_) = Results(rows), search.SETTINGS
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for i, name in enumerate(_DRAWN):
        line = "-" if name.endswith(search.WITH_PROXY) else "--"
        values = [results.values(free, name, b, "regret") for b in search.BUDGETS[free]]
        means, halves = (np.array([f(v) for v in values]) for f in (np.mean, half_width))
        axes.plot(search.BUDGETS[free], means, line, color=f"C{i}", label=name)
        axes.fill_between(
            search.BUDGETS[free], means - halves, means + halves, color=f"C{i}", alpha=0.15
        )
    axes.set(xscale="log", xlabel="trainings", ylabel="regret (points of top-1)", ylim=(0, None))
    axes.set_xticks(search.BUDGETS[free], [str(b) for b in search.BUDGETS[free]], minor=False)
    axes.minorticks_off()
    axes.legend(fontsize="small")
    figure.savefig(folder / "search_regret.png", dpi=100)
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    last = max(search.BUDGETS[search.TWO_COSTS])
    grid = np.linspace(0.4, 1.6, 60)
    for i, name in enumerate(_DRAWN):
        line = "-" if name.endswith(search.WITH_PROXY) else "--"
        best = [
            [max((a for c, a in zip(*one, strict=True) if c <= x), default=np.nan) for x in grid]
            for one in results.fronts(name, last)
        ]
        known = np.isfinite(best).mean(0) >= 0.5  # in at least half of the searches
        means = 100 * np.nanmean(np.array(best)[:, known], axis=0)
        axes.plot(grid[known], means, line, color=f"C{i}", label=name)
    axes.set(xlabel="cost / target", ylabel="top-1 by the other half (%)")
    axes.set_title(
        f"best network up to a cost, {last} trainings, mean of {len(results.seeds)} seeds"
    )
    axes.legend(fontsize="small")
    figure.savefig(folder / "search_fronts.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    flags = parser.parse_args()
    rows = search.read(flags.rows)
    flags.page.write_text(document(rows) + toy_part(toy_search.read(), ToyTable()))
    draw(rows, flags.page.parent)


if __name__ == "__main__":
    main()
