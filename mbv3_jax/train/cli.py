"""The command line of `main.py`: flags to configuration, errors to exit codes."""

import argparse
import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mbv3_jax.train import config as configs
from mbv3_jax.train.errors import RunError, UsageError

EXIT_INTERRUPTED = 130  # as shells report Ctrl-C


def default_workdir(config: str) -> Path:
    """runs/small for configs/small.py, runs/small-imagenet for configs/small.py:imagenet."""
    path, _, argument = config.partition(":")
    argument = re.sub(r"[^A-Za-z0-9._=-]+", "-", argument).strip("-")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, argument)))


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    0: trained to the end. 1: the run failed, its checkpoints are intact. 2: the command or the
    configuration is wrong, nothing was started. 130: interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Trains a network and evaluates it. The same command again resumes.",
        epilog="Any field of the configuration: --config.seed=1 --config.net.width=0.5 ...",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="configs/NAME.py or configs/NAME.py:ARG")
    parser.add_argument("--workdir", type=Path, help="run folder; default runs/NAME-ARG")
    flags, overrides = parser.parse_known_args(arguments)
    workdir = flags.workdir or default_workdir(flags.config)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        config = configs.parse(flags.config, overrides)
        from mbv3_jax.train.loop import train  # here, so that a wrong flag does not wait for jax

        summary = train(config, workdir, console)
    except (UsageError, RunError) as e:
        # A failed write leaves coroutines of Orbax behind, which Python would name at the end.
        warnings.simplefilter("ignore", RuntimeWarning)
        console.print(f"error: {e}", style="red")
        return e.exit_code
    except KeyboardInterrupt:
        console.print(
            f"interrupted; the same command goes on from the last checkpoint in {workdir}"
        )
        return EXIT_INTERRUPTED
    console.print(_report(summary, workdir))
    return 0


def _report(summary: dict, workdir: Path) -> str:
    values, quoted = summary["eval"], shlex.quote(str(workdir))
    lines = [
        f"done: {summary['steps']} steps, {summary['epochs']:.1f} epochs, "
        f"{summary['seconds']:.0f} s, {summary['images_per_second']:.0f} images/s",
        f"top-1 {values['top1']:.2%} on {_images(values)} {summary['split']} images "
        f"({summary['weights']} weights)",
        f"run folder: {workdir}",
        f"next: python -m mbv3_jax plot --run={quoted} --out=curves.png   draw its curves",
        f"      python -m mbv3_jax eval --run={quoted}                    evaluate it again",
    ]
    return "\n".join(lines)


def _images(values: dict) -> str:
    if "unreadable" not in values:
        return f"all {values['count']}"
    whole = values["count"] + values["unreadable"]
    return f"{values['count']} of {whole} ({values['unreadable']} could not be read)"
