"""A network with all that its int8 form needs: folded weights, and a range for every tensor."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import choose, flag
from mbv3_jax.data.source import Source
from mbv3_jax.nn import fake_quant
from mbv3_jax.nn.fake_quant import convolve, fake_weight
from mbv3_jax.nn.folded import INT8, Walk, fold
from mbv3_jax.quant.observers import OBSERVERS, observe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Network:
    """What an int8 file is written from.

    spec: the network, `spec.quant` None.
    folded: see `nn.folded.fold`; NumPy float32.
    low, high: [tensors], the range of each tensor of `nn.quantized.tensors(spec)`.
    how: how the ranges were found, for people.
    """

    spec: NetSpec
    folded: dict
    low: np.ndarray
    high: np.ndarray
    how: str

    def ranges(self) -> dict[str, tuple[float, float]]:
        """(low, high) of every tensor by its name; fixed ones as the runtime has them."""
        pairs = zip(self.low.tolist(), self.high.tolist(), strict=True)
        return dict(zip(fake_quant.tensors(self.spec), pairs, strict=True))

    @functools.cached_property
    def simulate(self):
        """Normalised images [N, H, W, C] -> the logits of simulated int8; jitted."""
        # As arguments: XLA would spend seconds to fold constants.
        run = jax.jit(lambda weights, x: fake_quant.simulate(self.spec, *weights, x))
        return functools.partial(run, (self.folded, self.low, self.high))


def trained_int8(spec: NetSpec, variables: dict) -> Int8Network:
    """The int8 form of a network that was trained for it.

    Raises:
      ValueError: it was not, or ended before the delay was over.
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


# Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721, section 4.1).
#
# Multiplying output channel i of a layer by 1/s_i and the next layer's input channel i by s_i
# changes nothing where what lies between commutes with a positive factor: ReLU does, and so does
# squeeze-and-excite, whose first convolution gets s_i too. ReLU6 does not (its 6 would become 6 /
# s_i, one for each channel), h-swish and swish do not: these are left alone.

_LIMIT = 1e4  # factors beyond it are of channels that do next to nothing


def equalize(spec: NetSpec, folded: dict) -> tuple[dict, int]:
    """Makes the kernels' channels alike in magnitude, wherever that is exact.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.

    Returns:
      The same function as folded weights (float32 rounding apart), and the number of blocks with
      something to equalise.
    """
    copied = _copy(folded)
    changed = 0
    for index, block in enumerate(spec.blocks):
        if block.act != "relu":
            continue
        changed += 1
        layers = copied[f"block{index + 1}"]
        depthwise, project = layers["depthwise"]["conv"], layers["project"]["conv"]
        # Nagel's equation (11), solved for three layers at once: all get one magnitude.
        r2 = np.max(np.abs(depthwise["kernel"]), axis=(0, 1, 2))
        readers = [project["kernel"]]
        if block.se:
            readers.append(layers["se"]["reduce"]["kernel"])
        r3 = np.max(np.abs(readers[0]), axis=(0, 1, 3))
        if spec.has_expand(index):
            expand = layers["expand"]["conv"]
            r1 = np.max(np.abs(expand["kernel"]), axis=(0, 1, 2))
            mean = np.cbrt(r1 * r2 * r3)
            first, second = _factor(r1, mean), _factor(mean, r3)  # s of each of the two gaps
            expand["kernel"] = expand["kernel"] / first
            expand["bias"] = expand["bias"] / first
            depthwise["kernel"] = depthwise["kernel"] * first / second
        else:
            second = _factor(r2, np.sqrt(r2 * r3))
            depthwise["kernel"] = depthwise["kernel"] / second
        depthwise["bias"] = depthwise["bias"] / second
        project["kernel"] = project["kernel"] * second[:, None]
        if block.se:
            reduce = layers["se"]["reduce"]
            reduce["kernel"] = reduce["kernel"] * second[:, None]
    return copied, changed


def _factor(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 1 where that is no sensible number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        s = above / below
    return np.where((s > 1 / _LIMIT) & (s < _LIMIT), s, 1).astype(np.float32)


def _copy(tree: dict) -> dict:
    return {k: _copy(v) if isinstance(v, dict) else np.asarray(v) for k, v in tree.items()}


# Bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2), from calibration images.
#
# Rounding a kernel moves the mean of its output channels, most in depthwise layers, whose channels
# sum only 9 or 25 products. The mean shift on the images, of inputs as they are in float, is taken
# off the bias.


class _Shifts(Walk):
    """Computes in float, and notes what rounding each kernel would add to each channel."""

    def __init__(self, spec: NetSpec, folded: dict):
        super().__init__(spec, folded, INT8)
        self.shifts = {}

    def conv(self, name, x, *, stride=1, factor=1.0, offset=0.0):
        self.current, self.factor = name, factor
        return super().conv(name, x, stride=stride, factor=factor, offset=offset)

    def convolve(self, x, kernel, stride):
        error = convolve(self.spec, x, fake_weight(kernel) - kernel, stride, "auto")
        # In units of the network, whose tensor may be a sixth of the stored one.
        self.shifts[self.current] = jnp.mean(error, axis=(0, 1, 2)) / self.factor
        return convolve(self.spec, x, kernel, stride, "auto")


def correct_bias(spec: NetSpec, folded: dict, batches: Iterable[np.ndarray]) -> dict:
    """Takes off the biases what rounding the kernels adds to them in the mean.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.
      batches: normalised images [N, H, W, C].

    Returns:
      Folded weights with new biases.
    """

    @jax.jit
    def shifts(folded, images):
        walk = _Shifts(spec, folded)
        walk.logits(images)
        return walk.shifts

    total, images = None, 0
    for batch in batches:
        count, found = len(batch), shifts(folded, batch)
        total = total or dict.fromkeys(found, 0.0)
        total = {name: total[name] + np.asarray(found[name]) * count for name in found}
        images += count
    corrected = jax.tree.map(np.asarray, folded)
    for name, shift in total.items():
        layer = corrected
        for part in name.split("/"):
            layer = layer[part]
        layer["bias"] = (layer["bias"] - shift / images).astype(np.float32)
    return corrected


# Post-training quantization of a trained float network.


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
