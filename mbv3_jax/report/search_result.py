"""The result of a search, read from its search.json."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec, spec_from_json
from mbv3_jax.report.collect import read_json
from mbv3_jax.run.folder import check_format

# An evaluator with a lower rank correlation should not decide a search; the same limit as in
# search.evaluators.agreement.
TRUSTED_SPEARMAN = 0.5


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of NetAdapt: what was cut, then the cost and the accuracy (percent) after the cut."""

    change: str
    cost: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network that the search found, or a reference. Fields are None where nothing is known.

    target, cost, measured: in the unit of the search's cost; `cost` is the predicted one.
    predicted, uncertainty: the evaluator's prediction of top-1, in percent.
    top1: what training to the end reached, in percent.
    split: the data split of `top1`.
    rewards: the mean reward of the controller's batch, by step.
    front: (cost, predicted top-1 in percent) of the best networks that the search has visited.
    """

    name: str
    is_found: bool
    spec: NetSpec
    target: float | None
    cost: float | None
    measured: float | None
    madds: float
    predicted: float | None
    uncertainty: float | None
    top1: float | None
    split: str | None
    rewards: tuple[float, ...] = ()
    front: tuple[tuple[float, float], ...] = ()
    steps: tuple[Step, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search that has ended.

    cost_name: "ms" or "madds".
    unit, source: the unit of costs, and how they were obtained.
    spearman, count: rank correlation of the evaluator with held-out candidates, and their number.
    candidates: (cost, top-1 in percent) of each brief training.
    networks: the found networks, then the references.
    """

    folder: Path
    space: str
    resolution: int
    num_classes: int
    cost_name: str
    unit: str
    source: str | None
    evaluator: str
    spearman: float | None
    count: int | None
    candidates: tuple[tuple[float, float], ...]
    networks: tuple[Network, ...]

    @property
    def title(self) -> str:
        return f"{self.folder.resolve().name}: a search in the space {self.space}"

    @property
    def scale(self) -> float:
        """Costs are multiplied by this where people read them; their unit is then `label`."""
        return 1e-6 if self.cost_name == "madds" else 1

    @property
    def label(self) -> str:
        return "MAdds M" if self.cost_name == "madds" else self.unit

    @property
    def found(self) -> list[Network]:
        return [network for network in self.networks if network.is_found]

    @property
    def is_trained(self) -> bool:
        """Whether any network was trained to the end; a search by a proxy may train none."""
        return any(network.top1 is not None for network in self.networks)

    @property
    def trusted(self) -> bool:
        return self.spearman is not None and self.spearman >= TRUSTED_SPEARMAN


def read(folder: Path) -> Search:
    """Reads the folder of a search that has ended.

    Raises:
      UsageError: if a newer version wrote the folder.
      ValueError: if the search has not ended, or its search.json is damaged; the message says what
        is missing or wrong, and where.
    """
    path = folder / "search.json"
    check_format(folder)
    if not path.is_file():
        raise ValueError(
            f"{folder}: the search has not ended: {_unfinished(folder)}; it has no search.json, "
            "which the last stage writes. Run the same command again to resume it"
        )
    try:
        return _search(folder, json.loads(path.read_text()))
    except (ValueError, OSError) as e:
        raise ValueError(
            f"{path} is damaged, or of another version: {e}. Run the command of the search again: "
            "it rewrites the file from what is in the folder"
        ) from e


def _unfinished(folder: Path) -> str:
    """The stage that a search is at, in the order of search.program."""
    file = folder / "found.json"
    if not file.is_file():
        return "no network has been chosen yet (found.json)"
    networks = read_json(file)
    if not isinstance(networks, dict):
        raise ValueError(f"{file} is damaged: got {networks!r}, expected an object")
    runs = [f"runs/{name}" for name in networks]
    untrained = [run for run in runs if not (folder / run / "summary.json").is_file()]
    return f"to be trained: {', '.join(untrained)}" if untrained else "all networks are trained"


def _search(folder: Path, tree: Any) -> Search:
    costs = _get(tree, "cost", dict)
    agreement = _get(tree, "agreement", dict)
    candidates = _pairs(_get(tree, "candidates", list), "top1", "candidates")
    networks = [
        _network(name, entry, group)
        for group in ("found", "references")
        for name, entry in _get(tree, group, dict).items()
    ]
    if not any(network.is_found for network in networks):
        raise ValueError("found: empty, expected at least one network")
    return Search(
        folder=folder,
        space=_get(tree, "space", str),
        resolution=_get(tree, "resolution", int),
        num_classes=_get(tree, "num_classes", int),
        cost_name=_get(costs, "name", str, "cost."),
        unit=_get(costs, "unit", str, "cost."),
        source=_optional(costs, "source", str, "cost."),
        evaluator=_get(tree, "evaluator", str),
        spearman=_number(agreement, "spearman", "agreement."),
        count=_optional(agreement, "count", int, "agreement."),
        candidates=candidates,
        networks=tuple(networks),
    )


def _pairs(trees: list, key: str, where: str) -> tuple[tuple[float, float], ...]:
    """Returns (cost, accuracy in percent) of those that have both."""
    pairs = []
    for i, tree in enumerate(trees):
        at = f"{where}[{i}]."
        price, accuracy = _number(tree, "cost", at), _number(tree, key, at, 100)
        if price is not None and accuracy is not None:
            pairs.append((price, accuracy))
    return tuple(pairs)


def _network(name: str, entry: Any, group: str) -> Network:
    where = f"{group}.{name}."
    tree = _get(entry, "spec", dict, where)
    try:
        spec = spec_from_json(json.dumps(tree))
    except ValueError as e:
        raise ValueError(f"{where}{e}") from e
    steps = _optional(entry, "adapted", list, where) or []
    rewards = _optional(entry, "rewards", list, where) or []
    front = _pairs(_optional(entry, "front", list, where) or [], "predicted", f"{where}front")
    madds = _number(entry, "madds", where)
    return Network(
        name=name,
        is_found=group == "found",
        spec=spec,
        target=_number(entry, "target", where),
        cost=_number(entry, "cost", where),
        measured=_number(entry, "measured", where),
        madds=cost.madds(spec) if madds is None else madds,
        predicted=_number(entry, "predicted", where, 100),
        uncertainty=_number(entry, "uncertainty", where, 100),
        top1=_number(entry, "top1", where, 100),
        split=_optional(entry, "split", str, where),
        rewards=tuple(_reward(reward, f"{where}rewards[{i}]") for i, reward in enumerate(rewards)),
        front=front,
        steps=tuple(_step(step, f"{where}adapted[{i}].") for i, step in enumerate(steps)),
    )


def _reward(value: Any, where: str) -> float:
    reward = _as_number(value, where)
    return math.nan if reward is None else reward


def _step(tree: Any, where: str) -> Step:
    return Step(
        change=_get(tree, "change", str, where),
        cost=_number(tree, "cost", where),
        accuracy=_number(tree, "accuracy", where, 100),
    )


_KINDS = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}


def _get(tree: Any, key: str, kind: type, where: str = "") -> Any:
    """Returns tree[key] if it is of this type; else raises ValueError with its path."""
    if not isinstance(tree, dict):
        raise ValueError(f"{where.rstrip('.') or 'the file'}: got {tree!r}, expected an object")
    value = tree.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        got = f"got {value!r}" if key in tree else "missing"
        raise ValueError(f"{where}{key}: {got}, expected {_KINDS[kind]}")
    return value


def _optional(tree: Any, key: str, kind: type, where: str) -> Any:
    """As `_get`, but None where there is nothing."""
    if isinstance(tree, dict) and tree.get(key) is None:
        return None
    return _get(tree, key, kind, where)


def _number(tree: Any, key: str, where: str, scale: float = 1) -> float | None:
    if not isinstance(tree, dict):
        raise ValueError(f"{where.rstrip('.')}: got {tree!r}, expected an object")
    value = _as_number(tree.get(key), where + key)
    return None if value is None else value * scale


def _as_number(value: Any, where: str) -> float | None:
    """Returns the number; None for null, NaN and the infinities."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: got {value!r}, expected a number or null")
    return value if math.isfinite(value) else None
