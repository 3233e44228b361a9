"""The images that an export is checked on, and calibrated on for int8."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from mbv3_jax.data import augment
from mbv3_jax.data.files import Files, find
from mbv3_jax.data.source import Source
from mbv3_jax.train import run_folder
from mbv3_jax.train.errors import RunError, UsageError
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.model import Model

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
            paths = find(named)
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
        experiment = make_experiment(run_folder.read_config(run), run)
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
