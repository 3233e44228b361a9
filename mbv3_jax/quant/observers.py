"""Ranges of activations, observed on calibration images.

There are two passes over the images: the first finds minima and maxima, the second counts a
histogram of every tensor between the two, on the device. Each observer chooses from these.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.activations import fixed_range
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import choose
from mbv3_jax.nn import fake_quant
from mbv3_jax.nn.folded import INT8, apply_folded

BINS = 2048
OBSERVERS = ("min_max", "percentile", "mse")
# Candidates of the MSE observer: these shares of the range on either side.
_SHARES = np.linspace(0.3, 1.0, 36)


def observe(
    spec: NetSpec,
    folded: dict,
    batches: Iterable[np.ndarray],
    *,
    observer: str = "mse",
    percentile: float = 99.99,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds a range for every tensor that an int8 runtime stores.

    Args:
      spec: the network.
      folded: see `nn.folded.fold`.
      batches: normalised images [N, H, W, C]; iterated twice.
      observer: "min_max" takes all values; "percentile" leaves out the outermost
        (100 - percentile) / 2 per cent on each side; "mse" takes the range for which rounding and
        clipping together have the least mean squared error.
      percentile: for the observer "percentile", above 50 and at most 100.

    Returns:
      low [tensors] and high [tensors], float32, in the order of `fake_quant.tensors(spec)`;
      tensors whose range is fixed have that range.

    Raises:
      ValueError: the observer is unknown, the percentile is out of range, there are no images, or
        some values are not finite.
    """
    choose("observer", observer, OBSERVERS)
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile: got {percentile}, expected above 50 and at most 100")
    names = fake_quant.tensors(spec)

    def statistics(folded: dict, images: jax.Array, reduce: Callable) -> jax.Array:
        """reduce(index, values) of every tensor, stacked."""
        reduced: list[jax.Array] = []

        def note(name, x):
            reduced.append(reduce(len(reduced), x))
            return x

        apply_folded(spec, folded, images, forms=INT8, on_activation=note)
        return jnp.stack(reduced)

    @jax.jit
    def extremes(folded, images):
        return statistics(folded, images, lambda _, x: jnp.stack([jnp.min(x), jnp.max(x)]))

    observed = [np.asarray(extremes(folded, images)) for images in batches]
    if not observed:
        raise ValueError("calibration: no images")
    low = np.min([pairs[:, 0] for pairs in observed], axis=0)
    high = np.max([pairs[:, 1] for pairs in observed], axis=0)
    if not np.all(np.isfinite([low, high])):
        bad = names[int(np.argmin(np.isfinite(low) & np.isfinite(high)))]
        raise ValueError(f"calibration: the values of {bad} are not finite")
    if observer != "min_max":
        width = np.maximum(high - low, 1e-12)

        @jax.jit
        def histogram(folded, images, low, width):
            def count(i, x):
                bins = jnp.clip((x - low[i]) / width[i] * BINS, 0, BINS - 1).astype(jnp.int32)
                return jnp.zeros(BINS, jnp.int32).at[bins.ravel()].add(1)

            return statistics(folded, images, count)

        counts = np.zeros((len(names), BINS), np.int64)
        for images in batches:
            counts += np.asarray(histogram(folded, images, low, width), np.int64)
        for i in range(len(names)):
            edges = low[i] + width[i] * np.arange(BINS + 1) / BINS
            if observer == "percentile":
                low[i], high[i] = _percentile(counts[i], edges, percentile)
            else:
                low[i], high[i] = _least_error(counts[i], edges)
    for i, name in enumerate(names):
        low[i], high[i] = fixed_range(name) or (low[i], high[i])
    return low.astype(np.float32), high.astype(np.float32)


def _percentile(counts: np.ndarray, edges: np.ndarray, percentile: float) -> tuple[float, float]:
    share = np.cumsum(counts) / np.sum(counts)
    outside = (1 - percentile / 100) / 2
    first = int(np.searchsorted(share, outside, side="right"))
    last = int(np.searchsorted(share, 1 - outside - 1e-12))
    return edges[first], edges[min(last, BINS - 1) + 1]


def _least_error(counts: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """The range around zero with the least mean square error.

    Candidates cut both ends in the same proportion, or only one end.
    """
    centres, low, high = (edges[:-1] + edges[1:]) / 2, min(edges[0], 0), max(edges[-1], 0)
    used = counts > 0
    centres, weights = centres[used], counts[used]

    def error(low, high):
        scale = max((high - low) / 255, 1e-12)
        zero = np.clip(np.round(-128 - low / scale), -128, 127)
        integers = np.clip(np.round(centres / scale) + zero, -128, 127)
        return float(np.sum(weights * np.square((integers - zero) * scale - centres)))

    candidates = [(low * a, high * b) for s in _SHARES for a, b in ((s, s), (1, s), (s, 1))]
    return min(candidates, key=lambda pair: error(*pair))
