"""python -m mbv3_jax latency android, import: a phone, by TFLite's benchmark_model."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.latency.options import no_more, positive
from mbv3_jax.train.errors import UsageError


def add_parsers(actions) -> None:
    """Adds `android` and `import`."""
    android = actions.add_parser(
        "android", help="the command lines for a phone, or runs them", allow_abbrev=False
    )
    android.add_argument("--file", type=Path, required=True, help="FILE.tflite")
    android.add_argument("--binary", type=Path, default=Path("benchmark_model"))
    android.add_argument("--serial", help="of the phone, where several are connected")
    android.add_argument("--threads", type=positive, default=1)
    android.add_argument("--cpu-mask", type=_mask, help="cores, e.g. f0: the large ones of many")
    android.add_argument("--runs", type=positive, default=100, help="at least; default 100")
    android.add_argument("--adb", action="store_true", help="run them, and read what they print")
    _add_result(android)
    android.set_defaults(run_command=_android)

    read = actions.add_parser(
        "import", help="what benchmark_model printed, as JSON", allow_abbrev=False
    )
    read.add_argument("texts", type=Path, nargs="+", help="TIMING.txt [PROFILE.txt]")
    _add_result(read)
    read.set_defaults(run_command=_import)


def _add_result(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machine", help="the phone, e.g. 'Pixel 6'")
    parser.add_argument("--out", type=Path, help="FILE.json")


def _mask(text: str) -> str:
    try:
        if int(text, 16) > 0:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"got {text!r}, expected hexadecimal digits, e.g. f0")


def _android(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "android")
    from mbv3_jax.latency import phone

    if flags.file.suffix != ".tflite":
        raise UsageError(f"--file: got {flags.file}, expected a .tflite file")
    if not flags.file.is_file():
        raise UsageError(f"--file: {flags.file}: no such file")
    lines = phone.commands(
        flags.file,
        binary=flags.binary,
        serial=flags.serial,
        threads=flags.threads,
        cpu_mask=flags.cpu_mask,
        runs=flags.runs,
    )
    if flags.adb:
        if not flags.binary.is_file():
            raise UsageError(f"--binary: {flags.binary}: no such file")
        _show(flags, phone.run(lines)[-2:], flags.file.name)
        return
    timing, profile = (shlex.join(line) for line in lines[-2:])
    for line in lines[:-2]:
        print(shlex.join(line))
    print(f"{timing} > timing.txt 2>&1")
    print(f"{profile} > profile.txt 2>&1")
    print("python -m mbv3_jax latency import timing.txt profile.txt --out=phone.json")


def _import(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "import")
    try:
        texts = [path.read_text(errors="replace") for path in flags.texts]
    except OSError as e:
        raise UsageError(f"import: {e}") from e
    _show(flags, texts, flags.texts[0].stem)


def _show(flags: argparse.Namespace, texts: list[str], name: str) -> None:
    from mbv3_jax.latency import phone, results

    try:
        found = phone.read(texts, name, flags.machine)
    except ValueError as e:
        raise UsageError(f"{name}: {e}") from e
    runs = f", mean of {found['runs']} runs" if found["runs"] else ""
    print(f"{name}: {found['ms']:.3f} ms{runs}; first {found['first_ms']:.3f} ms")
    if found["profile"]:
        results.console().print(results.profile_table(found["profile"]))
    results.save(flags.out, found)
