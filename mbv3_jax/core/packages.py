"""The packages of requirements-export.txt, which only exports need."""

import importlib
import importlib.util
import os
from types import ModuleType

from mbv3_jax.core.errors import UsageError


def need(module: str, what: str) -> ModuleType:
    """Imports a module of an extra package.

    Raises:
      UsageError: it is not installed; the message says how it is.
    """
    # The C++ of litert-converter greets on standard error; warnings stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UsageError(
            f"{what} needs {module.partition('.')[0]} ({e}): pip install -r requirements-export.txt"
        ) from e


def installed(*modules: str) -> bool:
    """Whether all of them can be imported; they are not."""
    return all(importlib.util.find_spec(module) for module in modules)
