"""Functions chosen by name and called with checked options, so that no option is ever ignored.

A registry is a dict from names to factories. What the code supplies is positional in a factory's
signature, what a person may set is keyword-only; the signature is the only list of options:

    def _cosine(plan, *, final_lr_factor=0.0): ...

    call_with_options("schedule", {"cosine": _cosine}, "cosine", {"final_lr_factor": 0.1}, plan)
"""

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping


def choose(path: str, got, choices: Iterable):
    """Returns `got` if it is one of `choices`; else raises ValueError naming `path` and them."""
    choices = tuple(choices)
    if got not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{path}: got {got!r}, expected one of {listed}")
    return got


def flag(path: str, got) -> bool:
    """Returns `got` if it is True or False; else raises ValueError naming `path`."""
    if not isinstance(got, bool):
        raise ValueError(f"{path}: got {got!r}, expected True or False")
    return got


def option_names(factory: Callable) -> tuple[str, ...]:
    """The options of `factory`: its keyword-only parameters, sorted."""
    parameters = inspect.signature(factory).parameters.values()
    return tuple(sorted(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))


def call_with_options(
    path: str, registry: Mapping[str, Callable], name: str, options: Mapping, *args
):
    """Returns `registry[name](*args, **options)`; options that are None count as not given.

    None is "not given" so that a configuration can list an option without choosing its value.

    Args:
      path: where the choice stands in the configuration, for messages: "schedule".
      registry: name -> factory with keyword-only options.
      name: which factory to call.
      options: option name -> value.
      *args: what the factory takes positionally.

    Raises:
      ValueError: an unknown name, an option that this factory does not have, or one that it
        requires and did not get. The message lists the valid ones.
    """
    factory = registry[choose(path, name, registry)]
    given = {key: value for key, value in options.items() if value is not None}
    known = option_names(factory)
    listed = ", ".join(known) or "none"
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"{path}: {name!r} has no option {', '.join(unknown)}; its options: {listed}"
        )
    parameters = inspect.signature(factory).parameters
    missing = [key for key in known if key not in given and _required(parameters[key])]
    if missing:
        raise ValueError(f"{path}: {name!r} needs {', '.join(missing)}; its options: {listed}")
    return factory(*args, **given)


def check_number(
    path: str,
    got,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> float:
    """Returns `got` as a float if it is a finite real number within the bounds.

    Raises:
      ValueError: it is not; the message has `path`, the value and the bounds.
    """
    ok = isinstance(got, numbers.Real) and not isinstance(got, bool) and math.isfinite(got)
    ok = ok and (at_least is None or got >= at_least) and (above is None or got > above)
    ok = ok and (at_most is None or got <= at_most) and (below is None or got < below)
    if not ok:
        bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
        wanted = " and ".join(f"{word} {b:g}" for word, b in bounds.items() if b is not None)
        raise ValueError(f"{path}: got {got!r}, expected a number {wanted}".rstrip())
    return float(got)


def check_whole(
    path: str, got, at_least: int, at_most: int | None = None, odd: bool = False
) -> int:
    """Returns `got` as an int if it is a whole number within the bounds.

    Raises:
      ValueError: it is not; the message has `path`, the value and the bounds.
    """
    ok = isinstance(got, numbers.Integral) and not isinstance(got, bool) and got >= at_least
    if not ok or (at_most is not None and got > at_most) or (odd and got % 2 == 0):
        wanted = f"{'an odd' if odd else 'a'} whole number of at least {at_least}"
        wanted += f" and at most {at_most}" if at_most is not None else ""
        raise ValueError(f"{path}: got {got!r}, expected {wanted}")
    return int(got)


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty
