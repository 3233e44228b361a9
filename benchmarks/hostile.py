"""Generated damaged files, for every command that reads files of strangers.

A case damages some good files at random and runs the command in this process. It survives if the
command ends by itself within `SECONDS`, with one of its own exit codes, and without a traceback.
`benchmarks.faults` runs these and counts them.
"""

import contextlib
import dataclasses
import functools
import io
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import mbv3_jax
from mbv3_jax.cli.main import main
from mbv3_jax.core.packages import installed
from mbv3_jax.run.model import Model, Preprocessing, save_model

SECONDS = 60
CODES = (0, 1, 2)
TOGETHER = 20  # images of one command
FORMATS = {
    "jpg": {"quality": 80},
    "png": {},
    "gif": {},
    "bmp": {},
    "webp": {},
    "tif": {"compression": "tiff_lzw"},
}
# What a value of a JSON file is replaced by.
ODD = (
    5, -1, 0, 1e308, float("nan"), 2**63, 10**30, True, None, "", "x", "\x00", "\ud800", "n" * 9999,
    [], {}, [[]], {"": {}}, [1, "a", None],
)  # fmt: skip
NAMES = (
    "a b",
    "-rf",
    "$HOME",
    "ü",
    "猫",
    "\u202egpj",
    "a\nb",
    "\x1b[31m",
    "'\"",
    "%s",
    "{}",
    "a" * 200,
)
TIMES = """Graph: [net.tflite]
Inference timings in us: Init: 18777, First inference: 64791, Warmup (avg): 57758.2, Inference (avg): 55043.2
Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tConvolution (NHWC, F32) IGEMM\t    0.267\t    0.278\t 50.000%\t 50.000%\t     0.000\t        1\tDelegate/Convolution (NHWC, F32) IGEMM:0
\tHardSwish (NC, F32)\t    0.050\t    0.051\t 10.000%\t100.000%\t     0.000\t        1\tDelegate/HardSwish (NC, F32):2

Timings (microseconds): count=50 first=574 curr=540 min=531 max=607 avg=550.4 std=15
"""  # noqa: E501


class Broken(Exception):
    """A case that was not survived; the message says what happened."""


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes of a file with one to three random faults."""
    for _ in range(rng.integers(1, 4)):
        changed = bytearray(data)
        size = len(changed)
        start = int(rng.integers(size + 1))
        end = min(size, start + int(2 ** rng.uniform(0, 12)))
        kind = rng.integers(7)
        if kind == 0:
            del changed[start:]
        elif kind == 1 and size:
            for place in rng.integers(size, size=rng.integers(1, 9)):
                changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            changed[start:end] = rng.bytes(end - start)
        elif kind == 3:
            changed[start:end] = bytes([int(rng.choice((0, 32, 127, 255)))]) * (end - start)
        elif kind == 4:
            del changed[start:end]
        elif kind == 5:
            changed[start:start] = changed[start:end] * int(rng.integers(1, 4))
        else:  # a number that a reader may believe
            number = int(rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**24)))
            changed[start : start + 4] = number.to_bytes(4, str(rng.choice(("big", "little"))))
        data = bytes(changed)
    return data


def damage_json(text: str, rng: np.random.Generator) -> str:
    """A JSON text in which one value is another, or is gone."""
    tree = {"": json.loads(text)}
    node, key = tree, ""
    while isinstance(inner := node[key], dict | list) and len(inner) and rng.random() < 0.8:
        node = inner
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        key = keys[int(rng.integers(len(keys)))]
    if rng.random() < 0.15 and node is not tree:
        del node[key]
    else:
        node[key] = ODD[int(rng.integers(len(ODD)))]
    return json.dumps(tree[""])


def run(*arguments: object) -> str:
    """Runs a command in this process; returns what it printed.

    Raises:
      Broken: it did not end as a command should.
    """
    said = io.StringIO()
    words = [str(argument) for argument in arguments]
    try:
        with within(SECONDS), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(words)
    except SystemExit as e:
        code = e.code
    except BaseException as e:
        raise Broken(f"{' '.join(words)}: {type(e).__name__}: {e}") from e
    if code not in CODES or "Traceback" in said.getvalue():
        raise Broken(f"{' '.join(words)}: exit code {code}: {said.getvalue()[-2000:]}")
    return said.getvalue()


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"over {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def succeed(*arguments: object) -> str:
    """Runs a command that a part needs; returns what it printed."""
    said = run(*arguments)
    if "error" in said:
        raise RuntimeError(said)
    return said


@functools.cache
def imported(folder: Path, padding: str) -> Path:
    """An import folder of MobileNetV3-Small for small images, which is written once."""
    spec = mbv3_jax.build("mobilenet_v3_small", resolution=32, num_classes=5, padding=padding)
    variables = jax.tree.map(np.asarray, mbv3_jax.init(spec, jax.random.key(0)))
    names = tuple(f"class {number}" for number in range(5))
    target = folder / f"imported-{padding}"
    model = Model(spec=spec, variables=variables, preprocessing=Preprocessing(), class_names=names)
    save_model(target, model, origin={})
    return target


@dataclasses.dataclass(frozen=True)
class Images:
    """Pictures of six formats, read by `predict`, and as a folder of classes by `data check`."""

    def case(self, folder: Path, rng: np.random.Generator) -> int:
        files = []
        for number in range(TOGETHER):
            ending = list(FORMATS)[int(rng.integers(len(FORMATS)))]
            shape = (*rng.integers(1, 64, size=2), 3)
            image = io.BytesIO()
            picture = Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8))
            picture.save(
                image, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending), **FORMATS[ending]
            )
            label = folder / "images" / str(number % 2)
            label.mkdir(parents=True, exist_ok=True)
            files.append(label / f"{number}.{ending}")
            files[-1].write_bytes(damage(image.getvalue(), rng))
        said = run("predict", f"--import={imported(folder.parent, 'same')}", *files, "--json")
        missing = [file for file in files if str(file) not in said]
        if missing:
            raise Broken(f"predict says nothing of {missing[0]}")
        run("data", "check", f"folder:{folder / 'images'}", "--split-fraction=0.5")
        return TOGETHER


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights in the files of other libraries, read by `import`."""

    def case(self, folder: Path, rng: np.random.Generator) -> int:
        kinds = [("timm", "safetensors")]
        kinds += [("timm", "pth"), ("torchvision", "pth")] if installed("torch") else []
        kinds += [("keras", "weights.h5")] if installed("h5py") else []
        library, ending = kinds[int(rng.integers(len(kinds)))]
        whole = folder.parent / f"{library}.{ending}"
        padding = "symmetric" if library == "torchvision" else "same"
        if not whole.exists():
            model = imported(folder.parent, padding)
            succeed("export-weights", f"--import={model}", f"--to={library}", f"--out={whole}")
        file = folder / f"x.{ending}"
        file.write_bytes(damage(whole.read_bytes(), rng))
        # Else the two of timm that differ only in padding would be refused.
        network = ["--network=tf_mobilenetv3_small_100"] if library == "timm" else []
        run("import", f"--from={library}", f"--weights={file}", "--dry-run", *network)
        return 1


@dataclasses.dataclass(frozen=True)
class Json:
    """The files of an import folder, read by `predict`, and of a run folder, read by `report`."""

    make_run: Callable[[Path], Path]

    def case(self, folder: Path, rng: np.random.Generator) -> int:
        if rng.random() < 0.5:
            whole, command = imported(folder.parent, "same"), "predict"
        else:
            whole, command = self.make_run(folder.parent), "report"
        copy = folder / "copy"
        shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("checkpoints"))
        files = sorted(p for p in copy.glob("*.json*") if p.stat().st_size)
        file = files[int(rng.integers(len(files)))]
        text = file.read_text()
        if rng.random() < 0.5:
            file.write_bytes(damage(text.encode(), rng))
        else:
            lines = text.splitlines() if file.suffix == ".jsonl" else [text]
            place = int(rng.integers(len(lines)))
            lines[place] = damage_json(lines[place], rng)
            file.write_text("\n".join(lines) + "\n")
        if command == "report":
            run("report", copy, "--format=json", "--no-latency")
        else:
            Image.new("RGB", (40, 40)).save(folder / "x.png")
            run("predict", f"--import={copy}", folder / "x.png")
        return 1


@dataclasses.dataclass(frozen=True)
class Texts:
    """What TFLite's benchmark tool prints, read by `latency import`."""

    def case(self, folder: Path, rng: np.random.Generator) -> int:
        (folder / "times.txt").write_bytes(damage(TIMES.encode(), rng))
        run("latency", "import", folder / "times.txt", f"--out={folder / 'x.json'}")
        return 1


@dataclasses.dataclass(frozen=True)
class Names:
    """Odd names of folders, classes and pictures, for `data check`, `predict` and `embed`."""

    def case(self, folder: Path, rng: np.random.Generator) -> int:
        root = folder / str(rng.choice(NAMES)).replace("/", "_")
        for number in range(4):
            label = root / f"{number % 2}{rng.choice(NAMES)}"
            label.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40)).save(label / f"{rng.choice(NAMES)}{number}.png")
        run("data", "check", f"folder:{root}", "--split-fraction=0.5")
        model = imported(folder.parent, "same")
        run("predict", f"--import={model}", f"./{root}" if str(root).startswith("-") else root)
        run("embed", f"--import={model}", root, f"--out={folder / 'x.npz'}")
        return 4
