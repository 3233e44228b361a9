"""Configuration and sweep files: how they are found, by name or path, and run.

A checkout has the shipped files in `configs/`; the wheel installs that folder as
`mbv3_jax/_shipped/configs`. They are found by name from any working directory: "small",
"search/small", and for sweeps "ablations/stem" or "stem". The path of any file works as well, and
"configs/small.py" means the shipped file where the working directory has no such file.
"""

import difflib
import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from mbv3_jax.core.errors import UsageError

_PACKAGE = Path(__file__).resolve().parents[1]
# The folder that holds configs/.
_INSTALLED = _PACKAGE / "_shipped"
SHIPPED = (_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent) / "configs"

# By the function that a file defines: the option that names such files, what they are called, and
# the folders below configs/ in which a bare name is looked up.
_KINDS = {
    "get_config": ("--config", "configuration", ("",)),
    "get_sweep": ("--sweep", "sweep", ("", "ablations")),
}


def split_argument(text: str) -> tuple[str, str]:
    """("small", "imagenet") for "small:imagenet"; without a colon the argument is ""."""
    name, _, argument = text.partition(":")
    return name, argument


def find_file(name: str, function: str) -> Path:
    """The Python file that a user means.

    Args:
      name: a path that ends in .py, or the name of a shipped file.
      function: what the file defines: "get_config" or "get_sweep".

    Raises:
      UsageError: there is no such file; the message lists the shipped ones.
    """
    option, kind, folders = _KINDS[function]
    path = Path(name)
    if path.suffix == ".py":
        shipped = SHIPPED.parent / path
        if path.is_file():
            return path
        if path.parts[0] == SHIPPED.name and shipped.is_file():
            return shipped
        raise UsageError(f"{option}: no Python file {name!r}; {_choices(name, function)}")
    for folder in folders:
        shipped = SHIPPED / folder / f"{name}.py"
        if _is_below_shipped(shipped) and _defines(shipped, function):
            return shipped
    raise UsageError(f"{option}: no {kind} is named {name!r}; {_choices(name, function)}")


def shipped_names(function: str) -> list[str]:
    """The names of the shipped files that define a function, sorted."""
    return sorted(
        path.relative_to(SHIPPED).with_suffix("").as_posix()
        for path in SHIPPED.rglob("*.py")
        if _defines(path, function)
    )


def _is_below_shipped(path: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(SHIPPED.resolve())


def _defines(path: Path, function: str) -> bool:
    return re.search(rf"^def {function}\(", path.read_text(), re.MULTILINE) is not None


def _choices(name: str, function: str) -> str:
    """The shipped names that are nearest to `name`, and all of them, for a message."""
    names = shipped_names(function)
    by_stem = {text.rpartition("/")[2]: text for text in reversed(names)} | {n: n for n in names}
    wanted = name.removesuffix(".py").removeprefix(f"{SHIPPED.name}/")
    near = difflib.get_close_matches(wanted, by_stem, cutoff=0.6)
    suggestion = " or ".join(dict.fromkeys(by_stem[text] for text in near))
    start = f"did you mean {suggestion}? The" if suggestion else "the"
    return f"{start} shipped ones are {', '.join(names)}; or give the path of a .py file"


def call_file(text: str, function: str) -> object:
    """Runs a configuration or sweep file and calls its function with the argument.

    Args:
      text: NAME or PATH, and after a colon the argument: "small:imagenet".
      function: "get_config" or "get_sweep".

    Returns:
      What the function returns.

    Raises:
      UsageError: there is no such file, it fails, or it takes no argument or needs one.
    """
    option, *_ = _KINDS[function]
    name, argument = split_argument(text)
    path = find_file(name, function)
    try:
        call = _function_of(path, function)
        parameters = list(inspect.signature(call).parameters.values())
        if argument and not parameters:
            raise ValueError(f"it takes no argument, got {argument!r}")
        if not argument and parameters and parameters[0].default is inspect.Parameter.empty:
            # The docstring lists what the argument can be.
            meaning = (inspect.getdoc(call) or "").partition("argument:")[2]
            where = f"it needs an argument: {option}={text}:ARGUMENT"
            raise ValueError(f"{where} with {' '.join(meaning.split())}" if meaning else where)
        return call(argument) if argument else call()
    except Exception as e:  # whatever the file does
        kind = "" if isinstance(e, ValueError) else f"{type(e).__name__}: "
        raise UsageError(f"{option}={text}: {kind}{e}") from e


def _function_of(path: Path, name: str) -> Callable:
    make_importable()
    module = run_file(path)
    function = getattr(module, name, None)
    if function is None:
        raise ValueError(f"it is not a {_KINDS[name][1]} file: it has no {name}(argument)")
    return function


def run_file(path: Path) -> ModuleType:
    """Runs a Python file, each time that it is called, and returns the module."""
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def make_importable() -> None:
    """Lets files write `from configs import common`, wherever they and the process are.

    The shipped folder comes first in the search path of the package `configs`; a folder or
    package of that name which the user has comes after it.
    """
    try:
        package = importlib.import_module(SHIPPED.name)
    except ModuleNotFoundError as e:
        if e.name != SHIPPED.name:
            raise
        package_spec = importlib.machinery.ModuleSpec(SHIPPED.name, None, is_package=True)
        package = importlib.util.module_from_spec(package_spec)
        sys.modules[SHIPPED.name] = package
    shipped, paths = str(SHIPPED), list(getattr(package, "__path__", ()))
    if paths[:1] != [shipped]:
        package.__path__ = [shipped, *(path for path in paths if path != shipped)]
