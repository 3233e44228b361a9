"""Examples for the help of every command; a test parses all of them."""

import argparse
from collections.abc import Iterator

from mbv3_jax.core.packages import program

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": ("train --config=small", "report runs/small --out=report.html"),
    "train": (
        "train --config=small",
        "train --config=large:imagenet --workdir=runs/large --config.net.width=0.75",
        "train --config=finetune:folder=/photographs --config.init=runs/large",
    ),
    "sweep": (
        "sweep --sweep=ablations/smoke --dry-run",
        "sweep --sweep=nonlinearity --executor.jobs=2",
        "sweep --sweep=ablations/width:imagenet --executor=slurm --executor.partition=gpu",
    ),
    "config": ("config --config=small", "config --config=large:imagenet schedule ema"),
    "recipes": ("recipes", "recipes jax"),
    "summary": ("summary --config=large:imagenet --config.net.width=0.75",),
    "plot": ("plot --run=runs/small --out=curves.png",),
    "report": (
        "report runs/small runs/sweeps/nonlinearity --out=report.html",
        "report --compare runs/small runs/v2",
    ),
    "eval": (
        "eval --run=runs/small --step=best",
        "eval --import=imported --data=folder:/photographs",
    ),
    "predict": ("predict --run=runs/small photograph.jpg /photographs --save=sheet.png",),
    "embed": ("embed --import=imported /photographs --out=embeddings.npz",),
    "data": ("data check folder:/photographs",),
    "data prepare": ("data prepare imagenet --manual-dir=/archives --data-dir=/data",),
    "data check": ("data check imagenet --data-dir=/data",),
    "import": (
        "import --from=timm --weights=mobilenetv3_large_100.ra_in1k --out=imported",
        "import --from=torchvision --weights=mobilenet_v3_small.pth --out=imported",
        "import --from=timm --weights=checkpoint.pth.tar --dry-run",
        "import --weights=hf:OWNER/NAME --out=imported",
    ),
    "export-weights": (
        "export-weights --run=runs/small --to=timm --out=small.safetensors",
        "export-weights --run=runs/small --to=hf --out=small-hub",
    ),
    "export": (
        "export --run=runs/small --format=onnx --out=small.onnx --batch=any",
        "export --import=imported --format=tflite --precision=int8 --images /photographs "
        "--out=int8.tflite",
    ),
    "latency": ("latency compare runs/small v2 other.tflite",),
    "latency run": ("latency run --config=small:imagenet --precision=int8",),
    "latency compare": ("latency compare runs/small v2 other.tflite --out=compared.json",),
    "latency measure": ("latency measure --space=small --out=table.json",),
    "latency csv": (
        "latency csv table.json --out=table.csv",
        "latency csv phone.csv --out=phone.json --machine='Pixel 1, large core'",
    ),
    "latency android": ("latency android --file=small.tflite --adb --machine='Pixel 6'",),
    "latency import": ("latency import timing.txt profile.txt --out=phone.json",),
    "search": ("train --config=search/small", "search spaces"),
    "search spaces": ("search spaces",),
    "search proxy": (
        "search proxy accel_nasbench.json --column=top1",
        "search proxy accel_nasbench.json --spec=found.json",
    ),
    "search table": ("search table accel_nasbench", "search table accel_nasbench.json"),
    "search netadapt": (
        "search netadapt --run=runs/large --target-madds=150e6 --out=runs/narrowed",
    ),
    "search worker": ("search worker --run=runs/search-small",),
}


def examples_text(command: str) -> str:
    """The examples of a command as its help shows them."""
    lines = [f"  {program()} {example}" for example in EXAMPLES[command]]
    return "\n".join(["example:" if len(lines) == 1 else "examples:", *lines])


def subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All commands below a parser with their parsers: "latency", "latency run", ..."""
    for action in parser._actions:  # argparse has no public way to them
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield name, child
                yield from ((f"{name} {inner}", p) for inner, p in subparsers(child))


def add_examples(parser: argparse.ArgumentParser) -> None:
    """Puts examples below the help of a parser and of all commands below it."""
    for name, command in [("", parser), *subparsers(parser)]:
        command.epilog = examples_text(name)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
