"""Post-training quantization: folded weights, and a range for every tensor, for int8 exports."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import choose, flag
from mbv3_jax.data.source import Source
from mbv3_jax.nn import fake_quant
from mbv3_jax.nn.folded import fold
from mbv3_jax.quant.observers import OBSERVERS, observe
from mbv3_jax.quant.weight_corrections import correct_bias, equalize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Network:
    """A network with everything that an int8 file needs.

    Attributes:
      spec: the network, with `spec.quant` None.
      folded: see `nn.folded.fold`; NumPy float32.
      low, high: [tensors], the range of each tensor of `nn.fake_quant.tensors(spec)`.
      how: a description of how the ranges were determined.
    """

    spec: NetSpec
    folded: dict
    low: np.ndarray
    high: np.ndarray
    how: str

    def ranges(self) -> dict[str, tuple[float, float]]:
        """(low, high) of every tensor by its name."""
        pairs = zip(self.low.tolist(), self.high.tolist(), strict=True)
        return dict(zip(fake_quant.tensors(self.spec), pairs, strict=True))

    @functools.cached_property
    def simulate(self) -> Callable:
        """A jitted function: normalised images [N, H, W, C] -> logits of simulated int8."""
        # The weights are arguments because XLA would spend seconds folding them as constants.
        run = jax.jit(functools.partial(fake_quant.simulate, self.spec))
        return functools.partial(run, self.folded, self.low, self.high)


def trained_int8(spec: NetSpec, variables: dict) -> Int8Network:
    """The int8 form of a network that was trained for int8.

    Raises:
      ValueError: it was not, or its training ended before the delay was over.
    """
    if spec.quant is None:
        raise ValueError("the network was not trained for int8 (config.quant)")
    state = variables["batch_stats"]["quant"]
    if not float(state["on"]) > 0:
        raise ValueError(
            f"the network was trained in float only: its quant.delay of {spec.quant.delay_steps} "
            "steps was not over"
        )
    plain = spec.replace(quant=None)
    folded = jax.tree.map(np.asarray, jax.jit(lambda v: fold(plain, v))(variables))
    low, high = (np.asarray(state[k]) for k in ("low", "high"))
    return Int8Network(spec=plain, folded=folded, low=low, high=high, how="training")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to quantize after training.

    Attributes:
      observer, percentile: how to choose the ranges of activations, see `observers.observe`.
      equalize: whether to use `weight_corrections.equalize`.
      correct_bias: whether to use `weight_corrections.correct_bias`.
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
    """Quantizes a network that was trained in float.

    Args:
      spec: the network, with `spec.quant` None.
      variables: {"params", "batch_stats"}.
      batches: normalised images [N, H, W, C] of the training data, cropped as for evaluation.
      options: which methods to use.

    Raises:
      ValueError: as for `observers.observe`.
    """
    folded = jax.tree.map(np.asarray, jax.jit(lambda v: fold(spec, v))(variables))
    if options.equalize:
        folded, _ = equalize(spec, folded)
    if options.correct_bias:
        folded = correct_bias(spec, folded, batches)
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
    source: Source, preprocess: Callable, *, images: int = 512, batch: int = 64
) -> list[np.ndarray]:
    """Images of the training data, cropped and normalised as for evaluation.

    Args:
      source: the training data.
      preprocess: uint8 images -> normalised images.
      images: how many, chosen from all of the data by a fixed shuffle; all if there are fewer.
      batch: images in each array.

    Returns:
      Float32 [N, R, R, C] arrays; images that cannot be read are left out.

    Raises:
      ValueError: no image could be read.
    """
    order = np.random.default_rng(0).permutation(len(source))[:images]
    prepare, batches = jax.jit(preprocess), []
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        loaded, problems = source.load(indices)
        good = [i for i in range(len(indices)) if i not in problems]
        if good:
            batches.append(np.asarray(prepare(loaded["image"][good])))
    if not batches:
        raise ValueError("calibration: no image could be read")
    return batches
