"""An export as a whole: read the network, quantize, write, check, and only then create the file."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import check_can_be_written, write_atomically
from mbv3_jax.data import augment
from mbv3_jax.data.files import Files, find_files
from mbv3_jax.data.source import Source
from mbv3_jax.export import check, coreml, formats, metadata
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
from mbv3_jax.train.plan import read_plan
from mbv3_jax.train.sources import open_data

CALIBRATION_IMAGES = 512
_NOISE_IMAGES = 128  # if all images are asked for and there are none
_SIMULATION_BATCH = 16
_OTHER_SIZES = 32  # images to check each further size on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was written, and how it was checked.

    size: the size of the file, in bytes.
    counts: operation -> how often it occurs in the file.
    what: a description of the images of the check; "" for a file that was not run.
    comparisons: what the file was compared with -> the result.
    top1: whose logits -> their accuracy on the images; empty if the images have no labels.
    quantization: how ranges were found; "" for a float file.
    note: a note on the output for the user; "" for none.
    readable_until: the day until which JAX promises to read a StableHLO file; "" for others.
    """

    size: int
    counts: dict[str, int]
    what: str
    comparisons: dict[str, Comparison]
    top1: dict[str, float]
    quantization: str
    note: str
    readable_until: str = ""


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

    A Core ML package is a folder, and is not run: Core ML exists only on Apple's systems.

    Args:
      folder: a run folder or an import folder.
      target: what to write.
      out: the file; an existing file stays as it is until the new one replaces it.
      step, weights: see `run.model.load_model`.
      images: image files and folders to check on and to calibrate on; None for the run's data.
      check_images: how many images to check on; None for all.
      calibration_images: how many images to calibrate on after training; None for
        `CALIBRATION_IMAGES`.
      post: options of quantization after training; None for the defaults.

    Raises:
      UsageError: something is missing or cannot be combined; nothing was written.
      RunError: the file does not compute what the network does, or cannot be written; nothing was
        written.
    """
    is_run = target.file_format != "coreml"
    if images is not None and not is_run:
        raise UsageError("--images: has no effect with --format=coreml, whose files are not run")
    _check_out(out, formats.SUFFIXES[target.file_format], is_folder=not is_run)
    model = load_model(folder, step=step, weights=weights)
    model.require_head(folder)
    run = folder if (folder / "config.json").is_file() else None
    samples = find_samples(model, run, images, check_images) if is_run else None
    network = None
    if samples and target.precision == "int8":
        network = _quantize(model, samples, calibration_images or CALIBRATION_IMAGES, post)
    try:
        file = formats.write(model, target, network)
    except ValueError as e:
        raise RunError(f"{folder}: cannot be written: {e}") from e
    entries = metadata.describe(model, target, _origin(folder, run, step, weights))
    if network:
        entries["quantization"] = network.how
    file = metadata.attach(file, target.file_format, entries)
    report = _check(file, target, model, samples, network)
    if "jax_export" in entries:
        until = entries["jax_export"]["readable_until"]
        report = dataclasses.replace(report, readable_until=until)
    try:
        if target.file_format == "coreml":
            coreml.save(file, out)
        else:
            write_atomically(out, file)
    except OSError as e:
        raise RunError(f"--out: cannot write {out}: {e.strerror}") from e
    return report


def _check_out(out: Path, suffix: str, *, is_folder: bool) -> None:
    """Finds problems with the output file before the work instead of after it."""
    if out.suffix != suffix:
        raise UsageError(f"--out: got {out}, expected a name that ends in {suffix}")
    if is_folder and (out.exists() or out.is_symlink()):
        raise UsageError(f"--out: {out} exists already; a Core ML package is a new folder")
    check_can_be_written("--out", out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Images to check an export on, cropped to the network's resolution.

    images: uint8 [images, height, width, channels].
    labels: int32 [images]; None if the labels are not known.
    what: a description for messages.
    calibration: the data to calibrate int8 on: the run's training data, or the images that were
      named; None for noise.
    """

    images: np.ndarray
    labels: np.ndarray | None
    what: str
    calibration: Source | None


def find_samples(
    model: Model, run: Path | None, named: Sequence[str] | None, count: int | None
) -> Samples:
    """Takes `count` images, spread over all available ones.

    Args:
      model: the network, whose preprocessing crops the images.
      run: the run folder; None for an import folder.
      named: files and folders of images; None for the evaluation split of the run or, without a
        run, noise.
      count: the number of images, or fewer if there are not enough; None for all.

    Raises:
      UsageError: there are no such images, or the data of the run is not available.
      RunError: none of the images can be read.
    """
    if named:
        notes: list[str] = []
        try:
            paths = find_files(named, report=notes.append)
            files = Files(paths, model.spec.resolution, model.crop)
        except (FileNotFoundError, ValueError) as e:
            raise UsageError(f"--images: {e}") from e
        images, _ = _load(files, count)
        return Samples(
            images=images, labels=None, what="; ".join(("images given", *notes)), calibration=files
        )
    if run is None:
        shape = (count or _NOISE_IMAGES, *model.spec.input_shape)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        what = "images of noise (name real ones with --images=FOLDER)"
        return Samples(images=images, labels=None, what=what, calibration=None)
    try:
        data = open_data(read_plan(read_config(run), run))
    except UsageError as e:
        raise UsageError(f"{e} (or name images to check on: --images=FOLDER)") from e
    source = data.held_out
    images, labels = _load(source, count)
    what = f"images of {source.name}, {source.split}"
    known = labels if labels.ndim == 1 else None  # else there is no top-1
    return Samples(images=images, labels=known, what=what, calibration=data.training)


def _load(source: Source, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    order = np.sort(np.random.default_rng(0).permutation(len(source))[:count])
    loaded, problems = source.load(order)
    readable = [i for i in range(len(order)) if i not in problems]
    if not readable:
        first = next(iter(problems.values()), "the data is empty")
        raise RunError(f"no image to check on: {first}")
    return loaded["image"][readable], loaded["label"][readable]


def _preprocess(model: Model) -> Callable[[jax.Array], jax.Array]:
    """The function from uint8 images to the network's input."""
    return augment.make_preprocess(normalize=model.preprocessing.normalize)[1]


def _quantize(model: Model, samples: Samples, images: int, post: Options | None) -> Int8Network:
    if model.spec.quant is not None:
        if post:
            raise UsageError("the network was trained for int8: there is nothing to calibrate")
        try:
            return trained_int8(model.spec, model.variables)
        except ValueError as e:
            raise UsageError(f"--precision=int8: {e}") from e
    if samples.calibration is None:
        raise UsageError("--precision=int8 needs images to calibrate on: --images=FOLDER")
    try:
        batches = calibration_batches(samples.calibration, _preprocess(model), images=images)
        return quantize(model.spec, model.variables, batches, post or Options())
    except ValueError as e:
        raise UsageError(f"--precision=int8: {e}") from e


def _check(
    file: bytes,
    target: Target,
    model: Model,
    samples: Samples | None,
    network: Int8Network | None,
) -> Report:
    """Compares the file with the network: its operations and, where it runs, its logits.

    Args:
      file: the file.
      target: what it is.
      model: the network.
      samples: the images to run it on; None for a file that runs elsewhere only.
      network: the int8 form of the network, of an int8 file.

    Raises:
      RunError: the file is wrong.
    """
    decisive: list[Comparison] = []
    top1: dict[str, float] = {}
    comparisons: dict[str, Comparison] = {}
    if samples:
        comparisons, decisive, top1 = _run(file, target, model, samples, network)
    problems = check.defects(file, target, model)
    problems += filter(None, (comparison.problem(target.precision) for comparison in decisive))
    if problems:
        raise RunError(f"the exported file is wrong, and was not kept: {'; '.join(problems)}")
    return Report(
        size=len(file),
        counts=formats.counts(file, target.file_format),
        what=f"{len(samples.images)} {samples.what}" if samples else "",
        comparisons=comparisons,
        top1=top1,
        quantization=network.how if network else "",
        note=model.probabilities if model.multi_label else model.sigmoid_note,
    )


def _run(
    file: bytes, target: Target, model: Model, samples: Samples, network: Int8Network | None
) -> tuple[dict[str, Comparison], list[Comparison], dict[str, float]]:
    """Runs the file on the samples.

    Returns:
      The comparisons and the accuracies of `Report`, and between them the comparisons by which the
      file is accepted.
    """
    preprocess, takes_floats = jax.jit(_preprocess(model)), target.images_dtype != "uint8"
    inputs = np.asarray(preprocess(samples.images))
    references = {"network": check.reference(model, inputs)}
    if network:
        simulated = check.in_batches(network.simulate, inputs, _SIMULATION_BATCH)
        references["simulated int8"] = simulated
    logits = check.run_file(file, target, inputs if takes_floats else samples.images)
    comparisons = {name: Comparison.of(expected, logits) for name, expected in references.items()}
    decisive = [comparisons["simulated int8" if network else "network"]]
    for pixels in check.of_other_sizes(samples.images[:_OTHER_SIZES]) if target.any_size else ():
        inputs = np.asarray(preprocess(pixels))
        found = check.run_file(file, target, inputs if takes_floats else pixels)
        comparison = Comparison.of(check.reference(model, inputs), found)
        decisive.append(comparison)
        height, width = pixels.shape[1:3]
        comparisons[f"network at {height}x{width} pixels"] = comparison
    top1 = {}
    if samples.labels is not None:
        top1 = {
            name: float(np.mean(np.argmax(values, 1) == samples.labels))
            for name, values in {**references, "file": logits}.items()
        }
    return comparisons, decisive, top1


def _origin(folder: Path, run: Path | None, step: int | str | None, weights: str) -> dict:
    """Where the weights come from, for the metadata of the file."""
    name = folder.absolute().name
    if run is None:
        return {"import": name}
    checkpoints = Checkpoints(run, read_only=True)
    try:
        step = checkpoints.find(step)
    finally:
        checkpoints.close()
    averaged = is_averaged(run, read_config(run), weights)
    return {"run": name, "step": step, "weights": "ema" if averaged else "raw"}
