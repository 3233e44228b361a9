"""What the sweeps of this folder share: the network, the data and the seeds of a trial."""

import importlib
from collections.abc import Mapping

from mbv3_jax.sweep.combinators import Trials, chain, trial

SEEDS = (0, 1, 2)


def is_paper(argument: str) -> bool:
    """Whether a sweep is to be the paper's experiment: ImageNet, by the paper's recipe."""
    return argument.split(",")[0] == "imagenet"


def base(argument: str) -> str:
    """The configuration: V3-Large for ImageNet, as in the paper; V3-Small for all other data."""
    return f"configs/{'large' if is_paper(argument) else 'small'}.py:{argument}"


def variant(name: str, overrides: Mapping[str, object], argument: str) -> Trials:
    """A trial with three seeds, trained at once in one process; with one seed on ImageNet."""
    return trial(name, {**overrides, **({} if is_paper(argument) else {"seeds": SEEDS})})


def variants(choices: Mapping[str, Mapping[str, object]], argument: str) -> Trials:
    """A `variant` for each name and its overrides."""
    return chain(*(variant(name, fields, argument) for name, fields in choices.items()))


def recipe_of(file: str, argument: str, of: str) -> dict[str, object]:
    """The fields in which configs/`file`.py differs from configs/`of`.py, but for the network.

    For sweeps over networks, each of which has a recipe of its own.
    """
    mine, theirs = (
        _flat(importlib.import_module(f"configs.{name}").get_config(argument).to_dict())
        for name in (file, of)
    )
    return {k: v for k, v in mine.items() if v != theirs[k] and k != "net.name"}


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for name, value in tree.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat
