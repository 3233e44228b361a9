"""The hierarchy of classes that `losses.semantic_softmax` trains on, read from a file.

The file is a CSV table with the names of the data's classes:

    child,parent
    dog,animal
    poodle,dog
    oak,plant
    stone,

A class that is no child, or whose parent is empty, is on the first level; a child is one level
below its parent. Every class of the data has to occur, as a child or as a parent, and every parent
is a class of its own: the network has an output for it, and images may have it as their label.

hierarchy.csv of the run folder has a copy of the file, so that a run does not resume with another
hierarchy, and is evaluated with its own.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mbv3_jax.core.csv_rows import Row, not_utf8, read_rows
from mbv3_jax.core.errors import RunError, counted, printable
from mbv3_jax.core.files import expand_user, read_text

_COLUMNS = ["child", "parent"]
# max_normalization_factor in Alibaba-MIIL/ImageNet21K, src_files/semantic/semantics.py.
MOST_WEIGHT = 20.0
_FEW = 3  # classes that are named of those that are missing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """The classes that are equally far below the first level.

    classes: their labels, int32 [n].
    position: int32 [all classes]: which of these classes each class is or lies below, as an index
      into `classes`; -1 for a class above this level, or below none of it.
    weight: of this level in the loss.
    """

    classes: np.ndarray
    position: np.ndarray
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """The levels of a hierarchy that have at least two classes, from the first one down.

    num_classes: of all levels together.
    text: of the file.
    """

    levels: tuple[Level, ...]
    num_classes: int
    text: str


def hierarchy_text(given: str) -> str:
    """The text of a file.

    Args:
      given: the file, as typed.

    Raises:
      ValueError: it cannot be read.
    """
    file = expand_user(given, "loss.hierarchy")
    where = f"loss.hierarchy: {file}"
    try:
        return read_text(file)
    except OSError as e:
        raise ValueError(f"{where}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ValueError(not_utf8(e, where)) from e


def stored_hierarchy(run: Path, class_names: Sequence[str]) -> Hierarchy | None:
    """The hierarchy that a run has learnt by; None if its folder has none.

    Args:
      run: the run folder, or an import folder.
      class_names: of the network, by label.

    Raises:
      RunError: the file is damaged.
    """
    from mbv3_jax.run.folder import HIERARCHY_FILE  # not before JAX is needed

    file = run / HIERARCHY_FILE
    if not file.exists():
        return None
    try:
        return read_hierarchy(str(file.absolute()), class_names)
    except ValueError as e:
        raise RunError(f"{e}") from e


def read_hierarchy(given: str, class_names: Sequence[str]) -> Hierarchy:
    """Reads a hierarchy.

    A level's weight is the number of all classes over that of the classes on it and below it, at
    most `MOST_WEIGHT`: the fewer classes have an ancestor on a level, the fewer images do.

    Args:
      given: the file, as typed.
      class_names: of the data, by label.

    Raises:
      ValueError: the file cannot be read, is no such table, or does not fit the classes; the
        message has the line.
    """
    text = hierarchy_text(given)
    where = f"loss.hierarchy: {expand_user(given, 'loss.hierarchy')}"
    labels = {name: label for label, name in enumerate(class_names)}
    if twice := [name for label, name in enumerate(class_names) if labels[name] != label]:
        raise ValueError(f"{where}: the data has two classes named {printable(twice[0])!r}")
    parents, lines = _parents(_rows(text, where), labels, where)
    if missing := [name for name in class_names if labels[name] not in parents]:
        named = ", ".join(repr(printable(name)) for name in missing[:_FEW])
        more = ", ..." if len(missing) > _FEW else ""
        raise ValueError(
            f"{where}: {counted(len(missing), 'class')} of the data not in it: {named}{more}; a "
            "class without a parent and without children has a line with an empty parent"
        )
    ancestors = [
        _ancestors(label, parents, lines, class_names, where) for label in range(len(class_names))
    ]
    levels = _levels(ancestors)
    if not levels:
        raise ValueError(f"{where}: no level has two classes, between which a softmax could choose")
    return Hierarchy(levels=levels, num_classes=len(class_names), text=text)


def _rows(text: str, where: str) -> list[Row]:
    """The rows below the header, each with the number of its first line."""
    rows = read_rows(text, where)
    if not rows:
        raise ValueError(f"{where}: an empty table, expected the header child,parent and rows")
    line, header = rows[0]
    if [name.lower() for name in header] != _COLUMNS:
        got = printable(",".join(header))
        raise ValueError(f"{where}: line {line}: got {got!r}, expected the header child,parent")
    if len(rows) == 1:
        raise ValueError(f"{where}: no row below the header child,parent")
    return rows[1:]


def _parents(
    rows: Sequence[Row], labels: Mapping[str, int], where: str
) -> tuple[dict[int, int | None], dict[int, int]]:
    """The parent of each class that the rows name, by label, and the line of each child."""
    parents: dict[int, int | None] = {}
    lines: dict[int, int] = {}
    for line, cells in rows:
        if len(cells) != 2 or not cells[0]:
            got = printable(",".join(cells))
            raise ValueError(f"{where}: line {line}: got {got!r}, expected a child and its parent")
        for name in filter(None, cells):
            if name not in labels:
                near = difflib.get_close_matches(name, labels, 1)
                hint = f"; did you mean {printable(near[0])!r}?" if near else ""
                raise ValueError(
                    f"{where}: line {line}: {printable(name)!r} is not a class of the data{hint}"
                )
        child, parent = labels[cells[0]], labels[cells[1]] if cells[1] else None
        if child in lines:
            raise ValueError(
                f"{where}: line {line}: {printable(cells[0])!r} has a line already, line "
                f"{lines[child]}; expected one parent for each class"
            )
        parents[child], lines[child] = parent, line
    for parent in [parent for parent in parents.values() if parent is not None]:
        parents.setdefault(parent, None)  # it has no line of its own
    return parents, lines


def _ancestors(
    label: int,
    parents: Mapping[int, int | None],
    lines: Mapping[int, int],
    class_names: Sequence[str],
    where: str,
) -> list[int]:
    """A class, its parent, and so on up to the first level."""
    chain = [label]
    while (parent := parents[chain[-1]]) is not None:
        if parent in chain:
            circle = [*chain[chain.index(parent) :], parent]
            names = " -> ".join(printable(class_names[each]) for each in circle)
            raise ValueError(
                f"{where}: line {lines[chain[-1]]}: a class is its own ancestor: {names}"
            )
        chain.append(parent)
    return chain


def _levels(ancestors: Sequence[Sequence[int]]) -> tuple[Level, ...]:
    """The levels with at least two classes; `ancestors` is by label, as of `_ancestors`."""
    depth = np.array([len(chain) - 1 for chain in ancestors])
    levels = []
    for number in range(depth.max() + 1):
        classes = np.flatnonzero(depth == number).astype(np.int32)
        if len(classes) < 2:
            continue
        index = {label: i for i, label in enumerate(classes.tolist())}
        position = [index[chain[-1 - number]] if len(chain) > number else -1 for chain in ancestors]
        weight = min(len(ancestors) / float(np.sum(depth >= number)), MOST_WEIGHT)
        levels.append(Level(classes=classes, position=np.array(position, np.int32), weight=weight))
    return tuple(levels)
