"""Post-training quantization of a trained float network."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from mbv3_jax.arch.spec import NetSpec, choose, flag
from mbv3_jax.data.source import Source
from mbv3_jax.nn.folded import fold
from mbv3_jax.quant.bias_correction import correct
from mbv3_jax.quant.equalization import equalize
from mbv3_jax.quant.network import Int8Network
from mbv3_jax.quant.observers import OBSERVERS, observe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to quantize after training.

    observer, percentile: of activations, see `observers.observe`.
    equalize: cross-layer equalisation, where it is exact, see `equalization.py`.
    correct_bias: see `bias_correction.py`.
    """

    observer: str = "mse"
    percentile: float = 99.99
    equalize: bool = False
    correct_bias: bool = False

    def __post_init__(self):
        choose("observer", self.observer, OBSERVERS)
        flag("equalize", self.equalize)
        flag("correct_bias", self.correct_bias)


def quantize(
    spec: NetSpec,
    variables: dict,
    batches: Sequence[np.ndarray],
    options: Options = Options(),
) -> Int8Network:
    """Quantizes: folds BatchNorm, then what `options` ask for.

    Args:
      spec: the network, `spec.quant` None.
      variables: {"params", "batch_stats"}.
      batches: normalised images [N, H, W, C] of the training data, as evaluation crops them.
      options: how.

    Raises:
      ValueError: as `observers.observe`.
    """
    folded = jax.tree.map(np.asarray, jax.jit(lambda v: fold(spec, v))(variables))
    if options.equalize:
        folded, _ = equalize(spec, folded)
    if options.correct_bias:
        folded = correct(spec, folded, batches)
    low, high = observe(
        spec, folded, batches, observer=options.observer, percentile=options.percentile
    )
    images = sum(map(len, batches))
    how = f"{images} calibration images, {options.observer}"
    how += f" {options.percentile}" if options.observer == "percentile" else ""
    how += ", equalised" if options.equalize else ""
    how += ", biases corrected" if options.correct_bias else ""
    return Int8Network(spec=spec, folded=folded, low=low, high=high, how=how)


def calibration_batches(
    source: Source, preprocess, *, images: int = 512, batch: int = 64
) -> list[np.ndarray]:
    """Images of the training data, as evaluation crops and normalises them, without augmentation.

    Args:
      source: the training data.
      preprocess: uint8 images -> normalised ones.
      images: how many, spread over all of the data by a fixed shuffle; fewer if there are fewer.
      batch: how many at a time.

    Returns:
      Float32 [N, R, R, C] arrays; images that cannot be read are left out.

    Raises:
      ValueError: none could be read.
    """
    order = np.random.default_rng(0).permutation(len(source))[:images]
    prepared, found = jax.jit(preprocess), []
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        loaded, problems = source.load(indices)
        good = [i for i in range(len(indices)) if i not in problems]
        if good:
            found.append(np.asarray(prepared(loaded["image"][good])))
    if not found:
        raise ValueError("calibration: no image could be read")
    return found
