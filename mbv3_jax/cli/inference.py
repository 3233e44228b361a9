"""mbv3 eval, predict, embed: evaluates and applies trained networks."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.cli.arguments import add_model, no_more, resolution
from mbv3_jax.core.errors import UsageError, counted, plain, printable
from mbv3_jax.core.files import check_can_be_written, open_atomically
from mbv3_jax.run.config import parse_config

# The fields of a configuration that `eval --config` uses.
_EVALUATION_FIELDS = ("--config.data.", "--config.eval_batch_size")
_MAX_SHEET_IMAGES = 120
_CLASSES = 15  # of the table of `eval`; of more classes it has those with the lowest F1


def add_parsers(commands) -> None:
    """Adds the commands to the subparsers; `run_command(flags, overrides)` runs one."""
    evaluate = commands.add_parser(
        "eval", help="evaluate a network on every held-out image", allow_abbrev=False
    )
    add_model(evaluate)
    evaluate.add_argument("--data", help="evaluate on other images: folder:PATH, table:PATH, ...")
    evaluate.add_argument(
        "--config",
        help="evaluate on the data of a configuration; its fields can be set as for train",
    )
    evaluate.add_argument(
        "--batch", type=int, metavar="N", help="images at a time, with --data or --config"
    )
    evaluate.add_argument(
        "--resolution",
        type=resolution,
        metavar="N",
        help="side of the images in pixels, or height and width as in 224x320; default as trained",
    )
    evaluate.set_defaults(run_command=_eval)

    predict = commands.add_parser(
        "predict", help="name the most probable classes of image files", allow_abbrev=False
    )
    _add_images(predict)
    predict.add_argument("--json", action="store_true", help="print a line of JSON for each image")
    predict.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write a picture of the images with their predictions: .png, .jpg, .pdf or .svg",
    )
    predict.set_defaults(run_command=_predict)

    embed = commands.add_parser(
        "embed",
        help="write embeddings of image files, the inputs of the last layer",
        allow_abbrev=False,
    )
    _add_images(embed)
    embed.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE.npz",
        help="a file with the arrays embedding and path",
    )
    embed.set_defaults(run_command=_embed)


def _add_images(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "images", nargs="*", help="files, folders, or @LIST: a file with a path on each line"
    )
    parser.add_argument(
        "--list", action="append", default=[], metavar="LIST", help="the same as @LIST"
    )
    parser.add_argument(
        "--batch", type=int, default=32, metavar="N", help="images at a time; default 32"
    )


def _eval(flags, overrides: Sequence[str]) -> int:
    if flags.data and flags.config:
        raise UsageError("eval takes --data or --config, not both")
    if overrides and not flags.config:
        raise UsageError(
            f"unknown option {overrides[0]}; eval takes --run or --import, --step, --weights, "
            "--data or --config, --batch, --resolution"
        )
    for override in overrides:
        if override.startswith("--") and not override.startswith(_EVALUATION_FIELDS):
            raise UsageError(
                f"{override}: has no effect on an evaluation, which takes network and "
                f"preprocessing from {flags.run or flags.imported}; only "
                f"{' and '.join(_EVALUATION_FIELDS)} have"
            )
    batch = flags.batch
    if flags.config:
        config = parse_config(flags.config, overrides)
        data, batch = config.data.to_dict(), batch or config.eval_batch_size
    elif flags.data:
        data = {"name": flags.data}
    elif flags.imported:
        raise UsageError("eval --import needs data: --data=folder:PATH, or --config=FILE[:ARG]")
    options = {name: getattr(flags, name) for name in ("step", "weights", "resolution")}
    if flags.config or flags.data:
        from mbv3_jax.train.reevaluate import evaluate_on

        folder = flags.run or flags.imported
        batch = 32 if batch is None else batch
        values = evaluate_on(folder, data, **options, batch=batch, report=_note)
    else:
        if batch is not None:
            raise UsageError(
                "--batch: has an effect only with --data or --config; else the run's "
                "eval_batch_size counts"
            )
        from mbv3_jax.train.reevaluate import reevaluate

        values = reevaluate(flags.run, **options)
    _print_evaluation(values)
    return 0


def _print_evaluation(values: dict) -> None:
    """Prints everything as JSON, and on standard error a table for people."""
    # A field on a line each, so that lists of 1,000 classes do not fill the screen.
    lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    print("{\n" + ",\n".join(lines) + "\n}", flush=True)
    from rich.console import Console
    from rich.table import Table

    by_class, count = values["per_class"], values["count"]
    several = "average_precision" in by_class  # labels per image
    columns = (*(["average_precision"] if several else []), "precision", "recall", "f1")
    of_classes = (by_class[column] for column in (*columns, "images"))
    rows = [  # data may have few of the classes that a network knows
        row for row in zip(values["class_names"], *of_classes, strict=True) if row[-1]
    ]
    worst = sorted(rows, key=lambda row: row[1] if several else row[3])[:_CLASSES]
    shown = rows if len(rows) <= _CLASSES else worst
    of_means = [
        (f"{kind} mean", *(values[f"{kind}_{column}"] for column in columns), count)
        for kind in ("macro", "weighted")
        if not several
    ]
    table = Table(header_style="bold")
    table.add_column("", overflow="fold")
    headings = (*(["average precision"] if several else []), "precision", "recall", "F1", "images")
    for heading in headings:
        table.add_column(heading, justify="right")
    for i, (name, *fractions, images) in enumerate([*shown, *of_means], start=1):
        cells = [f"{fraction:.2%}" for fraction in fractions]
        table.add_row(printable(name), *cells, f"{images:,}", end_section=i == len(shown))
    labels = {
        "top1": "top-1",
        "semantic_accuracy": "semantic accuracy",
        "balanced_accuracy": "balanced accuracy",
        "ece": "calibration error",
        "auc": "ROC AUC",
        "average_precision": "average precision",
        "mean_average_precision": "mean average precision",
        "label_accuracy": "right labels",
    }
    known = [f"{label} {values[key]:.2%}" for key, label in labels.items() if key in values]
    if shown is worst:
        lowest = "average precision" if several else "F1"
        known.append(f"shown are the {_CLASSES} of {len(rows)} classes with the lowest {lowest}")
    console = Console(
        stderr=True, width=None if sys.stderr.isatty() else 140, markup=False, emoji=False
    )
    console.print(table)
    console.print("; ".join(known), soft_wrap=True)
    if test := values.get("test"):
        rest = (f"{label} {test[key]:.2%}" for key, label in labels.items() if key in test)
        console.print(f"{printable(test['split'])}: {'; '.join(rest)}", soft_wrap=True)


def _note(text: str) -> None:
    print(printable(f"note: {text}"), file=sys.stderr)


def _open(flags, overrides: Sequence[str]):
    """The image files that a command names, and the network."""
    no_more(overrides, flags.command)
    from mbv3_jax.data.files import find_files

    try:
        paths = find_files(flags.images, flags.list, _note)
    except FileNotFoundError as e:
        raise UsageError(f"{e}") from e
    from mbv3_jax.train.inference import Inference

    folder = flags.run or flags.imported
    return paths, Inference(folder, step=flags.step, weights=flags.weights, batch=flags.batch)


def _need_file(option: str, path: Path, suffixes: Sequence[str]) -> None:
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{option}: got {path}, expected a name that ends in {', '.join(suffixes)}"
        )
    check_can_be_written(option, path)


def _predict(flags, overrides: Sequence[str]) -> int:
    if flags.save:
        _need_file("--save", flags.save, (".png", ".jpg", ".pdf", ".svg"))
    paths, inference = _open(flags, overrides)
    from mbv3_jax.train.inference import THRESHOLD

    names, results = inference.model.class_names, inference.predictions(paths)
    if note := inference.model.sigmoid_note:
        _note(note)
    several, threshold = inference.model.multi_label, THRESHOLD
    if several:
        _note(f"several labels per image: those with a probability of at least {threshold:.0%}")
    table = None if flags.json else _table()
    sheet: list[tuple] = []
    for path, view, found in results:
        if found is None:
            if flags.json:
                _print_json({"image": path, "error": results.problems[path]})
            continue
        top = [
            {"class": names[label], "label": int(label), "probability": float(probability)}
            for label, probability in zip(found["classes"], found["probabilities"], strict=True)
        ]
        if table is None:
            labels = {"labels": [g["class"] for g in top if g["probability"] >= threshold]}
            _print_json({"image": path, **(labels if several else {}), "predictions": top})
        else:
            shown = [g for g in top if not several or g["probability"] >= threshold]
            shown = shown or [top[0] | {"class": f"none; most likely {top[0]['class']}"}]
            for i, guess in enumerate(shown):
                name, share = guess["class"], f"{guess['probability']:.2%}"
                table.add_row(
                    "" if i else printable(path),
                    printable(name),
                    share,
                    end_section=i == len(shown) - 1,
                )
        if flags.save and len(sheet) < _MAX_SHEET_IMAGES:
            guesses = (f"{g['class'][:24]} {g['probability']:.1%}" for g in top[:3])
            sheet.append((view, "\n".join((Path(path).name[-28:], *guesses))))
    if table is not None and table.row_count:
        _print_table(table)
    code = _report(results, paths)
    if flags.save and sheet:
        _save_sheet(flags, sheet, len(paths) - len(results.problems))
    return code


def _print_json(values: dict) -> None:
    """Prints a line of JSON, in which letters stay letters."""
    line = json.dumps(values, ensure_ascii=False)
    print(line if line.isprintable() else json.dumps(values), flush=True)


def _table():
    from rich.table import Table

    table = Table(header_style="bold")
    for name, justify in (("image", "left"), ("class", "left"), ("probability", "right")):
        table.add_column(name, justify=justify, overflow="fold")
    return table


def _print_table(table) -> None:
    from rich.console import Console

    # Without a terminal rich would wrap the table at 80 columns.
    Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False).print(table)


def _save_sheet(flags, sheet, count: int) -> None:
    from mbv3_jax.report.pictures import image_sheet, save_picture

    views, captions = zip(*sheet, strict=True)
    try:
        save_picture(image_sheet(views, captions), flags.save)
    except OSError as e:
        raise UsageError(f"--save: cannot write {flags.save}: {e.strerror}") from e
    of = f" of the first {len(sheet)}" if len(sheet) < count else ""
    print(printable(f"sheet{of}: {flags.save}"), file=sys.stderr)


def _embed(flags, overrides: Sequence[str]) -> int:
    _need_file("--out", flags.out, (".npz",))
    paths, inference = _open(flags, overrides)
    results = inference.embeddings(paths)
    found = [(path, values["embedding"]) for path, _, values in results if values is not None]
    code = _report(results, paths)
    if not found:
        return code
    import numpy as np

    files, embeddings = zip(*found, strict=True)
    try:
        with open_atomically(flags.out) as file:
            np.savez(file, embedding=np.stack(embeddings), path=np.array(files))
    except OSError as e:
        raise UsageError(f"--out: cannot write {flags.out}: {e.strerror}") from e
    line = f"{counted(len(files), 'embedding')} of {len(embeddings[0])} values: {flags.out}"
    print(printable(line), file=sys.stderr)
    return code


def _report(results, paths: Sequence[str]) -> int:
    """Prints the speed and the files that could not be read on standard error.

    Returns:
      The exit code: 1 if a file could not be read.
    """
    for path, reason in results.problems.items():
        print(printable(f"error: {path}: {reason}"), file=sys.stderr)
    bad = sum(path in results.problems for path in paths)
    rate = len(paths) / max(results.seconds, 1e-9)
    not_read = f", {bad} could not be read" if bad else ""
    print(
        f"{counted(len(paths), 'image')} in {results.seconds:.2f} s, {plain(rate, 3)} images/s "
        f"(compilation not counted){not_read}",
        file=sys.stderr,
    )
    return 1 if bad else 0
