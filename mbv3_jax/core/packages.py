"""Optional packages, imported only when used, and how this package is called and installed."""

import contextlib
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mbv3_jax.core.errors import UsageError

# A checkout has the project file beside the package; an installed package has not.
CHECKOUT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (CHECKOUT / "pyproject.toml").is_file() and (CHECKOUT / "main.py").is_file()


def install(extra: str) -> str:
    """The command that installs an extra of this package, for messages."""
    if not IS_CHECKOUT:
        return f"pip install 'mbv3_jax[{extra}]'"
    where = "." if Path.cwd() == CHECKOUT else CHECKOUT
    return f"pip install -e {shlex.quote(f'{where}[{extra}]')}"


def program() -> str:
    """How to write a command: `mbv3` if the user does, else what works without installation."""
    return "mbv3" if Path(sys.argv[0]).stem == "mbv3" else "python -m mbv3_jax"


def need(module: str, what: str, extra: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
      module: its dotted name.
      what: what needs it, for the message: "TFLite", "reading .pth".
      extra: the extra of pyproject.toml that installs it.

    Raises:
      UsageError: it is not installed; the message has the command that installs it.
    """
    # The C++ of litert-converter prints a greeting on standard error at a lower level.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    try:
        return importlib.import_module(module)
    except ImportError as e:
        package = module.partition(".")[0]
        # Anything but "No module named ..." of the package itself: it is there, but incomplete, or
        # it does not fit another package.
        is_missing = (getattr(e, "name", None) or "").partition(".")[0] == package
        why = "" if is_missing else f" ({e})"
        raise UsageError(f"{what} needs {package}{why}: {install(extra)}") from e


@contextlib.contextmanager
def hidden(package: str) -> Iterator[None]:
    """Makes a package look as if it were not installed to packages that import it if they can."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # what Python itself writes for this
    try:
        yield
    finally:
        del sys.modules[package]


def installed(*modules: str) -> bool:
    """Whether all of these modules can be found, without importing them."""
    return all(importlib.util.find_spec(module) for module in modules)


class LazyModule:
    """Stands in for a module, which is imported at the first use of one of its names.

    For modules whose signatures a configuration needs (`registry.Registry.fields`), but which
    use JAX: importing JAX takes ten times as long as reading a configuration.
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
