"""Configurations: read from a file with overrides, compared, and turned into a network.

A configuration is a locked `ml_collections.ConfigDict` made by a file's `get_config(argument)`.
Its fields are listed with their meaning in `configs/common.py`. ConfigDicts stop in this module
and `experiment.py`; everything below takes typed arguments.
"""

import importlib.util
import inspect
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from mbv3_jax.arch import NetSpec, build
from mbv3_jax.train.errors import UsageError


def parse(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a configuration.

    Args:
      config: path of a Python file with `get_config(argument: str)`, and after a colon the
        argument: "configs/small.py" or "configs/small.py:imagenet".
      overrides: flags such as "--config.seed=1" or "--config.net.width=0.5".

    Returns:
      The configuration, locked.

    Raises:
      UsageError: no such file, an argument it does not take, an unknown field (the valid ones
        are listed), or a value of the wrong type.
    """
    path, _, _ = config.partition(":")
    if not Path(path).is_file():
        raise UsageError(f"--config: no file {path!r}; see configs/ for those there are")
    registry = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=registry)
    try:
        _check_fields(_load(config), overrides)
        registry([path, f"--config={config}", *overrides])
        return registry.config
    except flags.UnrecognizedFlagError as e:
        raise UsageError(
            f"unknown option --{e.flagname}; fields are set as --config.NAME=VALUE"
        ) from e
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
        raise UsageError(f"--config={config}: {str(e).strip().splitlines()[-1]}") from e


def _load(config: str) -> ConfigDict:
    path, _, argument = config.partition(":")
    module_spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} defines no get_config(argument)")
    takes_argument = bool(inspect.signature(module.get_config).parameters)
    if argument and not takes_argument:
        raise ValueError(f"{path} takes no argument, got {argument!r}")
    return module.get_config(argument) if argument else module.get_config()


def _check_fields(config: ConfigDict, overrides: Sequence[str]) -> None:
    """ml_collections suggests one near name for a wrong one; this lists all."""
    for override in overrides:
        name = override.lstrip("-").partition("=")[0]
        if not name.startswith("config."):
            continue
        node, walked = config, []
        for part in name.split(".")[1:]:
            if not isinstance(node, ConfigDict) or part not in node:
                where = ".".join(["config", *walked])
                names = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "none"
                raise ValueError(f"--{name}: {where} has no field {part!r}; its fields: {names}")
            node = node[part]
            walked.append(part)
        if isinstance(node, ConfigDict):
            raise ValueError(f"--{name}: a group of fields; set one of: {', '.join(sorted(node))}")


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON text; `from_json` gives back an equal one."""
    return json.dumps(config.to_dict(), indent=1)


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote, locked."""
    return ConfigDict(json.loads(text)).lock()


def flatten(config: ConfigDict) -> dict[str, object]:
    """Every field by its dotted path."""

    def walk(node, path):
        for name, value in node.items():
            inner = f"{path}{name}"
            if isinstance(value, dict):
                yield from walk(value, inner + ".")
            else:
                yield inner, value

    return dict(walk(json.loads(to_json(config)), ""))


def differences(ours: ConfigDict, theirs: ConfigDict) -> dict[str, tuple]:
    """The fields that differ: dotted path -> (value in `ours`, value in `theirs`)."""
    a, b = flatten(ours), flatten(theirs)
    absent = "(absent)"
    return {
        path: (a.get(path, absent), b.get(path, absent))
        for path in sorted(a.keys() | b.keys())
        if a.get(path, absent) != b.get(path, absent)
    }


def spec_of(config: ConfigDict) -> NetSpec:
    """The network that a configuration asks for; `config.net` holds the arguments of `build`.

    Raises:
      UsageError: an option is unknown or out of range.
    """
    options = config.net.to_dict()
    known = inspect.signature(build).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(
            f"config.net: unknown fields {', '.join(unknown)}; they are {', '.join(known)}"
        )
    try:
        return build(**options)
    except ValueError as e:
        raise UsageError(f"config.net.{e}") from e
