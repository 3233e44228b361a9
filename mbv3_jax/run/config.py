"""Configurations: read from a file with overrides, compared, and turned into a network.

A configuration is a locked `ml_collections.ConfigDict` made by a file's `get_config(argument)`.
Its fields are listed with their meaning in `configs/common.py`. ConfigDicts end in this module, in
`folder.py` and `checkpoint.py`, which store them, and in `train/plan.py`, which turns them into a
typed plan; everything else takes typed arguments.
"""

import difflib
import functools
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from operator import getitem
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from mbv3_jax.arch import NetSpec, build
from mbv3_jax.arch.spec import spec_from_json
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.files import expand_user, read_bytes
from mbv3_jax.core.json_values import Number, as_type, parse_json
from mbv3_jax.run.shipped import call_file, find_file, split_argument

# Fields of config.net that are None where config.init brings the network: as they are there.
INIT_FIELDS = ("name", "resolution", "bn_decay", "dropout", "drop_path")
# Fields of config.net that may change the network of config.spec; None: as in the file.
_SPEC_FIELDS = (*INIT_FIELDS[1:], "in_channels", "padding", "bn_eps")

# Runs that differ only in where the data lies, who reads it, what happens when that fails, where
# the optimizer's state lies, and who else keeps a record are the same run.
_SAME_RUN = {
    f"data.{name}"
    for name in ("data_dir", "num_workers", "num_threads", "prefetch_batches", "on_error")
} | {"compute.shard_optimizer", "on_damaged", "profile", "tracker"}


def parse_config(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a configuration.

    Args:
      config: name of a shipped file, or path of a Python file with `get_config(argument: str)`,
        and after a colon the argument: "small", "configs/small.py" or "small:imagenet".
      overrides: flags such as "--config.seed=1" or "--config.net.width=0.5". Optional fields also
        take "None".

    Returns:
      The configuration, locked.

    Raises:
      UsageError: there is no such file, it fails, it does not take the argument, or a flag has an
        unknown field (the valid ones are listed) or a value of the wrong type.
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


# What people call fields elsewhere.
_ELSEWHERE = {
    "batchsize": "batch_size",
    "dataset": "data.name",
    "epochs": "total_epochs",
    "learningrate": "schedule.base_lr",
    "lr": "schedule.base_lr",
    "model": "net.name",
    "momentum": "optimizer.momentum",
    "steps": "total_steps",
    "warmup": "schedule.warmup_epochs",
    "wd": "optimizer.weight_decay",
    "workers": "data.num_workers",
}


def _near(path: Sequence[str], fields: Sequence[str]) -> str:
    """The flag of the field that an unknown path probably means; "" if none is near."""

    def plain(name: str) -> str:
        return name.replace(".", "").replace("_", "").lower()

    wanted = {plain(path[-1]), plain(".".join(path))}
    known: dict[str, str] = {}
    for field in sorted(fields, key=lambda f: (f.count("."), f)):  # outer ones before others
        for name in (plain(field), plain(field.rpartition(".")[2])):
            known.setdefault(name, field)
    known = {name: field for name, field in _ELSEWHERE.items() if field in fields} | known
    close = [n for w in wanted for n in difflib.get_close_matches(w, known, n=1, cutoff=0.8)]
    found = sorted(wanted & known.keys()) or close
    return f"--config.{known[found[0]]}" if found else ""


def _clears(override: str, config: ConfigDict) -> bool:
    """Whether the override sets a field to None.

    Raises:
      UsageError: the field does not exist (one like it in any group is suggested, or else all of
        its group are listed), or it cannot be None.
    """
    path = _field_path(override)
    if not path:
        return False
    node = config
    for i, part in enumerate(path):
        if not isinstance(node, ConfigDict) or part not in node:
            where = ".".join(["config", *path[:i]])
            names = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "none"
            near = _near(path, [*flatten_config(config)])
            advice = f"did you mean {near}?" if near else f"its fields: {names}"
            raise UsageError(f"{override}: {where} has no field {part!r}; {advice}")
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
    """Absl's message for a value that it cannot parse, with the type that the value should have."""
    match = re.match(r"flag (--\S+?)=(.*?): ", message)
    if not match:
        return message
    *groups, name = _field_path(match[1])
    kind = functools.reduce(getitem, groups, config).get_type(name).__name__
    return f"{match[1]}: got {match[2]!r}, expected a value of type {kind}"


def config_to_json(config: ConfigDict) -> str:
    """The configuration as JSON text; `config_from_json` reads back an equal one."""
    return json.dumps(config.to_dict(), indent=1)


def config_from_json(text: str | bytes) -> ConfigDict:
    """Reads what `config_to_json` wrote, now or in an older version, and locks it.

    Tuples have become lists. What an older version wrote is read as it would be written now.

    Raises:
      ValueError: the text is not a JSON object, or an empty one.
    """
    tree = parse_json(text, dict)
    if not tree:
        raise ValueError("got {}, expected the fields of a configuration")
    _upgrade(tree)
    return ConfigDict(tree).lock()


class _Compute(TypedDict):
    dtype: str
    depthwise: str


class _Data(TypedDict):
    name: str
    crop_fraction: Number | None
    interpolation: str | None
    central: str | None
    exif_rotate: bool | None


class _Augment(TypedDict):
    normalize: str | None


class _Training(TypedDict):
    """The fields that readers of a run need; `train.plan` itself reports what it lacks."""

    seed: int
    seeds: NotRequired[list[int] | None]
    net: dict
    spec: NotRequired[str | None]
    init: str | None
    finetune: NotRequired[dict]
    quant: NotRequired[dict]
    compute: _Compute
    data: _Data
    augment: _Augment
    optimizer: dict
    schedule: dict
    loss: NotRequired[dict]
    batch_size: int
    ema_decay: Number | None
    average_epochs: NotRequired[Number | None]
    keep_best: bool
    keep_best_metric: NotRequired[str | None]
    early_stop: NotRequired[dict]


class _Search(TypedDict):
    program: str
    brief: NotRequired[_Training]


def complete_config_from_json(text: str | bytes) -> ConfigDict:
    """Like `config_from_json`, for a configuration that is used, and not only compared.

    Raises:
      ValueError: the text is not such a JSON object; the message names the field.
    """
    tree = parse_json(text, dict)
    as_type(tree, _Search if "program" in tree else _Training)
    return config_from_json(text)


def _upgrade(tree: dict[str, Any]) -> None:
    """Fills in what a training configuration of an older version lacks, also within a search.

    Fields that have been added since get their defaults here unless that is None: an absent field
    and None are the same, see `config_differences`.
    """
    for value in tree.values():
        if isinstance(value, dict):
            _upgrade(value)
    if {"optimizer", "schedule"} <= tree.keys():
        tree.setdefault("loss", {"name": "cross_entropy"})  # since version 2
    compute = tree.get("compute")
    if isinstance(compute, dict) and compute.get("depthwise") == "pallas":  # until version 1
        compute["depthwise"] = "auto"


def flatten_config(config: ConfigDict) -> dict[str, object]:
    """Every field by its dotted path."""

    def walk(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, object]]:
        for name, value in node.items():
            inner = f"{path}{name}"
            if isinstance(value, dict):
                yield from walk(value, inner + ".")
            else:
                yield inner, value

    return dict(walk(parse_json(config_to_json(config), dict), ""))


def is_multi_label(config: ConfigDict) -> bool:
    """Whether a run has several labels per image: its loss is then binary cross-entropy."""
    loss = config.get("loss")  # of a search there is none
    return loss is not None and loss.get("name") == "bce"


def need_one_label(config: ConfigDict, what: str) -> None:
    """Checks that a run has one label per image, because something compares its top-1.

    Args:
      config: of the run.
      what: what compares it, for the message: "a sweep".

    Raises:
      UsageError: it has several.
    """
    if is_multi_label(config):
        raise UsageError(
            f"config: loss.name: got 'bce', but {what} compares top-1, which networks of several "
            "labels per image do not have"
        )


def same_fields(config: ConfigDict, other: ConfigDict) -> bool:
    """Whether two configurations have the same values, in any order; None means "not given"."""
    first, second = (
        {path: value for path, value in flatten_config(one).items() if value is not None}
        for one in (config, other)
    )
    return first == second


def config_differences(config: ConfigDict, other: ConfigDict) -> dict[str, tuple[object, object]]:
    """The fields that make two runs different: dotted path -> the two values.

    A field that only one of them has, because the other was written before the field existed or
    because only one was read where an optimizer of the user's own is registered, counts as None
    there, which means "not given".
    """
    first, second = flatten_config(config), flatten_config(other)
    pairs = {
        path: (first.get(path), second.get(path))
        for path in sorted(first.keys() | second.keys())
        # Of a search's configuration, the field without the group that holds a training's.
        if not {path, path.partition(".")[2]} & _SAME_RUN
    }
    absent = "(absent)"
    return {
        path: (first.get(path, absent), second.get(path, absent))
        for path, (a, b) in pairs.items()
        if a != b
    }


def spec_of(config: ConfigDict, *, num_classes: int = 1000) -> NetSpec:
    """The network that a configuration asks for.

    `config.net` holds the arguments of `build`; with `config.spec` the network is that of the
    file, and config.net may change only what is not a layer of it.

    Args:
      config: the configuration.
      num_classes: how many if config.net.num_classes is None: as many as the data has.

    Raises:
      UsageError: an option is unknown or out of range, or the file does not hold a network.
    """
    options = config.net.to_dict()
    parameters = inspect.signature(build).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise UsageError(
            f"config.net: unknown fields {', '.join(unknown)}; they are {', '.join(parameters)}"
        )
    if options.get("num_classes") is None:
        options["num_classes"] = num_classes
    file = config.get("spec")  # runs of older versions have no such field
    if file is not None:
        if config.init is not None:
            raise UsageError(
                "config.spec: got a file, but config.init has a network too; set only one"
            )
        path = expand_user(file, "config.spec", error=UsageError)
        return _spec_of_file(path, options, parameters)
    if config.init is None and None in [options[name] for name in INIT_FIELDS]:
        raise UsageError(
            "config.init: got None, expected the folder to start from: a run folder or an import "
            "folder, as --config.init=DIR"
        )
    try:
        return build(**options)
    except ValueError as e:
        raise UsageError(f"config.net.{e}") from e


def _spec_of_file(
    file: Path, options: dict[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> NetSpec:
    try:
        spec = spec_from_json(read_bytes(file))
    except (OSError, ValueError) as e:
        raise UsageError(f"config.spec: {file}: {getattr(e, 'strerror', None) or e}") from e
    if options.pop("name") not in (None, spec.name):
        raise UsageError(f"config.net.name: None is the network of {file}, a {spec.name}")
    changes = {name: options.pop(name) for name in (*_SPEC_FIELDS, "num_classes")}
    for name, value in options.items():
        if value not in (None, parameters[name].default):
            raise UsageError(
                f"config.net.{name}: got {value!r}, but the network is that of config.spec={file}; "
                f"leave it at {parameters[name].default!r}"
            )
    try:
        return spec.replace(**{k: v for k, v in changes.items() if v is not None})
    except ValueError as e:
        raise UsageError(f"config.net.{e}") from e
