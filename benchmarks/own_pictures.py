"""A folder of pictures, trained from scratch here and by a plain PyTorch script with timm.

python -m benchmarks.own_pictures NAME=/photographs ... --out=FILE.jsonl
  Trains `small:folder=/photographs` and the script on the same images, at the same resolution, for
  as many epochs, and compares both on the images that are held out. Run the same command again to
  resume. --config.FIELD=VALUE changes the configuration, --epochs and --seeds what is run.
python -m benchmarks.own_pictures --describe --out=FILE.jsonl
  Prints the table.

The script is what many would write: MobileNetV3-Small of timm, AdamW at 0.002 with one cycle,
random resized crops and flips, label smoothing of 0.1, batches of 32, weights as they end.
"""

import argparse
import io
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.contenders.timm_eager import NAMES
from benchmarks.ending import exit_code
from mbv3_jax.cli import use_huge_pages
from mbv3_jax.core.json_lines import append_line, parse_object, read_lines
from mbv3_jax.data.source import open_pair
from mbv3_jax.run.config import parse_config
from mbv3_jax.search.evaluators import half_width
from mbv3_jax.train.loop import train

NETWORK = "mobilenet_v3_small"
METHODS = ("ours", "script")
BATCH = 32
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def ours(folder: str, resolution: int, epochs: int, seed: int, overrides: list[str]) -> dict:
    """The metrics of the held-out images after a training by `small:folder=...`."""
    flags = [
        f"--config.net.resolution={resolution}",
        f"--config.total_epochs={float(epochs)}",
        f"--config.seed={seed}",
        f"--config.eval_every_epochs={float(epochs)}",
        *overrides,
    ]
    config = parse_config(f"small:folder={folder}", flags)
    with tempfile.TemporaryDirectory() as workdir:
        found = train(config, Path(workdir) / "run", Console(quiet=True))["eval"]
    return {name: found[name] for name in ("top1", "balanced_accuracy", "loss")}


def script(folder: str, resolution: int, epochs: int, seed: int) -> dict:
    """The same metrics after a training by the script."""
    from tests.support.torch_stub import import_torchvision

    import_torchvision()
    import timm
    import torch
    from torch.nn import functional

    training, held_out = (
        [(_opened(source.read(i)[0]), source.read(i)[1]) for i in range(len(source))]
        for source in open_pair(
            f"folder:{folder}", resolution=resolution, channels=3, crop={}, on_error="raise"
        )
    )
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    classes = 1 + max(label for _, label in training)
    model = timm.create_model(NAMES[NETWORK], num_classes=classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    # A last batch of one image would leave BatchNorm nothing to normalise.
    firsts = [i for i in range(0, len(training), BATCH) if len(training) - i > 1]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=epochs * len(firsts)
    )
    for _ in range(epochs):
        model.train()
        order = rng.permutation(len(training))
        for first in firsts:
            some = [training[i] for i in order[first : first + BATCH]]
            images = torch.from_numpy(np.stack([_cropped(i, resolution, rng) for i, _ in some]))
            labels = torch.tensor([label for _, label in some])
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        images = torch.from_numpy(np.stack([_central(i, resolution) for i, _ in held_out]))
        logits = torch.cat([model(part) for part in images.split(BATCH)])
    labels = torch.tensor([label for _, label in held_out])
    correct = (logits.argmax(1) == labels).numpy()
    recalls = [correct[labels.numpy() == label].mean() for label in sorted(set(labels.tolist()))]
    return {
        "top1": float(correct.mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "loss": functional.cross_entropy(logits, labels).item(),
    }


def _opened(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def _cropped(image: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random part, 8% to all of the image, and perhaps its mirror image: [3, side, side]."""
    for _ in range(10):
        area = image.width * image.height * rng.uniform(0.08, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = rng.integers(image.width - width + 1)
            top = rng.integers(image.height - height + 1)
            break
    else:
        width = height = min(image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
    box = (left, top, left + width, top + height)
    part = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return _normalized(part)[:, :, :: rng.choice([-1, 1])].copy()


def _central(image: Image.Image, side: int) -> np.ndarray:
    """The central 87.5% of the largest square: [3, side, side]."""
    length = 0.875 * min(image.size)
    left, top = (image.width - length) / 2, (image.height - length) / 2
    box = (left, top, left + length, top + length)
    return _normalized(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def _normalized(image: Image.Image) -> np.ndarray:
    pixels = (np.asarray(image) / 255 - MEAN) / DEVIATION
    return pixels.transpose(2, 0, 1).astype(np.float32)


def describe(rows: list[dict]) -> str:
    """The table, in Markdown: means over the seeds, and the difference with its 95% interval."""
    lines = [
        "| pictures | epochs | ours | script | difference | balanced: ours | script |",
        "|-|-|-|-|-|-|-|",
    ]
    for name, epochs in dict.fromkeys((row["name"], row["epochs"]) for row in rows):
        some = [row for row in rows if (row["name"], row["epochs"]) == (name, epochs)]
        by_method = {
            method: {row["seed"]: row for row in some if row["method"] == method}
            for method in METHODS
        }
        seeds = sorted(set.intersection(*(set(found) for found in by_method.values())))
        if not seeds:
            continue
        top1, balanced = (
            {m: np.array([100 * by_method[m][s][metric] for s in seeds]) for m in METHODS}
            for metric in ("top1", "balanced_accuracy")
        )
        apart = top1["ours"] - top1["script"]
        interval = f" ± {half_width(apart):.1f}" if len(seeds) > 1 else ""
        cells = [f"{statistics.mean(top1[m]):.1f}" for m in METHODS]
        cells += [f"{apart.mean():+.1f}{interval}"]
        cells += [f"{statistics.mean(balanced[m]):.1f}" for m in METHODS]
        lines.append(f"| {name} | {epochs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing in the file of results, then prints the table."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("folders", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 10, 20, 60])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--describe", action="store_true")
    flags, overrides = parser.parse_known_args()
    rows = list(read_lines(flags.out, parse_object))
    done = {tuple(row[k] for k in ("name", "epochs", "seed", "method")) for row in rows}
    tasks = itertools.product(flags.folders, flags.epochs, flags.seeds, flags.methods)
    for named, epochs, seed, method in [] if flags.describe else tasks:
        name, _, folder = named.partition("=")
        if (name, epochs, seed, method) in done:
            continue
        start = time.perf_counter()
        arguments = folder, flags.resolution, epochs, seed
        found = ours(*arguments, overrides) if method == "ours" else script(*arguments)
        row = {"name": name, "epochs": epochs, "seed": seed, "method": method} | found
        row["seconds"] = round(time.perf_counter() - start, 1)
        append_line(flags.out, row)
        print(row, flush=True)
    print(describe(list(read_lines(flags.out, parse_object))))


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(exit_code(main))
