"""mbv3 data prepare, check: data sets."""

import argparse
from collections.abc import Sequence

from mbv3_jax.cli.arguments import no_more
from mbv3_jax.core.errors import UsageError
from mbv3_jax.data import prepare
from mbv3_jax.data.source import open_pair


def add_parsers(commands) -> None:
    """Adds `data` to the subparsers; `run_command(flags, overrides)` returns an exit code."""
    data = commands.add_parser("data", help="prepare or check a data set", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", required=True)
    folder = "where TFDS keeps data sets; default TFDS_DATA_DIR or ~/tensorflow_datasets"

    make = actions.add_parser("prepare", help="make a TFDS data set readable, once")
    make.add_argument("name", help="imagenet or tfds/NAME")
    make.add_argument("--data_dir", help=folder)
    make.add_argument("--manual_dir", help="the folder of archives that one downloads oneself")
    make.set_defaults(run_command=_run, run_data=_prepare)

    check = actions.add_parser("check", help="count, decode a sample, say where everything is")
    check.add_argument("name", help="imagenet, tfds/NAME, folder:PATH, digits")
    check.add_argument("--data_dir", help=folder)
    check.add_argument("--train_split", help="see configs/common.py")
    check.add_argument("--eval_split")
    check.add_argument("--split_fraction", type=float)
    check.add_argument("--sample", type=int, default=200, help="how many images a split to decode")
    check.set_defaults(run_command=_run, run_data=_check)


def _run(flags: argparse.Namespace, overrides: Sequence[str]) -> int:
    no_more(overrides, f"data {flags.action}")
    try:
        return flags.run_data(flags)
    except (ValueError, FileNotFoundError) as e:
        raise UsageError(str(e)) from e


def _prepare(flags: argparse.Namespace) -> int:
    folder = prepare.prepare(flags.name, data_dir=flags.data_dir, manual_dir=flags.manual_dir)
    print(f"prepared: {folder}")
    print(f"next: python -m mbv3_jax data check {flags.name} --data_dir={folder.parent.parent}")
    return 0


def _check(flags: argparse.Namespace) -> int:
    pair = open_pair(
        flags.name,
        resolution=224,
        data_dir=flags.data_dir,
        train_split=flags.train_split,
        eval_split=flags.eval_split,
        split_fraction=flags.split_fraction,
    )
    bad = sum(prepare.check(source, flags.sample) for source in pair)
    return 1 if bad else 0
