"""The result of a search, read from its search.json."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NotRequired, TypedDict

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import Resolution, in_pixels
from mbv3_jax.core.files import read_bytes
from mbv3_jax.core.json_values import Number, parse_json, read_json
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
    interval: its 95% interval; None in searches of older versions, which did not record it.
    candidates: (cost, top-1 in percent) of each brief training.
    networks: the found networks, then the references.
    """

    folder: Path
    space: str
    pixels: str
    num_classes: int
    cost_name: str
    unit: str
    source: str | None
    evaluator: str
    spearman: float | None
    count: int | None
    interval: tuple[float, float] | None
    candidates: tuple[tuple[float, float], ...]
    networks: tuple[Network, ...]

    @property
    def title(self) -> str:
        return f"{self.folder.resolve().name}: a search in the space {self.space}"

    @property
    def scale(self) -> float:
        """The factor for costs that people read; their unit is then `label`."""
        return 1e-6 if self.cost_name == "madds" else 1

    @property
    def label(self) -> str:
        return "MAdds M" if self.cost_name == "madds" else self.unit

    @property
    def found(self) -> list[Network]:
        return [network for network in self.networks if network.is_found]

    @property
    def is_trained(self) -> bool:
        """Whether any network was trained to the end; a search with a proxy may train none."""
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
        return _search(folder, parse_json(read_bytes(path), _Result))
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
    names = read_json(file, _Selection, error=ValueError)["found"]
    runs = [f"runs/{name}" for name in names]
    untrained = [run for run in runs if not (folder / run / "summary.json").is_file()]
    return f"to be trained: {', '.join(untrained)}" if untrained else "all networks are trained"


class _Selection(TypedDict):
    """What is read of found.json, see `search.selection`."""

    found: dict[str, object]


class _Cost(TypedDict):
    name: str
    unit: str
    source: NotRequired[str | None]


class _Agreement(TypedDict):
    spearman: NotRequired[Number | None]
    count: NotRequired[int | None]
    interval: NotRequired[tuple[float, float] | None]


class _Point(TypedDict):
    cost: NotRequired[Number | None]
    top1: NotRequired[Number | None]
    predicted: NotRequired[Number | None]


class _Step(TypedDict):
    change: str
    cost: NotRequired[Number | None]
    accuracy: NotRequired[Number | None]


class _Network(TypedDict):
    spec: NetSpec
    target: NotRequired[Number | None]
    cost: NotRequired[Number | None]
    measured: NotRequired[Number | None]
    madds: NotRequired[Number | None]
    predicted: NotRequired[Number | None]
    uncertainty: NotRequired[Number | None]
    top1: NotRequired[Number | None]
    split: NotRequired[str | None]
    rewards: NotRequired[list[Number | None] | None]
    front: NotRequired[list[_Point] | None]
    adapted: NotRequired[list[_Step] | None]


class _Result(TypedDict):
    """search.json, see `search.program`."""

    space: str
    resolution: Resolution
    num_classes: int
    cost: _Cost
    evaluator: str
    agreement: _Agreement
    candidates: list[_Point]
    found: dict[str, _Network]
    references: dict[str, _Network]


def _search(folder: Path, tree: _Result) -> Search:
    if not tree["found"]:
        raise ValueError("found: empty, expected at least one network")
    return Search(
        folder=folder,
        space=tree["space"],
        pixels=in_pixels(tree["resolution"]),
        num_classes=tree["num_classes"],
        cost_name=tree["cost"]["name"],
        unit=tree["cost"]["unit"],
        source=tree["cost"].get("source"),
        evaluator=tree["evaluator"],
        spearman=_finite(tree["agreement"].get("spearman")),
        count=tree["agreement"].get("count"),
        interval=tree["agreement"].get("interval"),
        candidates=_pairs((point.get("cost"), point.get("top1")) for point in tree["candidates"]),
        networks=tuple(
            _network(name, entry, is_found)
            for is_found, group in ((True, tree["found"]), (False, tree["references"]))
            for name, entry in group.items()
        ),
    )


def _network(name: str, entry: _Network, is_found: bool) -> Network:
    front = ((point.get("cost"), point.get("predicted")) for point in entry.get("front") or ())
    rewards = map(_finite, entry.get("rewards") or ())
    madds = _finite(entry.get("madds"))
    return Network(
        name=name,
        is_found=is_found,
        spec=entry["spec"],
        target=_finite(entry.get("target")),
        cost=_finite(entry.get("cost")),
        measured=_finite(entry.get("measured")),
        madds=cost.madds(entry["spec"]) if madds is None else madds,
        predicted=_finite(entry.get("predicted"), 100),
        uncertainty=_finite(entry.get("uncertainty"), 100),
        top1=_finite(entry.get("top1"), 100),
        split=entry.get("split"),
        rewards=tuple(math.nan if reward is None else reward for reward in rewards),
        front=_pairs(front),
        steps=tuple(
            Step(step["change"], _finite(step.get("cost")), _finite(step.get("accuracy"), 100))
            for step in entry.get("adapted") or ()
        ),
    )


def _pairs(
    points: Iterable[tuple[Number | None, Number | None]],
) -> tuple[tuple[float, float], ...]:
    """Returns (cost, accuracy in percent) of those that have both."""
    pairs = [(_finite(price), _finite(accuracy, 100)) for price, accuracy in points]
    return tuple((price, top1) for price, top1 in pairs if price is not None and top1 is not None)


def _finite(value: Number | None, scale: float = 1) -> float | None:
    """Returns the number times `scale`; None for null, NaN and the infinities."""
    return value * scale if value is not None and math.isfinite(value) else None
