"""What a search has found, as its search.json has it."""

import dataclasses
import json
import math
from pathlib import Path

from mbv3_jax.arch import cost, spec_from_json
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.run.folder import check_format

# Below it a search should not rest on its evaluator, as search.evaluators.agreement says too.
TRUSTED = 0.5


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of NetAdapt: what was cut, and the cost and accuracy (percent) after it."""

    change: str
    cost: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network that was found, or a reference; what is not known is None.

    target, cost, measured: in the unit of the search's cost; `cost` is the predicted one.
    predicted, uncertainty, top1: percent; what the evaluator said, and what training reached.
    split: that `top1` is of.
    rewards: mean of the controller's batch, by step.
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
    steps: tuple[Step, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search that has ended.

    cost_name, unit, source: what networks cost here ("ms" or "madds"), and where that is from.
    spearman, count: rank correlation of the evaluator with held-out candidates, of how many.
    candidates: (cost, top-1 in percent) of each brief training.
    networks: found, then references.
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
        """What costs are multiplied by where people read them; `label` is then their unit."""
        return 1e-6 if self.cost_name == "madds" else 1

    @property
    def label(self) -> str:
        return "MAdds M" if self.cost_name == "madds" else self.unit

    @property
    def found(self) -> list[Network]:
        return [network for network in self.networks if network.is_found]

    @property
    def trusted(self) -> bool:
        return self.spearman is not None and self.spearman >= TRUSTED


def is_search(folder: Path) -> bool:
    """Whether a search has ended or begun in a folder."""
    if (folder / "search.json").is_file():
        return True
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("program") == "search"


def read(folder: Path) -> Search:
    """Reads the folder of a search that has ended.

    Raises:
      UsageError: a newer version wrote it.
      ValueError: it has not ended, or its search.json is damaged; the message says what is missing
        or wrong, and where.
    """
    path = folder / "search.json"
    check_format(folder)
    if not path.is_file():
        raise ValueError(
            f"{folder}: the search has not ended: {_unfinished(folder)}; it has no search.json, "
            "which its last stage writes. The same command that began it goes on from there"
        )
    try:
        return _search(folder, json.loads(path.read_text()))
    except (ValueError, OSError) as e:
        raise ValueError(
            f"{path} is damaged, or of another version: {e}. The command of the search writes it "
            "anew from what is in the folder"
        ) from e


def _unfinished(folder: Path) -> str:
    """The stage that a search is at, in the order of search.program."""
    file = folder / "found.json"
    if not file.is_file():
        return "no network is chosen yet (found.json)"
    try:
        names = list(json.loads(file.read_text()))
    except (ValueError, TypeError) as e:
        raise ValueError(f"{file} is damaged: {e}") from e
    runs = [f"runs/{name}" for name in names]
    left = [run for run in runs if not (folder / run / "summary.json").is_file()]
    return f"to be trained: {', '.join(left)}" if left else "all is trained"


def _search(folder: Path, tree) -> Search:
    costs = _get(tree, "cost", dict)
    agreement = _get(tree, "agreement", dict)
    candidates = [
        (_number(c, "cost", where), _number(c, "top1", where, 100))
        for i, c in enumerate(_get(tree, "candidates", list))
        for where in [f"candidates[{i}]."]
    ]
    networks = [
        _network(name, entry, group)
        for group in ("found", "references")
        for name, entry in _get(tree, group, dict).items()
    ]
    if not any(network.is_found for network in networks):
        raise ValueError("found: empty, expected a network at least")
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
        candidates=tuple(pair for pair in candidates if None not in pair),
        networks=tuple(networks),
    )


def _network(name: str, entry, group: str) -> Network:
    where = f"{group}.{name}."
    tree = _get(entry, "spec", dict, where)
    try:
        spec = spec_from_json(json.dumps(tree))
    except ValueError as e:
        raise ValueError(f"{where}{e}") from e
    steps = _optional(entry, "adapted", list, where) or []
    rewards = _optional(entry, "rewards", list, where) or []
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
        rewards=tuple(
            math.nan if (r := _as_number(reward, f"{where}rewards[{i}]")) is None else r
            for i, reward in enumerate(rewards)
        ),
        steps=tuple(
            Step(
                _get(step, "change", str, at),
                _number(step, "cost", at),
                _number(step, "accuracy", at, 100),
            )
            for i, step in enumerate(steps)
            for at in [f"{where}adapted[{i}]."]
        ),
    )


_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def _get(tree, key: str, kind: type, where: str = ""):
    """tree[key] of a kind; ValueError with its path where it is another, or there is none."""
    if not isinstance(tree, dict):
        raise ValueError(f"{where.rstrip('.') or 'the file'}: got {tree!r}, expected an object")
    value = tree.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        got = f"got {value!r}" if key in tree else "missing"
        raise ValueError(f"{where}{key}: {got}, expected {_NAMES[kind]}")
    return value


def _optional(tree, key: str, kind: type, where: str):
    return (
        None if isinstance(tree, dict) and tree.get(key) is None else _get(tree, key, kind, where)
    )


def _number(tree, key: str, where: str, scale: float = 1) -> float | None:
    if not isinstance(tree, dict):
        raise ValueError(f"{where.rstrip('.')}: got {tree!r}, expected an object")
    value = _as_number(tree.get(key), where + key)
    return None if value is None else value * scale


def _as_number(value, where: str) -> float | None:
    """None for nan and the infinities too."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: got {value!r}, expected a number or null")
    return value if math.isfinite(value) else None
