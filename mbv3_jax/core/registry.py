"""Registries: functions that a configuration chooses by name, with options that are checked.

One decorated factory is a complete entry. Parameters that the code supplies are positional in its
signature, and those that users may set are keyword-only; the signature is the only list of options:

    SCHEDULES = Registry("schedule")

    @SCHEDULES.register("cosine")
    def _cosine(course, *, final_lr_factor: float = 0.0): ...

    SCHEDULES.build("cosine", {"final_lr_factor": 0.1}, course)

`fields` lists the options of all entries with their types, so that a configuration has a field for
each of them: a new entry with a new option needs no edit anywhere else.
"""

import collections.abc
import functools
import importlib.machinery
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from mbv3_jax.core.checks import choose

Factory = TypeVar("Factory", bound=Callable[..., Any])

_PACKAGE = os.path.join(str(Path(__file__).parents[1]), "")  # noqa: PTH118 (ends in a separator)

# What a field of a configuration, and a flag of the command line, can hold.
_FIELD_TYPES = (bool, int, float, str, tuple)


class Registry(Mapping[str, Factory], Generic[Factory]):
    """Factories by name, in the order of their registration.

    Args:
      path: the place of the choice in a configuration, for messages: "schedule".
    """

    def __init__(self, path: str):
        self.path = path
        self._factories: dict[str, Factory] = {}
        self._fields: dict[str, type] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Returns a decorator that adds a factory under a name.

        A configuration file is executed again for every configuration that is read from it, so a
        factory replaces an earlier one that was defined at the same place. An entry of a user's own
        file also replaces one of this package, so that the file keeps working when the package gets
        an entry of that name.

        Raises:
          ValueError: the name is taken, or an option has no type that a field can have, or another
            type than the same option of another entry.
        """

        def add(factory: Factory) -> Factory:
            existing = self._factories.get(name)
            if existing is not None and not _replaces(existing, factory):
                raise ValueError(f"{self.path}: two entries have the name {name!r}")
            fields = _field_types(self.path, name, factory)
            for option, kind in fields.items():
                if self._fields.get(option, kind) is not kind:
                    raise ValueError(
                        f"{self.path}: option {option} of {name!r} is of type {kind.__name__}, "
                        f"that of another entry of type {self._fields[option].__name__}"
                    )
            self._factories[name] = factory
            self._fields |= fields
            return factory

        return add

    def fields(self) -> dict[str, type]:
        """The options of all entries: name -> bool, int, float, str or tuple."""
        return dict(self._fields)

    def bind(self, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
        """An entry with its options, for the code to call; see `bind_options`."""
        return bind_options(self.path, self, name, options)

    def build(self, name: str, options: Mapping[str, Any], *args: Any) -> Any:
        """Calls an entry with its options; raises as `bind_options`."""
        return self.bind(name, options)(*args)

    def __getitem__(self, name: str) -> Factory:
        return self._factories[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)

    def __len__(self) -> int:
        return len(self._factories)


def option_names(factory: Callable) -> tuple[str, ...]:
    """The options of `factory`: its keyword-only parameters, sorted."""
    return tuple(sorted(parameter.name for parameter in _options(factory)))


def call_with_options(
    path: str, registry: Mapping[str, Callable], name: str, options: Mapping[str, Any], *args: Any
) -> Any:
    """Returns `registry[name](*args, **options)`, with checked options; see `bind_options`."""
    return bind_options(path, registry, name, options)(*args)


def bind_options(
    path: str, registry: Mapping[str, Callable], name: str, options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Returns `registry[name]` with its options; those that are None count as not given.

    None is "not given" so that a configuration can list an option without choosing its value.

    Args:
      path: where the choice stands in the configuration, for messages: "schedule".
      registry: name -> factory with keyword-only options.
      name: which factory.
      options: option name -> value.

    Returns:
      A function of what the factory takes positionally.

    Raises:
      ValueError: an unknown name, an option that this factory does not have, or one that it
        requires and did not get. The message lists the valid ones.
    """
    factory = registry[choose(f"{path}.name", name, registry)]
    kwargs = {key: value for key, value in options.items() if value is not None}
    known = option_names(factory)
    listed = ", ".join(known) or "none"
    unknown = sorted(set(kwargs) - set(known))
    if unknown:
        message = f"{path}: {name!r} has no option {', '.join(unknown)}; its options: {listed}"
        if not path.startswith("--"):  # a configuration has set them for another one
            flags = " ".join(f"--config.{path}.{key}=None" for key in unknown)
            message += f"; {flags} {'clears it' if len(unknown) == 1 else 'clear them'}"
        raise ValueError(message)
    required = {p.name for p in _options(factory) if p.default is p.empty}
    missing = sorted(required - set(kwargs))
    if missing:
        raise ValueError(f"{path}: {name!r} needs {', '.join(missing)}; its options: {listed}")
    return functools.partial(factory, **kwargs)


def _options(factory: Callable) -> list[inspect.Parameter]:
    parameters = inspect.signature(factory).parameters.values()
    return [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def definition_place(factory: Callable) -> tuple[str, str]:
    """The file and the qualified name of a function: the same when its file is executed again."""
    function: Any = inspect.unwrap(factory)
    code = getattr(function, "__code__", None)
    file = os.path.abspath(code.co_filename) if code else str(id(function))  # noqa: PTH100
    return file, getattr(function, "__qualname__", "")


def _replaces(existing: Callable, factory: Callable) -> bool:
    """Whether a factory may take the place of another of its name."""
    old, new = definition_place(existing), definition_place(factory)
    return old == new or (old[0].startswith(_PACKAGE) and not new[0].startswith(_PACKAGE))


def _field_types(path: str, name: str, factory: Callable) -> dict[str, type]:
    scope = getattr(inspect.unwrap(factory), "__globals__", {})
    kinds = {}
    for option in _options(factory):
        hint = option.annotation
        if isinstance(hint, str):  # from __future__ import annotations
            hint = eval(hint, scope)
        kind = _field_type(hint)
        if kind is None:
            choices = ", ".join(t.__name__ for t in _FIELD_TYPES)
            raise ValueError(
                f"{path}: option {option.name} of {name!r} needs a type annotation that a field "
                f"of a configuration can have: {choices}"
            )
        kinds[option.name] = kind
    return kinds


def _field_type(hint: Any) -> type | None:
    """The type of the field of an option: `tuple` for any sequence, of a union its first member."""
    if hint in _FIELD_TYPES:
        return hint
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        members = map(_field_type, typing.get_args(hint))
        return next((kind for kind in members if kind is not None), None)
    if origin in (tuple, list, collections.abc.Sequence):
        return tuple
    return None


def pickle_by_value(module: str) -> None:
    """Makes the classes of a module be pickled by value, for worker processes that cannot import
    it.

    The worker processes of the loader are spawned and import a class by the name of its module.
    A file that was loaded by its path, as a configuration file is, has a name that only this
    process knows. (`cloudpickle` does the same for `__main__`, and for a module that is not in
    `sys.modules`.)
    """
    root = module.partition(".")[0]
    if module not in sys.modules or module == "__main__":
        return
    if importlib.machinery.PathFinder.find_spec(root) is None:
        import cloudpickle  # comes with Grain, which the loader needs; most sources do without

        cloudpickle.register_pickle_by_value(sys.modules[module])
