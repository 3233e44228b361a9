"""JSON, read as the values that the program expects; nothing else in the package parses it.

A file may have been cut short by a kill, changed by hand or written by another program. Whatever is
wrong is reported in one line: the file, the field, what it holds, and what was expected. A type
says what is expected:

int, float, str, bool, None       float takes whole numbers too, and NaN, which diverged runs have
X | Y                             whichever of them has the JSON type of the value
list[X], dict[str, X], tuple[...] lists become tuples where a tuple is expected
list, dict, object                anything inside
a TypedDict                       an object with these fields; others are kept, as newer versions
                                  may add some, but not looked into
a dataclass                       an object with these fields and no others; it is made of them
"""

import dataclasses
import functools
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from mbv3_jax.core.errors import RunError, printable
from mbv3_jax.core.files import read_file

T = TypeVar("T")

Number = int | float  # as it is written, where float would make a float of a whole number

_MOST_LEVELS = 100  # of lists and objects in one another; the files of this package have up to 10
_MOST_BITS = 63  # NumPy, JAX and most other programs take no larger whole number
_SHOWN = 60  # characters of a wrong value
_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    types.NoneType: "null",
}


class _Misfit(Exception):
    """A value is not what was expected; `path` grows from the inside to the outside."""

    def __init__(self, reason: str, separator: str = ": "):
        self.reason, self.separator = reason, separator
        self.path = ""


def read_json(
    path: Path, kind: type[T], *, error: type[Exception] = RunError, advice: str = ""
) -> T:
    """Reads a JSON file.

    Args:
      path: the file.
      kind: the type that is expected, see the module.
      error, advice: as for `read_file`.

    Raises:
      error: the file cannot be read, is not JSON or holds something else; the message has its path
        and the reason.
    """
    return read_file(path, lambda text: parse_json(text, kind), error=error, advice=advice)


def parse_json(text: str | bytes, kind: type[T], path: str = "") -> T:
    """The value of a JSON text.

    Args:
      text: the text, or its bytes in UTF-8, with or without a byte order mark.
      kind: the type that is expected, see the module.
      path: what the value is called in messages; empty for a whole file.

    Raises:
      ValueError: the text is not JSON, or its value is not of this type; the message has the line,
        or the path of the field, and what was expected.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text)
    except UnicodeDecodeError as e:
        lines, byte = e.object.count(b"\n", 0, e.start), e.object[e.start]
        place = f" in line {lines + 1}" if b"\n" in e.object else ""
        raise ValueError(_at(path, f"the byte 0x{byte:02x}{place} is not UTF-8")) from e
    except json.JSONDecodeError as e:
        place = f"line {e.lineno} column {e.colno}" if "\n" in e.doc else f"column {e.colno}"
        raise ValueError(_at(path, f"not JSON ({e.msg}: {place})")) from e
    except RecursionError as e:
        raise ValueError(_at(path, _too_deep())) from e
    except ValueError as e:  # Python refuses numbers with thousands of digits
        raise ValueError(_at(path, "it has a number of thousands of digits")) from e
    return as_type(value, kind, path)


def as_type(value: Any, kind: type[T], path: str = "") -> T:
    """Does what `parse_json` does, for a value that has already been parsed as `Any`.

    Args:
      value, kind, path: as for `parse_json`.

    Raises:
      ValueError: the value is not of this type.
    """
    try:
        return _build(value, kind, 0)
    except _Misfit as e:
        inner = e.path if path else e.path.removeprefix(".")
        raise ValueError(_at(path + inner, e.reason, e.separator)) from e


def _at(path: str, reason: str, separator: str = ": ") -> str:
    return f"{path}{separator}{reason}" if path else reason


def _too_deep() -> str:
    return f"it has over {_MOST_LEVELS} levels of lists and objects in one another"


def _build(value: Any, kind: Any, level: int) -> Any:
    """Returns the value as this type; raises _Misfit."""
    if level > _MOST_LEVELS:
        raise _Misfit(_too_deep())
    kind = _of_union(value, kind)
    expected = _json_type(kind)
    found = type(value)
    if expected is not None and found is not expected and (found, expected) != (int, float):
        raise _misfit(value, kind)
    if found is list:
        return _build_list(value, kind, level)
    if found is dict:
        return _build_object(value, kind, level)
    if found is int and value.bit_length() > _MOST_BITS:
        raise _Misfit(f"got {_shown(value)}, expected a number of at most {_MOST_BITS} bits")
    if found is str:
        _check_text(value)
    return float(value) if kind is float else value


def _build_list(value: list, kind: Any, level: int) -> Any:
    origin, inner = _parts(kind)
    is_fixed = origin is tuple and inner[-1] is not Ellipsis
    if is_fixed and len(inner) != len(value):
        raise _Misfit(f"got {_shown(value)}, expected a list of {len(inner)}")
    items, index = [], 0
    try:
        for index, item in enumerate(value):
            of_item = Any if not inner else inner[index] if is_fixed else inner[0]
            items.append(_build(item, of_item, level + 1))
    except _Misfit as e:
        e.path = f"[{index}]{e.path}"
        raise
    return tuple(items) if origin is tuple else items


def _build_object(value: dict, kind: Any, level: int) -> Any:
    fields, required = _fields(kind)
    inner = _parts(kind)[1]
    others = inner[1] if inner else Any
    if dataclasses.is_dataclass(kind):
        unknown, missing = sorted(value.keys() - fields), sorted(required - value.keys())
        if unknown or missing:
            raise _Misfit(
                f"unknown fields {unknown}, missing fields {missing}; "
                f"the fields are {', '.join(fields)}"
            )
    built, name = {}, ""
    try:
        for name, item in value.items():
            _check_text(name)
            of_item = fields.get(name, others)
            as_it_is = type(item) in _unchanged(of_item)  # most of what long files hold
            built[name] = item if as_it_is else _build(item, of_item, level + 1)
        for name in fields:
            if name in required and name not in value:
                raise _Misfit(f"missing, expected {_describe(fields[name])}")
    except _Misfit as e:
        e.path = f".{printable(name)}{e.path}"
        raise
    if not dataclasses.is_dataclass(kind):
        return built
    make: Any = kind
    try:
        return make(**built)
    except ValueError as e:  # which begins with the name of a field
        raise _Misfit(str(e), ".") from e


def _of_union(value: Any, kind: Any) -> Any:
    """The member of a union that has the JSON type of the value."""
    origin, members = _parts(kind)
    if origin not in (types.UnionType, typing.Union):
        return kind
    for wanted in ((type(value),), (float,) if type(value) is int else ()):
        for member in members:
            if _json_type(member) in wanted:
                return member
    raise _misfit(value, kind)


def _misfit(value: Any, kind: Any) -> _Misfit:
    return _Misfit(f"got {_shown(value)}, expected {_describe(kind)}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check_text(text: str) -> None:
    """Refuses lone surrogates, which no file can hold, but for those of names of files.

    Python keeps the bytes of a path that are not UTF-8 as U+DC80 to U+DCFF (PEP 383), and what is
    written of command lines and folders has them.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as e:
        raise _Misfit(f"got {_shown(text)}, which has half a character in it") from e


@functools.cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(kind) or kind, typing.get_args(kind)


@functools.cache
def _json_type(kind: Any) -> type | None:
    """The type that `json` gives to a value of this kind; None for object and Any."""
    origin = _parts(kind)[0]
    if origin in (Any, object):
        return None
    if origin is tuple:
        return list
    if dataclasses.is_dataclass(origin) or typing.is_typeddict(origin):
        return dict
    return types.NoneType if origin is None else origin


@functools.cache
def _unchanged(kind: Any) -> frozenset[type]:
    """The types whose values `_build` always returns as they are."""
    origin, members = _parts(kind)
    is_union = origin in (types.UnionType, typing.Union)
    found = {_json_type(member) for member in (members if is_union else (kind,))}
    return frozenset(t for t in (float, bool, types.NoneType) if t in found or None in found)


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of the fields of a TypedDict or a dataclass, and the names of the required ones."""
    if typing.is_typeddict(kind):
        return typing.get_type_hints(kind), kind.__required_keys__
    if not dataclasses.is_dataclass(kind):
        return {}, frozenset()
    fields, hints = [f for f in dataclasses.fields(kind) if f.init], typing.get_type_hints(kind)
    without = dataclasses.MISSING
    required = (f.name for f in fields if f.default is without and f.default_factory is without)
    return {f.name: hints[f.name] for f in fields}, frozenset(required)


@functools.cache
def _describe(kind: Any) -> str:
    origin, members = _parts(kind)
    if origin in (types.UnionType, typing.Union):
        names = [_describe(member) for member in members]
        if int in members and float in members:
            names.remove(_NAMES[int])
        return " or ".join(names)
    expected = _json_type(kind)
    return "a value" if expected is None else _NAMES[expected]
