"""Trials, and small functions that combine lists of them.

    product(
        chain(trial("v3"), trial("relu", {"net.nonlinearity": "relu"})),
        axis("net.width", 0.5, 1.0),
        seeds(3),
    )

is the twelve trials v3-width=0.5-seed0 ... relu-width=1.0-seed2. Every combinator takes and
returns tuples of `Trial`, so that they nest in any way.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

SEED = "seed"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: also the name of its run folder; a product joins the names of its parts with "-".
      overrides: dotted field of the configuration -> value: {"net.width": 0.5}.
    """

    name: str
    overrides: Mapping[str, object]


Trials = tuple[Trial, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file returns.

    Attributes:
      config: a configuration as --config takes it: "small:clutter" or "configs/small.py:clutter".
      trials: the trials of that configuration.
    """

    config: str
    trials: Trials


def trial(name: str, overrides: Mapping[str, object] | None = None) -> Trials:
    """A single trial, as a tuple."""
    return (Trial(name, dict(overrides or {})),)


def axis(field: str, *values) -> Trials:
    """A trial for each value of one field, named like "width=0.5"."""
    short = field.rpartition(".")[2]
    return tuple(Trial(f"{short}={value}", {field: value}) for value in values)


def seeds(which: int | Iterable[int]) -> Trials:
    """Trials that differ only in the seed: `seeds(3)` has the seeds 0, 1 and 2.

    Results are reported as the mean and spread over trials that are otherwise equal.
    """
    numbers = range(which) if isinstance(which, int) else which
    return tuple(Trial(f"seed{number}", {SEED: number}) for number in numbers)


def chain(*lists: Trials) -> Trials:
    """Concatenates lists of trials."""
    return tuple(itertools.chain(*lists))


def product(*lists: Trials) -> Trials:
    """Every combination of one trial from each list; the last list varies fastest.

    Raises:
      ValueError: two lists set the same field.
    """
    return tuple(_merge(parts) for parts in itertools.product(*lists))


def zip_(*lists: Trials) -> Trials:
    """Merges the first trials of all lists into one, then the second ones, and so on.

    Raises:
      ValueError: the lists differ in length, or two set the same field.
    """
    if len({len(trials) for trials in lists}) > 1:
        raise ValueError(f"zip_: lists of {', '.join(str(len(t)) for t in lists)} trials")
    return tuple(_merge(parts) for parts in zip(*lists, strict=True))


def _merge(parts: tuple[Trial, ...]) -> Trial:
    overrides: dict[str, object] = {}
    for part in parts:
        if shared := sorted(overrides.keys() & part.overrides.keys()):
            names = " and ".join(repr(p.name) for p in parts)
            raise ValueError(f"{names} both set {', '.join(shared)}")
        overrides.update(part.overrides)
    return Trial("-".join(part.name for part in parts), overrides)


def group_of(trial: Trial) -> str:
    """The trial's name without the part from `seeds`; results are averaged over such a group."""
    if SEED not in trial.overrides:
        return trial.name
    seed_part = f"seed{trial.overrides[SEED]}"
    parts = trial.name.split("-")
    return "-".join(part for part in parts if part != seed_part) or "all"
