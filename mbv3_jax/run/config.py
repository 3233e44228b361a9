"""How long something lasts, in the unit that its author prefers, as a number of steps."""

import functools
import inspect
import json
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from operator import getitem
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from mbv3_jax.arch import NetSpec, build
from mbv3_jax.arch.spec import spec_from_json
from mbv3_jax.core.checks import check_number, check_whole
from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.shipped import call_file, find_file, split_argument


def to_steps(
    name: str,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    examples: int | None = None,
    batch_size: int,
    train_examples: int,
) -> int:
    """Converts a duration, given in exactly one unit, to steps.

    Epochs and examples are rounded up to whole steps: a run sees at least what it was asked to
    see, and no duration above zero becomes zero steps. The arithmetic is exact, on the decimal
    number as written: 2.4 epochs of 1000 examples are 2400 examples, never 2400.0000000000005.

    Args:
      name: what lasts, for messages: "warmup" stands for the fields warmup_steps,
        warmup_epochs and warmup_examples.
      steps: optimizer steps.
      epochs: passes over the training set; may be fractional.
      examples: training examples.
      batch_size: examples a step, over all devices.
      train_examples: examples an epoch.

    Returns:
      Steps, at least 0.

    Raises:
      ValueError: not exactly one unit is given, or a value is negative or not finite.
    """
    check_whole("batch_size", batch_size, at_least=1)
    check_whole("train_examples", train_examples, at_least=1)
    units = {f"{name}_steps": steps, f"{name}_epochs": epochs, f"{name}_examples": examples}
    given = {field: value for field, value in units.items() if value is not None}
    if len(given) != 1:
        got = ", ".join(f"{field}={value!r}" for field, value in given.items()) or "none"
        raise ValueError(f"{name}: got {got}, expected exactly one of {', '.join(units)}")
    (field,) = given
    if steps is not None:
        return check_whole(field, steps, at_least=0)
    if examples is not None:
        seen = Fraction(check_whole(field, examples, at_least=0))
    else:
        # repr of a float is the shortest decimal that reads back as it: the number as typed.
        seen = Fraction(repr(check_number(field, epochs, at_least=0))) * train_examples
    return math.ceil(seen / batch_size)


# Configurations: read from a file with overrides, compared, and turned into a network.
#
# A configuration is a locked `ml_collections.ConfigDict` made by a file's `get_config(argument)`.
# Its fields are listed with their meaning in `configs/common.py`. ConfigDicts stop in this module
# and `experiment.py`; everything below takes typed arguments.


def parse_config(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a configuration.

    Args:
      config: name of a shipped file, or path of a Python file with `get_config(argument: str)`,
        and after a colon the argument: "small", "configs/small.py" or "small:imagenet".
      overrides: flags such as "--config.seed=1" or "--config.net.width=0.5". Fields that need
        not be given take "None" too.

    Returns:
      The configuration, locked.

    Raises:
      UsageError: no such file, one that fails, an argument it does not take, an unknown field
        (the valid ones are listed), or a value of the wrong type.
    """
    loaded = _load(config)
    name, argument = split_argument(config)
    path = str(find_file(name, "get_config"))
    file = f"{path}:{argument}" if argument else path
    cleared = [name for name in overrides if _clears(name, loaded)]
    arguments = [path, f"--config={file}", *(o for o in overrides if o not in cleared)]
    registry = flags.FlagValues()
    # ml_collections looks for overrides in sys.argv unless it is given the arguments. Its
    # DEFINE_config_dict would save reading the file again, but writes the whole default as YAML.
    config_flags.DEFINE_config_file("config", flag_values=registry, sys_argv=arguments)
    try:
        surplus = registry(arguments)[1:]
    except flags.UnrecognizedFlagError as e:
        surplus = [f"--{e.flagname}"]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
        raise UsageError(_wrong_value(str(e).strip().splitlines()[-1], loaded)) from e
    if surplus:
        raise UsageError(f"unknown option {surplus[0]}; fields are set as --config.NAME=VALUE")
    for override in cleared:
        *groups, name = _field_path(override)
        functools.reduce(getitem, groups, registry.config)[name] = None
    return registry.config


def _load(config: str) -> ConfigDict:
    loaded = call_file(config, "get_config")
    if not isinstance(loaded, ConfigDict):
        raise UsageError(
            f"--config={config}: get_config returned {loaded!r}, expected a ConfigDict"
        )
    return loaded


def _field_path(override: str) -> list[str]:
    """["net", "width"] for "--config.net.width=1"; empty for what overrides no field."""
    name = override.lstrip("-").partition("=")[0]
    root, *path = name.removeprefix("no").split(".")  # --noconfig.flip is --config.flip=False
    return path if root == "config" else []


def _clears(override: str, config: ConfigDict) -> bool:
    """Whether the override sets a field to None.

    Raises:
      UsageError: there is no such field (ml_collections suggests one near name, this lists all),
        or it cannot be None.
    """
    path = _field_path(override)
    if not path:
        return False
    node = config
    for i, part in enumerate(path):
        if not isinstance(node, ConfigDict) or part not in node:
            where = ".".join(["config", *path[:i]])
            names = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "none"
            raise UsageError(f"{override}: {where} has no field {part!r}; its fields: {names}")
        group, node = node, node[part]
    if isinstance(node, ConfigDict):
        raise UsageError(f"{override}: a group of fields; set one of: {', '.join(sorted(node))}")
    if override.partition("=")[2] != "None":
        return False
    if not isinstance(dict(group.items(preserve_field_references=True))[part], FieldReference):
        kind = group.get_type(part).__name__
        raise UsageError(f"{override}: got None, expected a value of type {kind}")
    return True


def _wrong_value(message: str, config: ConfigDict) -> str:
    """The message of absl for a value that it cannot parse, with the type that it should have."""
    match = re.match(r"flag (--\S+?)=(.*?): ", message)
    if not match:
        return message
    *groups, name = _field_path(match[1])
    kind = functools.reduce(getitem, groups, config).get_type(name).__name__
    return f"{match[1]}: got {match[2]!r}, expected a value of type {kind}"


def config_to_json(config: ConfigDict) -> str:
    """The configuration as JSON text; `from_json` gives back one without `differences`."""
    return json.dumps(config.to_dict(), indent=1)


def config_from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote, locked; tuples have become lists.

    Raises:
      ValueError: it is no JSON object.
    """
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise ValueError(f"got {tree!r}, expected a JSON object")
    return ConfigDict(tree).lock()


def flatten_config(config: ConfigDict) -> dict[str, object]:
    """Every field by its dotted path."""

    def walk(node, path):
        for name, value in node.items():
            inner = f"{path}{name}"
            if isinstance(value, dict):
                yield from walk(value, inner + ".")
            else:
                yield inner, value

    return dict(walk(json.loads(config_to_json(config)), ""))


# Where the data lies, who reads it, what to do when that fails, and where the optimizer's state
# lies make no other run of it.
_NO_DIFFERENCE = {
    f"data.{name}"
    for name in ("data_dir", "num_workers", "num_threads", "prefetch_batches", "on_error")
} | {"compute.shard_optimizer"}


def config_differences(ours: ConfigDict, theirs: ConfigDict) -> dict[str, tuple]:
    """The fields that make another run: dotted path -> (value in `ours`, value in `theirs`)."""
    a, b = flatten_config(ours), flatten_config(theirs)
    absent = "(absent)"
    return {
        path: (a.get(path, absent), b.get(path, absent))
        for path in sorted((a.keys() | b.keys()) - _NO_DIFFERENCE)
        if a.get(path, absent) != b.get(path, absent)
    }


OF_INIT = (
    "name",
    "resolution",
    "bn_decay",
    "dropout",
    "drop_path",
)  # None: as config.init has them
# Fields of config.net that may change the network of config.spec; None: as the file has it.
_OF_SPEC = (*OF_INIT[1:], "in_channels", "padding", "bn_eps")


def spec_of(config: ConfigDict, *, num_classes: int = 1000) -> NetSpec:
    """The network that a configuration asks for.

    `config.net` holds the arguments of `build`; with `config.spec` the network is that of the
    file, and config.net may only change what is no layer of it.

    Args:
      config: the configuration.
      num_classes: how many if config.net.num_classes is None: as many as the data has.

    Raises:
      UsageError: an option is unknown or out of range, or the file holds no network.
    """
    options = config.net.to_dict()
    known = inspect.signature(build).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(
            f"config.net: unknown fields {', '.join(unknown)}; they are {', '.join(known)}"
        )
    if options.get("num_classes") is None:
        options["num_classes"] = num_classes
    file = config.get("spec")  # runs of older versions have no such field
    if file is not None:
        if config.init is not None:
            raise UsageError("config.spec: got a file, but config.init brings a network; one only")
        return _spec_of_file(Path(file).expanduser(), options, known)
    if config.init is None and None in [options[name] for name in OF_INIT]:
        raise UsageError(
            "config.init: got None, expected the folder to start from: a run folder or an import "
            "folder, as --config.init=DIR"
        )
    try:
        return build(**options)
    except ValueError as e:
        raise UsageError(f"config.net.{e}") from e


def _spec_of_file(file: Path, options: dict, known) -> NetSpec:
    try:
        spec = spec_from_json(file.read_text())
    except (OSError, ValueError) as e:
        raise UsageError(f"config.spec: {file}: {getattr(e, 'strerror', None) or e}") from e
    if options.pop("name") not in (None, spec.name):
        raise UsageError(f"config.net.name: None is the network of {file}, a {spec.name}")
    changes = {name: options.pop(name) for name in (*_OF_SPEC, "num_classes")}
    for name, value in options.items():
        if value not in (None, known[name].default):
            raise UsageError(
                f"config.net.{name}: got {value!r}, but the network is that of config.spec={file}; "
                f"leave it at {known[name].default!r}"
            )
    try:
        return spec.replace(**{k: v for k, v in changes.items() if v is not None})
    except ValueError as e:
        raise UsageError(f"config.net.{e}") from e
