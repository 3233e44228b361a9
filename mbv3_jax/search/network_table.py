"""Tables of networks whose accuracy and cost others have measured, in one neutral format.

A table is a JSON file, so that the results of others can be used without writing code:

    {
      "format": "mbv3_jax network table", "version": 1,
      "name": "...", "source": "where it comes from", "license": "...",
      "space": "mnasnet",
      "columns": {
        "top1": {"kind": "accuracy", "unit": "%"},
        "phone": {"kind": "cost", "unit": "ms"},
        "a100": {"kind": "cost", "unit": "images/s", "higher_is_better": true}
      },
      "networks": [
        {"choices": {"stage1/depth": 2, ...}, "top1": [75.2, 75.0], "phone": 78},
        ...
      ]
    }

space      a preset by name, a space of one's own as an object with the fields of `Space` (its base
           a network as JSON, or the name of a published one), or absent; then every row has a
           "spec", a network as JSON, instead of "choices".
columns    an accuracy in % or as a fraction, or a cost in any unit. Unless `higher_is_better`, a
           smaller cost is better. "about" is free text.
networks   rows, or the name of a CSV file beside the JSON, with a column for each decision and for
           each of `columns`. A value is a number, or several of repeated measurements: a list, or
           in a CSV file numbers separated by spaces. A value that was not measured is null, absent
           or an empty cell; a column of a CSV file must not be absent.
"""

import csv
import dataclasses
import io
import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mbv3_jax.arch import cost, tables
from mbv3_jax.arch.spec import NetSpec, SESpec
from mbv3_jax.core.checks import check_number, choose, flag
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.files import open_regular, write_atomically
from mbv3_jax.core.json_values import as_type, parse_json, read_json
from mbv3_jax.search.presets import PRESETS, preset
from mbv3_jax.search.space import Point, Space, Stage

FORMAT, VERSION = "mbv3_jax network table", 1
KINDS = ("accuracy", "cost")
# What one of an accuracy's unit is, as a fraction.
ACCURACY_UNITS = {"%": 0.01, "fraction": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """The measurements of every network, in the unit of the file.

    Attributes:
      kind: One of `KINDS`.
      unit: "%" or "fraction" for an accuracy, anything for a cost.
      higher_is_better: True for a throughput; None for accuracies.
      about: Device, batch, recipe: free text.
      values: The measurements of each network; empty where there is none.
    """

    kind: str
    unit: str
    higher_is_better: bool | None = None
    about: str = ""
    values: tuple[tuple[float, ...], ...]

    def means(self) -> np.ndarray:
        """Returns the mean of each network's measurements, NaN where there is none.

        Accuracies [N] are fractions. Costs [N] are such that less is better: a throughput becomes
        its inverse, the seconds for an image if its unit is images/s.
        """
        means = np.array([np.mean(v) if v else math.nan for v in self.values])
        if self.kind == "accuracy":
            return means * ACCURACY_UNITS[self.unit]
        return 1 / means if self.higher_is_better else means

    def in_unit(self, mean: float, deviation: float) -> tuple[float, float]:
        """Returns a value as `means` has it, and its deviation, in the unit of the file."""
        if self.kind == "accuracy":
            one = ACCURACY_UNITS[self.unit]
            return mean / one, deviation / one
        return (1 / mean, deviation / mean**2) if self.higher_is_better else (mean, deviation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkTable:
    """Networks with their measurements.

    Attributes:
      name, source, license: As in the file.
      space: The space of the networks; None if they belong to none.
      networks: A canonical point for each network or, without a space, its spec.
      columns: The measurements, by name; at least one.
    """

    name: str
    source: str
    license: str
    space: Space | None
    networks: tuple[Point | NetSpec, ...]
    columns: Mapping[str, Column]

    def spec(self, index: int) -> NetSpec:
        """Returns a network, counted from 0."""
        network = self.networks[index]
        if isinstance(network, NetSpec):
            return network
        assert self.space is not None  # a point has a space
        return self.space.to_spec(network)


def open_network_table(path: Path) -> NetworkTable:
    """Reads a table.

    Args:
      path: A JSON file; a CSV file that it names is looked for beside it.

    Raises:
      UsageError: The file cannot be read, is not such a table or was written by a newer version, or
        something in it is wrong: a field, a network outside the space, a measurement out of range,
        or a network with two rows that disagree. The message names file, row and column.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such file")
    tree = read_json(path, object, error=UsageError, advice="expected a table as JSON")
    try:
        return _parse(tree, path.parent)
    except ValueError as e:
        raise UsageError(f"{path}: {e}") from e


def write_network_table(path: Path, table: NetworkTable) -> None:
    """Atomically writes a table that `open_network_table` reads."""
    columns: dict[str, dict[str, Any]] = {}
    for name, column in table.columns.items():
        columns[name] = {"kind": column.kind, "unit": column.unit, "about": column.about}
        if column.higher_is_better is not None:
            columns[name]["higher_is_better"] = column.higher_is_better
    rows = []
    for i, network in enumerate(table.networks):
        row: dict[str, Any] = (
            {"spec": dataclasses.asdict(network)}
            if isinstance(network, NetSpec)
            else {"choices": _choices(table.space, network)}
        )
        for name, column in table.columns.items():
            if values := column.values[i]:
                row[name] = values[0] if len(values) == 1 else list(values)
        rows.append(json.dumps(row))
    head = {"format": FORMAT, "version": VERSION, "name": table.name, "source": table.source}
    head |= {"license": table.license, "columns": columns}
    if table.space is not None:
        head["space"] = _space_to_tree(table.space)
    text = json.dumps(head, indent=1).removesuffix("\n}")  # a row a line, to be read and compared
    write_atomically(path, text + ',\n "networks": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a column of a table holds.

    Attributes:
      name, unit: The column's.
      networks: How many networks have a value.
      repeated: How many networks have several.
      lowest, highest: Of the means over a network's values, in the column's unit.
      spearman: The rank correlation of the means with the multiply-adds of the networks.
    """

    name: str
    unit: str
    networks: int
    repeated: int
    lowest: float
    highest: float
    spearman: float


def summarise(table: NetworkTable) -> list[Summary]:
    """Describes each column of a table."""
    madds = np.array([cost.madds(table.spec(i)) for i in range(len(table.networks))])
    summaries = []
    for name, column in table.columns.items():
        known = np.array([len(values) > 0 for values in column.values])
        means = np.array([np.mean(values) for values in column.values if values])
        # A correlation needs two different values on either side.
        varies = min(len(set(means)), len(set(madds[known]))) > 1
        summaries.append(
            Summary(
                name,
                column.unit,
                len(means),
                sum(len(values) > 1 for values in column.values),
                float(means.min()),
                float(means.max()),
                float(stats.spearmanr(means, madds[known])[0]) if varies else math.nan,
            )
        )
    return summaries


def make_network_table(
    *,
    name: str,
    source: str,
    license: str,
    space: Space | None,
    networks: Sequence[Point | NetSpec],
    columns: Mapping[str, Column],
    rows: Sequence[str] | None = None,
) -> NetworkTable:
    """Returns a table whose networks are all different, after checking all measurements.

    Rows of the same network that agree are taken once.

    Args:
      name, source, license, space, networks, columns: As in `NetworkTable`.
      rows: What each network is called in an error; default "row 1" and so on.

    Raises:
      ValueError: There is no network, a measurement is out of range, nothing was measured of a
        column, or rows of the same network disagree.
    """
    rows = rows or [f"row {i + 1}" for i in range(len(networks))]
    if not networks or not columns:
        raise ValueError(f"got {len(networks)} networks and {len(columns)} columns")
    for label, column in columns.items():
        _check_column(label, column, rows)
    first: dict[Any, int] = {}
    for i, network in enumerate(networks):
        key = network.replace(name="") if isinstance(network, NetSpec) else network
        earlier = first.setdefault(key, i)
        for label, column in columns.items():
            if column.values[earlier] != column.values[i]:
                raise ValueError(
                    f"{rows[earlier]} and {rows[i]} are the same network, but {label} is "
                    f"{_shown(column.values[earlier])} and {_shown(column.values[i])}; write "
                    "repeated measurements as a list in one row"
                )
    kept = list(first.values())
    return NetworkTable(
        name=name,
        source=source,
        license=license,
        space=space,
        networks=tuple(networks[i] for i in kept),
        columns={
            label: dataclasses.replace(c, values=tuple(c.values[i] for i in kept))
            for label, c in columns.items()
        },
    )


def _check_column(label: str, column: Column, rows: Sequence[str]) -> None:
    choose(f"columns.{label}.kind", column.kind, KINDS)
    bounds: dict[str, float] = {"above": 0.0}
    if column.kind == "accuracy":
        choose(f"columns.{label}.unit", column.unit, ACCURACY_UNITS)
        bounds = {"at_least": 0.0, "at_most": 1 / ACCURACY_UNITS[column.unit]}
    for row, values in zip(rows, column.values, strict=True):
        for value in values:
            check_number(f"{row}, {label}", value, **bounds)
    if not any(column.values):
        raise ValueError(f"columns.{label}: no network has a value")


def _shown(values: tuple[float, ...]) -> str:
    return " and ".join(f"{v:g}" for v in values) or "missing"


def _parse(tree: Any, folder: Path) -> NetworkTable:
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f'not a table of networks; one begins with "format": "{FORMAT}"')
    if tree.get("version") != VERSION:
        raise ValueError(
            f"version: got {tree.get('version')!r}, this program reads {VERSION}; install a newer "
            "mbv3_jax for a newer one"
        )
    known = ("format", "version", "name", "source", "license", "space", "columns", "networks")
    _check_keys("", tree, known, ("name", "source", "license", "columns", "networks"))
    texts = {key: _text(key, tree[key]) for key in ("name", "source", "license")}
    space = None if tree.get("space") is None else _space_from_tree(tree["space"])
    columns = _object("columns", tree["columns"])
    for label, column in columns.items():
        path = f"columns.{label}"
        _check_keys(path, _object(path, column), ("kind", "unit", "higher_is_better", "about"))
        choose(f"{path}.kind", column.get("kind"), KINDS)
        if column["kind"] == "cost":
            column["higher_is_better"] = flag(path, column.get("higher_is_better", False))
        elif "higher_is_better" in column:
            raise ValueError(f"{path}.higher_is_better: only a cost has it")
        for key in ("unit", "about"):
            column[key] = _text(f"{path}.{key}", column.get(key, "" if key == "about" else None))
    rows, names = _rows(tree["networks"], folder, space, columns)
    networks = [_network(row, where, space) for row, where in zip(rows, names, strict=True)]
    measured = {
        label: Column(
            **column,
            values=tuple(
                _values(f"{where}, {label}", row.get(label))
                for row, where in zip(rows, names, strict=True)
            ),
        )
        for label, column in columns.items()
    }
    return make_network_table(**texts, space=space, networks=networks, columns=measured, rows=names)


def _rows(
    networks: Any, folder: Path, space: Space | None, columns: Mapping[str, Any]
) -> tuple[list[dict], list[str]]:
    """Returns the rows as objects with "choices" or "spec" and the columns, and their names."""
    subject = "spec" if space is None else "choices"
    if isinstance(networks, list):
        names = [f"row {i + 1}" for i in range(len(networks))]
        for row, where in zip(networks, names, strict=True):
            _check_keys(where, _object(where, row), (subject, *columns), (subject,))
        return networks, names
    file = folder / _text("networks", networks)
    decisions = [subject] if space is None else [d.name for d in space.decisions]
    try:
        with io.TextIOWrapper(open_regular(file), "utf-8", newline="") as f:
            reader = csv.DictReader(f, strict=True)
            fields = reader.fieldnames or []
            required = [*([subject] if space is None else []), *columns]
            _check_keys(file.name, dict.fromkeys(fields), (*decisions, *columns), required)
            rows, names = [], []
            for cells in reader:
                where = f"{file.name}, line {reader.line_num}"
                if None in cells or None in cells.values():
                    raise ValueError(f"{where}: expected {len(fields)} cells, as in the first line")
                values: dict[str, Any] = {k: cells[k].split() for k in columns}
                if space is None:
                    values[subject] = _literal(cells[subject])
                else:
                    values[subject] = {d: _literal(cells[d]) for d in decisions if cells.get(d)}
                rows.append(values)
                names.append(where)
    except OSError as e:
        raise ValueError(f"networks: {file}: {e.strerror}") from e
    except (csv.Error, UnicodeDecodeError) as e:
        raise ValueError(f"{file.name} is not a CSV file: {e}") from e
    return rows, names


def _literal(cell: str) -> Any:
    """Returns the choice that a cell of a CSV file stands for: a number, true, false or a text."""
    text = cell.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return parse_json(text, object)
    except ValueError:
        return text


def _network(row: Mapping, where: str, space: Space | None) -> Point | NetSpec:
    if space is None:
        try:
            return as_type(row["spec"], NetSpec, "spec")
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from e
    choices = _object(f"{where}, choices", row["choices"])
    _check_keys(f"{where}, choices", choices, [d.name for d in space.decisions])
    point = []
    for decision in space.decisions:
        # A decision may be left out where it makes no difference, which is checked below.
        got = choices.get(decision.name, decision.choices[0])
        choose(f"{where}, {decision.name}", got, decision.choices)
        # 1 == True in Python; a table must not mix the two up.
        if isinstance(got, bool) != isinstance(decision.choices[0], bool):
            choose(f"{where}, {decision.name}", repr(got), decision.choices)
        point.append(decision.choices.index(got))
    for decision, is_active in zip(space.decisions, space.active(point), strict=True):
        if is_active and decision.name not in choices:
            raise ValueError(f"{where}: {decision.name} is missing")
    return space.canonical(point)


def _choices(space: Space | None, point: Point) -> dict[str, Any]:
    assert space is not None  # a point has a space
    return {
        decision.name: decision.choices[index]
        for decision, index, is_active in zip(
            space.decisions, point, space.active(point), strict=True
        )
        if is_active
    }


def _values(where: str, got: Any) -> tuple[float, ...]:
    values = got if isinstance(got, list) else [] if got is None else [got]
    numbers = []
    for value in values:
        try:
            numbers.append(check_number(where, float(value) if isinstance(value, str) else value))
        except ValueError:
            raise ValueError(f"{where}: got {value!r}, expected a number") from None
    return tuple(numbers)


def _space_to_tree(space: Space) -> Any:
    if space.name in PRESETS and preset(space.name) == space:
        return space.name
    tree = {
        field.name: getattr(space, field.name) for field in dataclasses.fields(space) if field.init
    }
    tree["base"] = dataclasses.asdict(space.base)
    tree["stages"] = [dataclasses.asdict(stage) for stage in space.stages]
    tree["squeeze_excite"] = dataclasses.asdict(space.squeeze_excite)
    return tree


def _space_from_tree(tree: Any) -> Space:
    if isinstance(tree, str):
        return preset(tree)
    fields = [field.name for field in dataclasses.fields(Space) if field.init]
    _check_keys("space", _object("space", tree), fields, ("name", "base", "stages"))
    base = tree["base"]
    if isinstance(base, str):
        base = tables.TABLES[choose("space.base", base, tables.TABLES)]()
    else:
        base = as_type(base, NetSpec, "space.base")
    if not isinstance(tree["stages"], list):
        raise ValueError(f"space.stages: got {tree['stages']!r}, expected a list")
    stages = tuple(
        _built(Stage, f"space.stages[{i}]", {k: _tuple(v) for k, v in _object("stage", s).items()})
        for i, s in enumerate(tree["stages"])
    )
    rest = {key: tree[key] for key in ("name", "last_factor") if key in tree}
    if tree.get("squeeze_excite") is not None:
        rest["squeeze_excite"] = _built(SESpec, "space.squeeze_excite", tree["squeeze_excite"])
    return _built(Space, "space", rest | {"base": base, "stages": stages})


T = typing.TypeVar("T")


def _built(kind: Callable[..., T], path: str, fields: Mapping[str, Any]) -> T:
    try:
        return kind(**fields)
    except (TypeError, ValueError) as e:
        raise ValueError(f"{path}: {e}") from e


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _object(path: str, got: Any) -> dict:
    if not isinstance(got, dict):
        raise ValueError(f"{path}: got {got!r}, expected an object")
    return got


def _text(path: str, got: Any) -> str:
    if not isinstance(got, str):
        raise ValueError(f"{path}: got {got!r}, expected a text")
    return got


def _check_keys(
    path: str, got: Mapping, known: Sequence[str], required: Sequence[str] | Mapping = ()
) -> None:
    prefix = f"{path}: " if path else ""
    if missing := [key for key in required if key not in got]:
        raise ValueError(f"{prefix}{missing[0]} is missing")
    if unknown := [key for key in got if key not in known]:
        raise ValueError(f"{prefix}unknown {unknown[0]!r}; expected {', '.join(known)}")
