"""The images that an export is checked on, and calibrated on for int8."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.data import augment
from mbv3_jax.data.files import Files, find_files
from mbv3_jax.data.source import Source
from mbv3_jax.export import check, formats, metadata
from mbv3_jax.export.check import Comparison
from mbv3_jax.export.formats import Target
from mbv3_jax.quant.post_training import (
    Int8Network,
    Options,
    calibration_batches,
    quantize,
    trained_int8,
)
from mbv3_jax.run.checkpoint import Checkpoints, is_averaged
from mbv3_jax.run.folder import read_config
from mbv3_jax.run.model import Model, load_model
from mbv3_jax.train.experiment import make_experiment

_NOISE = 128  # images, where "all" means nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images as they are decoded, cropped to the network's resolution.

    images: uint8 [N, R, R, 3].
    labels: int32 [N], or None where there are none.
    what: for people.
    training: the training data, or, where a command names images, these.
    """

    images: np.ndarray
    labels: np.ndarray | None
    what: str
    training: Source | None


def find_pictures(
    model: Model, run: Path | None, named: Sequence[str] | None, count: int | None
) -> Pictures:
    """Takes `count` images, spread over what there is.

    Args:
      model: its preprocessing crops them.
      run: the run folder, None for an import folder.
      named: files and folders of images; None for the evaluation split of the run, or, without a
        run, computed ones.
      count: how many; fewer if there are fewer. None for all.

    Raises:
      UsageError: no such images, or the data of the run is not there.
      RunError: none of them can be read.
    """
    side = model.spec.resolution
    if named:
        try:
            paths = find_files(named)
        except FileNotFoundError as e:
            raise UsageError(f"--images: {e}") from e
        source = Files(paths, side, model.preprocessing.crop)
        images, _ = _load(source, count)
        return Pictures(images=images, labels=None, what="images given", training=source)
    if run is None:
        shape = (count or _NOISE, side, side, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        what = "images of noise (name real ones by --images=FOLDER)"
        return Pictures(images=images, labels=None, what=what, training=None)
    try:
        experiment = make_experiment(read_config(run), run)
    except UsageError as e:
        raise UsageError(f"{e} (or name images to check on: --images=FOLDER)") from e
    source = experiment.eval_source
    images, labels = _load(source, count)
    what = f"images of {source.name}, {source.split}"
    return Pictures(images=images, labels=labels, what=what, training=experiment.train_source)


def normalized(model: Model, images: np.ndarray) -> np.ndarray:
    """uint8 [N, R, R, 3] -> the network's input, float32."""
    return np.asarray(jax.jit(preprocess(model))(images))


def preprocess(model: Model):
    """The function from uint8 images to the network's input."""
    return augment.make_preprocess(normalize=model.preprocessing.normalize)[1]


def _load(source: Source, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    order = np.sort(np.random.default_rng(0).permutation(len(source))[:count])
    loaded, problems = source.load(order)
    good = [i for i in range(len(order)) if i not in problems]
    if not good:
        first = next(iter(problems.values()), "there is none")
        raise RunError(f"no image to check on: {first}")
    return loaded["image"][good], loaded["label"][good]


# An export as a whole: read, quantize, write, check, and only then a file.

CALIBRATION_IMAGES = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was written, and how it was checked.

    size: of the file, in bytes.
    counts: operations by name.
    what: the images of the check, for people.
    comparisons: by what the file was compared with.
    top1: accuracy on these images, by whose it is; empty without labels.
    quantization: how ranges were found; "" in float.
    """

    size: int
    counts: dict[str, int]
    what: str
    comparisons: dict[str, Comparison]
    top1: dict[str, float]
    quantization: str


def export(
    folder: Path,
    target: Target,
    out: Path,
    *,
    step: int | str | None = None,
    weights: str = "auto",
    images: Sequence[str] | None = None,
    check_images: int | None = 128,
    calibration_images: int | None = None,
    post: Options | None = None,
) -> Report:
    """Exports a run folder or an import folder to one file, which appears once it is checked.

    Args:
      folder: of either kind.
      target: what to write.
      out: where; a file that is there stays as it is until the new one replaces it.
      step, weights: see `train.model.load`.
      images: files and folders to check on, and to calibrate on; None for the data of the run.
      check_images: how many to check on; None for all.
      calibration_images, post: of quantization after training; None for 512, and the defaults.

    Raises:
      UsageError: something is missing, or does not go together; nothing was written.
      RunError: the file is not the network, or cannot be written; nothing was written.
    """
    _check_out(out, formats.SUFFIXES[target.file_format])
    model = load_model(folder, step=step, weights=weights)
    if model.spec.in_channels != 3:
        raise UsageError(f"{folder}: has {model.spec.in_channels} channels, but images have 3")
    run = folder if (folder / "config.json").is_file() else None
    pictures = find_pictures(model, run, images, check_images)
    network = None
    if target.precision == "int8":
        network = _quantize(model, pictures, calibration_images or CALIBRATION_IMAGES, post)
    try:
        file = formats.write(model, target, network)
    except ValueError as e:
        raise RunError(f"{folder}: cannot be written: {e}") from e
    entries = metadata.describe(
        model,
        file_format=target.file_format,
        precision=target.precision,
        batch=target.batch,
        input_dtype="int8" if network else target.input_dtype,
        origin=_origin(folder, run, step, weights),
    )
    if network:
        entries["quantization"] = network.how
    file = metadata.attach(file, target.file_format, entries)
    report = _check(file, target, model, pictures, network)
    try:
        _write(out, file)
    except OSError as e:
        raise RunError(f"--out: cannot write {out}: {e.strerror}") from e
    return report


def _quantize(model: Model, pictures: Pictures, images: int, post: Options | None) -> Int8Network:
    if model.spec.quant is not None:
        if post:
            raise UsageError("the network was trained for int8: there is nothing to calibrate")
        try:
            return trained_int8(model.spec, model.variables)
        except ValueError as e:
            raise UsageError(f"--precision=int8: {e}") from e
    if pictures.training is None:
        raise UsageError("--precision=int8 needs images to calibrate on: --images=FOLDER")
    try:
        batches = calibration_batches(pictures.training, preprocess(model), images=images)
        return quantize(model.spec, model.variables, batches, post or Options())
    except ValueError as e:
        raise UsageError(f"--precision=int8: {e}") from e


def _check(
    file: bytes, target: Target, model: Model, pictures: Pictures, network: Int8Network | None
) -> Report:
    inputs = normalized(model, pictures.images)
    logits = {"network": check.reference(model, inputs)}
    if network:
        logits["simulated int8"] = check.in_batches(network.simulate, inputs, 16)
    raw = target.input_dtype == "uint8"
    logits["file"] = got = check.run_file(file, target, pictures.images if raw else inputs)
    comparisons = {
        name: Comparison.of(wanted, got) for name, wanted in logits.items() if name != "file"
    }
    problems = check.defects(file, target, model)
    what = comparisons["simulated int8" if network else "network"].problem(target.precision)
    if problems := problems + [what] * (what is not None):
        raise RunError(f"the exported file is wrong, and was not kept: {'; '.join(problems)}")
    top1 = {}
    if pictures.labels is not None:
        top1 = {k: float(np.mean(np.argmax(v, 1) == pictures.labels)) for k, v in logits.items()}
    return Report(
        size=len(file),
        counts=formats.counts(file, target.file_format),
        what=f"{len(inputs)} {pictures.what}",
        comparisons=comparisons,
        top1=top1,
        quantization=network.how if network else "",
    )


def _origin(folder: Path, run: Path | None, step, weights: str) -> dict:
    if run is None:
        return {"import": folder.absolute().name}
    checkpoints = Checkpoints(run, read_only=True)
    try:
        found = checkpoints.find(step)
    finally:
        checkpoints.close()
    averaged = is_averaged(run, read_config(run), weights)
    name = folder.absolute().name
    return {"run": name, "step": found, "weights": "ema" if averaged else "raw"}


def _check_out(out: Path, suffix: str) -> None:
    """Finds before the work what would fail after it."""
    if out.suffix != suffix:
        raise UsageError(f"--out: got {out}, expected a name that ends in {suffix}")
    if out.is_dir():
        raise UsageError(f"--out: {out} is a folder")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"--out: {parent}: no such folder")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"--out: {parent}: no right to write there")


def _write(out: Path, file: bytes) -> None:
    """Writes whole or not at all."""
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with temporary.open("wb") as f:
            f.write(file)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(out)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
