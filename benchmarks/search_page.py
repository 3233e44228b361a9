"""Writes the page and the plots from the rows of `benchmarks.search` and `benchmarks.toy_search`.

python -m benchmarks.search_page --rows=benchmarks/search.jsonl --page=benchmarks/SEARCH.md
  writes the page in the repository. The rows and the table of `benchmarks.toy_search` are always
  read from the folder benchmarks/.
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
        # Only the seeds for which every setting has been run.
        self.seeds = [
            s for s in sorted(seeds) if all((s, setting) in done for setting in search.SETTINGS)
        ]
        self._rows = {(r["setting"], r["method"], r["budget"], r["seed"]): r for r in rows}

    def values(self, setting: str, method: str, budget: int, key: str) -> np.ndarray:
        rows = [self._rows[setting, method, budget, seed] for seed in self.seeds]
        return 100 * np.array([row[key] for row in rows])

    def against(self, setting: str, method: str, budget: int, other: str, key: str) -> np.ndarray:
        """Returns by how much a method exceeds another, seed by seed."""
        ours = self.values(setting, method, budget, key)
        return ours - self.values(setting, other, budget, key)

    def fronts(self, method: str, budget: int) -> list[list[list[float]]]:
        return [self._rows[search.TWO_COSTS, method, budget, seed]["front"] for seed in self.seeds]


def interval(values) -> str:
    """Formats a mean and the half-width of its 95% interval (Student's t)."""
    return f"{np.mean(values):.2f} ± {half_width(values):.2f}"


PAGE = """# Comparison of searchers

How good is the network that a searcher finds with a given number of trainings? The first sections
search a space of 10^11 networks, in which predictors stand in for training. The [last
one](#on-networks-that-were-all-trained) searches a space of 128 networks, every one of which has
been trained.

    mbv3 search table accel_nasbench --out=accel_nasbench.json
    export OPENBLAS_NUM_THREADS=1
    python -m benchmarks.search --table=accel_nasbench.json --out=search.jsonl
    python -m benchmarks.search_page --rows=search.jsonl --page=benchmarks/SEARCH.md

## How the searchers are compared

**Data.** The table of Accel-NASBench has 5,138 results for 5,125 networks: ImageNet top-1 after a
short recipe, and throughput or latency on several devices. Each seed splits the table into two
random halves, and fits a predictor of top-1 to each half.

**Training.** When a search trains a network, it gets the prediction of the first half, plus noise
with the standard deviation of one training ({noise} points; `benchmarks/search.py` gives the
source).

**Judging.** The network that a search chooses is judged by two figures that the search never saw:

- *Regret* is how many points the choice falls short of the best network of the space. Both are
  predicted from the first half without noise, which is the mean over all training seeds. The best
  network is the best that any search has found, including a long one.
- *By the other half* is the prediction of the second half, whose networks the search never saw.

**Intervals.** There are {seeds} seeds, each with its own halves, noise and search. The figures are
means with 95% intervals (Student's t); differences are taken within each seed. The intervals do not
cover the choice of the table, because all seeds split the same one. Predictions are smoother than
real trainings, and come from the same kind of model as the proxy below.

**With proxy**, a search trains in rounds (`mbv3_jax.search.rounds`). The first quarter of the
networks is random. After each round a predictor, the proxy, is fitted to all networks trained so
far. On the proxy the searcher evaluates 1,024 networks, and a local search 1,024 more; the best are
trained next. "random" has the local search too. The search chooses the trained network that the
proxy rates best.

**Without a proxy**, every network that the searcher evaluates is trained, and the search chooses
the one with the best training.

## Without a constraint

Regret in points of top-1:

{regret}

Points of top-1 more than random search without a proxy, by the other half:

{over_random}

![regret against trainings](search_regret.png)

## At a target cost

The reward is accuracy {exponent} |cost / target - 1|. The target is {part} times the median cost of
the space. With two costs, cost / target is the mean of both ratios. Regret in points of reward at
{last} trainings:

{at_targets}

Points of reward more than the best of as many random networks within {near}% of the target, by the
other half, at {last} trainings:

{over_cost}

## The front of accuracy and cost

This section compares Pareto fronts of accuracy and cost ({two}). With proxy, a front is
chosen from all networks that the searcher visits on the last proxy, otherwise from the trained
ones. Its accuracies are those by the other half. The figure is the area that the front dominates,
above {worst}% top-1 and below {most} times the target cost, in points times relative cost.

{areas}

![fronts](search_fronts.png)
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = (head, ["-"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def document(rows: Sequence[dict]) -> str:
    """Returns the first part of the page, from the rows of `benchmarks.search`."""
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
        exponent=f"- {-search.EXPONENT:g}",
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

Here nothing is predicted. Every one of the {networks} networks of a small space has been trained on
the embedded letters at 32 pixels:

{described}

When a search trains a network, it gets the validation accuracy of one of that network's {trainings}
trainings, which the seed of the search draws. The mean test accuracy of the other trainings judges
the choice. The reward is accuracy {exponent} |MAdds / target - 1|; {near} networks cost within
{part}% of the three targets. There are {seeds} seeds, and {some} for the supernets. The figures are
means with 95% intervals (Student's t), which cover the searches but not the choice of the table.

Regret, in points of reward, is relative to the network that is judged best. That network owes part
of its lead to the noise of its trainings, so no search can be expected to reach 0.

A supernet takes as many steps as {shared} trainings. It serves all three targets, but each of them
is charged for the whole of it. *Its controller* chooses the network that the controller of the
target ends with; *its weights*, the network that the finished shared weights rate best.
*Corrected, with finalists* trains some networks to correct that rating, and then the best by the
corrected rating.

{regret}

Points of reward more than the best of as many random networks near the target cost, mean of the
three targets, taken within each seed:

{over}

Spearman's correlation of an estimate with the judged accuracy over all networks, mean over the
seeds (lowest to highest). "even" and "controllers" are the supernets drawn evenly and with
controllers:

{correlations}
"""


def toy_part(rows: Sequence[dict], table: ToyTable) -> str:
    """Returns the part of the page about `benchmarks.toy_search`, from its rows."""
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
        networks=len(table.points),
        described=table.describe(),
        trainings=table.test.shape[1],
        exponent=f"- {-toy_supernet.EXPONENT:g}",
        near=f"{', '.join(near[:-1])} and {near[-1]}",
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
