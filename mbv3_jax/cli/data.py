"""mbv3 data prepare, check: data sets."""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mbv3_jax.cli.arguments import no_more, positive
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import program


def add_parsers(commands) -> None:
    """Adds `data` to the subparsers; `run_command(flags, overrides)` returns an exit code."""
    data = commands.add_parser("data", help="prepare or check a data set", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", required=True)
    folder = "where TFDS keeps data sets; default TFDS_DATA_DIR or ~/tensorflow_datasets"

    make = actions.add_parser(
        "prepare", help="convert a TFDS data set, once, for training", allow_abbrev=False
    )
    make.add_argument("name", help="imagenet or tfds/NAME")
    _option(make, "data-dir", help=folder)
    _option(make, "manual-dir", help="the folder of the archives that you have downloaded")
    make.set_defaults(run_command=_run, run_data=_prepare)

    check = actions.add_parser(
        "check", help="count the images and decode a sample of them", allow_abbrev=False
    )
    check.add_argument("name", help="as config.data.name: folder:PATH, table:PATH, ...")
    _option(check, "data-dir", help=folder)
    _option(check, "train-split", help="the split to train on, as config.data.train_split")
    _option(check, "eval-split", help="the split to evaluate on")
    _option(check, "split-fraction", type=float, help="hold out this fraction of train")
    _option(check, "image-column", help="the column of the images in a table")
    _option(check, "label-column", help="the column of the labels")
    _option(check, "labels", help="single, multi (several per image) or soft (probabilities)")
    _option(check, "split-column", help="the column of the names of splits")
    _option(check, "on-error", help="skip: leave out what cannot be used, with a message")
    _option(check, "num-classes", type=positive, help="of a source that makes its images")
    _option(check, "num-examples", type=positive, help="of a source that makes its images")
    _option(check, "sample", type=positive, default=200, help="images to decode in each split")
    check.set_defaults(run_command=_run, run_data=_check)


def _option(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    action = parser.add_argument(f"--{name}", **options)
    # Earlier versions spelled them with underscores, which the help does not list.
    parser._option_string_actions[f"--{action.dest}"] = action


def _run(flags: argparse.Namespace, overrides: Sequence[str]) -> int:
    no_more(overrides, f"data {flags.action}")
    try:
        return flags.run_data(flags)
    except (ValueError, FileNotFoundError) as e:
        raise UsageError(_as_typed_here(str(e), vars(flags))) from e


def _as_typed_here(message: str, options: Mapping[str, object]) -> str:
    """A message in which the fields of config.data are the options of this command."""

    def option(match: re.Match) -> str:
        if match[1] == "name":
            return "NAME"
        return f"--{match[1].replace('_', '-')}" if match[1] in options else match[0]

    return re.sub(r"(?<![\w./\\-])data\.(\w+)\b(?![./\\])", option, message)


# The data room is imported only here, so that the other commands start without it.


def _prepare(flags: argparse.Namespace) -> int:
    from mbv3_jax.data.prepare import prepare

    folder = prepare(flags.name, data_dir=flags.data_dir, manual_dir=flags.manual_dir)
    print(f"prepared: {folder}")
    print(f"next: {program()} data check {flags.name} --data-dir={folder.parent.parent}")
    return 0


def _check(flags: argparse.Namespace) -> int:
    from mbv3_jax.data.prepare import check
    from mbv3_jax.data.source import open_pair

    pair = open_pair(
        flags.name,
        resolution=224,
        data_dir=flags.data_dir,
        train_split=flags.train_split,
        eval_split=flags.eval_split,
        split_fraction=flags.split_fraction,
        image_column=flags.image_column,
        label_column=flags.label_column,
        split_column=flags.split_column,
        labels=flags.labels,
        num_classes=flags.num_classes,
        num_examples=flags.num_examples,
        **({"on_error": flags.on_error} if flags.on_error else {}),
    )
    sources = [source for source in (*pair, pair[1].test) if source is not None]

    def report(line: str) -> None:
        print(_as_typed_here(line, vars(flags)))

    unusable = sum(check(source, flags.sample, report) for source in sources)
    return 1 if unusable else 0
