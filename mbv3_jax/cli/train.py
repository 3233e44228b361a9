"""mbv3 train, and main.py: trains or searches, as a configuration says."""

import argparse
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mbv3_jax.cli import freeze_modules
from mbv3_jax.cli.arguments import Parser
from mbv3_jax.cli.examples import examples_text
from mbv3_jax.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_RESTART,
    Preempted,
    RunError,
    UsageError,
    counted,
    printable_lines,
)
from mbv3_jax.core.packages import program
from mbv3_jax.run import interrupt
from mbv3_jax.run.config import parse_config
from mbv3_jax.run.metrics import main_value
from mbv3_jax.run.processes import (
    PATIENCE,
    is_first,
    is_loss_of_a_process,
    other_processes,
    process_label,
    start_processes,
)
from mbv3_jax.run.shipped import split_argument


def default_workdir(config: str) -> Path:
    """The default --workdir: runs/small for "small" and "configs/small.py", runs/small-imagenet for
    "small:imagenet", runs/search-small for "search/small" and "configs/search/small.py"."""
    path, argument = split_argument(config)
    parts = Path(path).with_suffix("").parts
    if "configs" in parts[:-1]:
        parts = parts[parts.index("configs") + 1 :]
    elif path.endswith(".py"):
        parts = parts[-1:]
    name = "-".join(parts)
    argument = re.sub(r"[^A-Za-z0-9._=-]+", "-", argument).strip("-")
    return Path("runs") / "-".join(filter(None, (name, argument)))


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    A configuration with `program = "search"` is a search, any other is trained.

    0: trained to the end. 1: the run failed, its checkpoints are intact. 2: the command or the
    configuration is wrong, nothing was started. 75: preempted, or another process of the run has
    died; the same command resumes. 130: interrupted.
    """
    flags, overrides = _parser().parse_known_args(arguments)
    workdir = flags.workdir or default_workdir(flags.config)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    try:
        with interrupt.stops_at_once():
            config = parse_config(flags.config, overrides)
            start_processes(vars(flags), patience=flags.patience)
            console.quiet = not is_first()
            program = config.get("program", "train")
            if program not in _PROGRAMS:
                names = ", ".join(map(repr, _PROGRAMS))
                raise UsageError(f"config.program: got {program!r}, expected one of {names}")
            console.print(_PROGRAMS[program](config, workdir, console))
            code = 0
    except (UsageError, RunError) as e:
        # A failed write leaves coroutines of Orbax behind, which Python would name at the end.
        warnings.simplefilter("ignore", RuntimeWarning)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        code = _ended(e, e.exit_code, f"error: {process_label()}{e}", console, style="red")
    except Preempted as e:
        reason = str(e) or "preempted before anything was trained"
        code = _ended(e, EXIT_RESTART, f"{process_label()}{reason}", console)
    except KeyboardInterrupt as e:
        text = f"{process_label()}interrupted; {_how_to_resume(workdir)}"
        code = _ended(e, EXIT_INTERRUPTED, text, console)
    except Exception as e:
        peers = other_processes()
        if not peers:
            raise
        if not is_loss_of_a_process(e):
            peers.report_failure(f"{type(e).__name__}: {e}".splitlines()[0], 1)
            raise
        code = _ended(e, 1, "", console)
    if peers := other_processes():
        peers.leave(code)
    return code


def _train(config, workdir: Path, console: Console) -> str:
    from mbv3_jax.train.loop import train  # here: a wrong flag does not wait for jax

    freeze_modules()
    return _report(train(config, workdir, console), workdir)


def _search(config, workdir: Path, console: Console) -> str:
    from mbv3_jax.search import program

    freeze_modules()
    return program.run(config, workdir, console)


_PROGRAMS = {"train": _train, "search": _search}


def _how_to_resume(workdir: Path) -> str:
    """Returns what the same command will do with what an interrupted one has left."""
    # Of a run, of the runs of several seeds, or of a search.
    if any(path.name.isdigit() for path in workdir.glob("**/checkpoints/*")):
        return f"run the same command again to resume from the last checkpoint in {workdir}"
    return "no checkpoint was saved yet; run the same command again"


def _ended(error: BaseException, code: int, text: str, console: Console, **style) -> int:
    """Tells the user and the other processes what ended the run; returns the exit code."""
    console.quiet = False
    peers = other_processes()
    if peers and is_loss_of_a_process(error):
        peers.end_after_loss(error)
    if peers:
        peers.report_failure(text.removeprefix("error: ").removeprefix(process_label()), code)
    if text:
        console.print(printable_lines(text), **style)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="main.py" if Path(sys.argv[0]).name == "main.py" else f"{program()} train",
        description="Trains a network and evaluates it. Run the same command again to resume.",
        epilog="Any field of the configuration can be set: --config.seed=1 --config.net.width=0.5 "
        f"...\n\n{examples_text('train')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        help="NAME or NAME:ARG of a shipped configuration, or the path of a file",
    )
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", help="the run folder; default runs/NAME-ARG"
    )
    several = parser.add_argument_group(
        "several processes",
        "Under srun, in a JobSet and on a TPU pod the processes find each other without these.",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="the address of process 0")
    several.add_argument("--num-processes", type=int, metavar="N", help="the number of processes")
    several.add_argument(
        "--process-id", type=int, metavar="I", help="which process this is, 0 to N-1"
    )
    several.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help="exit with code 75 if another process has been silent or stalled for this long; "
        "default 300",
    )
    return parser


def _report(summary: dict, workdir: Path) -> str:
    values, quoted = summary["eval"], shlex.quote(str(workdir))
    done = (
        f"done: {summary['steps']} steps, {summary['epochs']:.1f} epochs, "
        f"{summary['seconds']:.0f} s, {summary['images_per_second']:.0f} images/s"
    )
    if "seeds" in summary:
        top1, seeds = values["top1"], ", ".join(map(str, summary["seeds"]))
        deviation = "" if top1["std"] is None else f" +- {top1['std']:.2%}"
        tests = summary.get("test")
        tested = f"test: top-1 {tests['top1']['mean']:.2%}\n" if tests else ""
        return (
            f"{done}\ntop-1 {top1['mean']:.2%}{deviation} of seeds {seeds} on all "
            f"{summary['count']} {summary['split']} images ({summary['weights']} weights)\n"
            f"{tested}"
            f"run folders: {workdir}/seed*"
        )
    lines = [
        done,
        f"{main_value(values)} on {_images(values, summary['split'])} "
        f"({summary['weights']} weights)",
        f"run folder: {workdir}",
        f"next: {program()} plot --run={quoted} --out=curves.png   draw its curves",
        f"      {program()} eval --run={quoted}                    evaluate it again",
    ]
    if best := summary.get("best"):
        at = f"at step {best['step']}; --run={quoted} --step=best uses that checkpoint"
        metric = best.get("metric")
        shown = [f"{metric} {best[metric]:.4f}"] if metric else []
        shown += [f"top-1 {best['top1']:.2%}"] if "top1" in best else []
        lines.insert(2, f"best: {', '.join(shown)} {at}")
    if test := summary.get("test"):
        at = (
            f"checkpoint of step {test['step']}"
            if test["step"] < summary["steps"]
            else "last state"
        )
        images = _images(test, test["split"])
        lines.insert(-3, f"test: {main_value(test)} on {images} ({at})")
    if early := summary.get("early_stop"):
        without = f"no better {early['metric']} in {counted(early['patience'], 'evaluation')}"
        lines.insert(1, f"stopped early, of {early['planned_steps']} steps: {without}")
    if (workdir / "predictions.npz").exists():
        out = "--what=mistakes --out=mistakes.png"
        lines.append(f"      {program()} plot --run={quoted} {out}   draw its worst mistakes")
    return "\n".join(lines)


def _images(values: dict, split: str) -> str:
    whole = values["count"] + values.get("unreadable", 0)
    kind = f"{split} image" if whole == 1 else f"{split} images"
    if "unreadable" not in values:
        return f"{values['count']} {kind}" if whole == 1 else f"all {values['count']} {kind}"
    return f"{values['count']} of {whole} ({values['unreadable']} could not be read) {kind}"
