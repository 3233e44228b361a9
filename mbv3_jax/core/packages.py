"""Packages that are imported only when they are used: optional ones, and ones slow to import."""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

from mbv3_jax.core.errors import UsageError


def need(module: str, what: str, *, requirements: str = "requirements-export.txt") -> ModuleType:
    """Imports a module of an optional package.

    Args:
      module: the module.
      what: the feature that needs it, for the message.
      requirements: the file that lists the package.

    Raises:
      UsageError: the module cannot be imported; the message says how to install it.
    """
    # The C++ of litert-converter greets on standard error; warnings stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UsageError(
            f"{what} needs {module.partition('.')[0]} ({e}): pip install -r {requirements}"
        ) from e


def installed(*modules: str) -> bool:
    """Whether all of them can be imported; they are not."""
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
