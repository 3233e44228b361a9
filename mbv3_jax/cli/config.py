"""mbv3 config: every field of a configuration, with its value, who set it and what it means.

The meanings are taken from the code: from the comments in the configuration files, and from the
docstrings of the functions that take the fields as arguments.
"""

import argparse
import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mbv3_jax.core.errors import UsageError, printable
from mbv3_jax.core.registry import Registry, option_names
from mbv3_jax.run.config import flatten_config, parse_config
from mbv3_jax.run.shipped import SHIPPED, find_file, run_file, split_argument

_COMMON = SHIPPED / "common.py"
# Groups of a search's configuration that hold the fields of a training each.
_TRAININGS = ("shared.", "brief.", "final.")
_ITEM = re.compile(r"( +)([a-z0-9_]+(?:, [a-z0-9_]+)*): (.+)")


def add_parsers(commands) -> None:
    """Adds `config` to the subparsers; `run_command(flags, overrides)` returns an exit code."""
    parser = commands.add_parser(
        "config", help="list the fields of a configuration, with values and meanings"
    )
    parser.add_argument("--config", required=True, help="as for train; its fields can be set, too")
    parser.add_argument(
        "part", nargs="*", metavar="PART", help="only fields whose names contain one of these"
    )
    parser.set_defaults(run_command=_run)


def _run(flags: argparse.Namespace, overrides: Sequence[str]) -> int:
    config = parse_config(flags.config, overrides)
    values = flatten_config(config)
    shown = [f for f in values if not flags.part or any(part in f for part in flags.part)]
    if not shown:
        raise UsageError(f"no field of {flags.config} contains {' or '.join(flags.part)}")
    set_here = {re.sub(r"^--(no)?config\.", "", o.partition("=")[0]) for o in overrides}
    defaults, meanings = _defaults(), meanings_of(flags.config, [*values])
    table = Table(box=None, pad_edge=False, expand=False)
    for name in ("field", "value", "set by", "meaning"):
        table.add_column(name, overflow="fold", no_wrap=name == "field")
    for field in shown:
        default = defaults.get(_in_training(field), "(absent)")
        by = "command" if field in set_here else "" if default == values[field] else flags.config
        cells = field, repr(values[field]), by, meanings.get(field) or ""
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console = Console(highlight=False)
    Console(highlight=False, width=console.width if console.is_terminal else 160).print(table)
    return 0


def _defaults() -> dict[str, object]:
    """The fields of a training with their values before a network or a recipe has changed them."""
    common = run_file(_COMMON)
    return flatten_config(common.default("mobilenet_v3_small"))


def meanings_of(config: str, fields: Sequence[str]) -> dict[str, str]:
    """What each field of a configuration means; "" if the code does not say.

    Args:
      config: the configuration, as --config takes it.
      fields: their dotted paths.

    Raises:
      UsageError: there is no such configuration.
    """
    comments = _from_comments(_COMMON)
    comments |= _from_comments(find_file(split_argument(config)[0], "get_config"))
    docstrings, options = _from_docstrings(), _of_entries()

    def meaning(field: str) -> str:
        texts = (docstrings.get(field, ""), comments.get(field, ""), options.get(field, ""))
        return "; ".join(text.rstrip(".") for text in texts if text)

    def first(field: str) -> str:
        of_group = comments.get(field.rpartition(".")[0], "")
        return meaning(field) or meaning(_in_training(field)) or of_group

    return {field: first(field) for field in fields}


def _in_training(field: str) -> str:
    """The field of a training that a field of a search's configuration is."""
    for group in _TRAININGS:
        if field.startswith(group):
            return field.removeprefix(group)
    return field


def _from_comments(path: Path) -> dict[str, str]:
    """The comments on fields of a configuration file: at the end of their line, or above it."""
    source = path.read_text()
    at_end: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            where = at_end if token.line[: token.start[1]].strip() else alone
            where[token.start[0]] = token.string.lstrip("# ")
    meanings: dict[str, str] = {}
    for field, first, last in _assigned(ast.parse(source)):
        above: list[str] = []
        while first - 1 - len(above) in alone:
            above.append(alone[first - 1 - len(above)])
        if text := at_end.get(last) or " ".join(reversed(above)):
            meanings.setdefault(field, text)
    return meanings


def _assigned(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """(field, first line, last line) of what a file assigns to the fields of `config`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            (target,), value = node.targets[:1], node.value
            path = _path(target)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # config.x.update()
            value = node.value
            path = _path(value.func).removesuffix(".update")
        else:
            continue
        if path and isinstance(value, ast.Call) and value.keywords:
            yield path, node.lineno, 0  # the group
            for keyword in value.keywords:
                if keyword.arg:
                    yield f"{path}.{keyword.arg}", keyword.lineno, keyword.end_lineno or 0
        elif path:
            yield path, node.lineno, node.end_lineno or 0


def _path(node: ast.expr) -> str:
    """The "data.name" of config.data.name; "" for what is none of its fields."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if isinstance(node, ast.Name) and node.id == "config" else ""


def _from_docstrings() -> dict[str, str]:
    """What the functions say that take groups of fields as arguments."""
    from mbv3_jax.arch.build import build
    from mbv3_jax.data.augment import make_preprocess
    from mbv3_jax.data.decode import decode_view
    from mbv3_jax.train.optimizers import make_optimizer
    from mbv3_jax.train.schedules import make_schedule

    groups: dict[str, Callable] = {
        "augment": make_preprocess,
        "data": decode_view,
        "net": build,
        "optimizer": make_optimizer,
        "schedule": make_schedule,
    }
    return {
        f"{group}.{name}": text
        for group, function in groups.items()
        for name, text in arguments_of(function.__doc__ or "").items()
        if not text.startswith(("see `", "a key of `"))
    }


def _of_entries() -> dict[str, str]:
    """Which entries of the registries have an option, and with which default."""
    from mbv3_jax.train.distillation import DISTILLATION
    from mbv3_jax.train.losses import LOSSES
    from mbv3_jax.train.optimizers import OPTIMIZERS
    from mbv3_jax.train.schedules import SCHEDULES

    found: dict[str, list[str]] = {}
    registries: dict[str, Registry] = {
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "loss": LOSSES,
        "distillation": DISTILLATION,
    }
    for group, registry in registries.items():
        for name, factory in registry.items():
            signature = inspect.signature(factory).parameters
            for option in option_names(factory):
                default = signature[option].default
                without = default is inspect.Parameter.empty
                text = f"{name} (must be given)" if without else f"{name} (default {default})"
                found.setdefault(f"{group}.{option}", []).append(text)
    return {field: f"of {', '.join(texts)}" for field, texts in found.items()}


def arguments_of(docstring: str) -> dict[str, str]:
    """The texts of a docstring's sections Args and Attributes, by the names that they are about."""
    found: dict[str, str] = {}
    indent = -1
    names: list[str] = []
    for line in docstring.splitlines():
        item = _ITEM.fullmatch(line)
        if line.strip() in ("Args:", "Attributes:"):
            indent, names = len(line) - len(line.lstrip()) + 2, []
        elif indent >= 0 and item and len(item[1]) == indent:
            names = item[2].split(", ")
            found |= dict.fromkeys(names, item[3])
        elif names and line.startswith(" " * (indent + 2)):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            indent, names = (indent, []) if line.startswith(" " * max(indent, 1)) else (-1, [])
    return found
