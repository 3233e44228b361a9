"""Predicts the latency of a network from a latency table, without building the network.

A piece in the table takes the measured time. The time of other pieces is predicted as a sum over
the work that they do (multiply-adds by kind, values read and written, nonlinearities; no weight is
negative, so that more work never takes less time), corrected by boosted trees for what is not
additive. A network takes factor * (sum over its pieces) ** power, fitted to networks that were
measured as a whole: in a large network a piece finds less of its data in the caches than when it
runs alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import choose
from mbv3_jax.latency.pieces import KINDS, Piece, pieces
from mbv3_jax.latency.table import Table

# With fewer pieces than this, trees would not learn a correction.
_FOR_TREES = 40


@dataclasses.dataclass(frozen=True)
class Calibration:
    """factor * x ** power: converts another measure of a network to milliseconds."""

    factor: float
    power: float

    def __call__(self, x) -> np.ndarray:
        return self.factor * np.asarray(x, float) ** self.power


def calibrate(x: Sequence[float], ms: Sequence[float], *, linear: bool = False) -> Calibration:
    """Fits a calibration by least squares of logarithms, so that relative errors count.

    Args:
      x: The measure of each network: multiply-adds, milliseconds elsewhere, ...
      ms: The milliseconds of each network.
      linear: Whether to fix the power at 1.

    Raises:
      ValueError: There are fewer than two networks, or the numbers of values differ.
    """
    if len(x) != len(ms) or len(x) < 2:
        raise ValueError(f"got {len(x)} and {len(ms)} values, expected as many, two or more")
    log_x, log_ms = np.log(np.asarray(x, float)), np.log(np.asarray(ms, float))
    power, offset = (1.0, np.mean(log_ms - log_x)) if linear else np.polyfit(log_x, log_ms, 1)
    return Calibration(float(np.exp(offset)), float(power))


def work(piece: Piece) -> dict[str, float]:
    """Returns the work of a piece by kind, in millions of operations or values; "call" is 1."""
    before, after = math.prod(piece.sizes), math.prod(piece.out_sizes)
    kernel, wide = piece.kernel**2, piece.expansion
    counts = dict.fromkeys(_columns(), 0.0)
    activated = after * wide
    if piece.kind == "stem":
        counts["conv"] = after * kernel * piece.inputs * piece.out
        counts["written"], activated = after * piece.out, after * piece.out
    elif piece.kind == "block":
        expands = wide != piece.inputs
        counts["expand"] = before * piece.inputs * wide * expands
        counts["project"] = after * wide * piece.out
        side = piece.kernel if piece.kernel in (3, 5) else 7
        counts[f"depthwise{side}"] = after * kernel * wide
        counts["strided"] = after * kernel * wide * (piece.stride > 1)
        counts["written"] = before * wide * expands + after * (wide + piece.out)
        counts["added"] = after * piece.out * piece.shortcut
        activated += before * wide * expands
    else:
        counts["expand"] = after * kernel * piece.inputs * wide
        counts["dense"] = wide * piece.head + (piece.head or wide) * piece.out
        counts["written"] = counts["pooled"] = after * wide
    if not ACTIVATIONS[choose("act", piece.act, ACTIVATIONS)].fused:
        counts[piece.act] = activated
    if piece.squeezed:
        counts["dense"] += 2 * (wide or piece.out) * piece.squeezed
        counts["scaled"] = after * (wide or piece.out)
        counts["gates"] = 1e6
    counts["call"] = 1e6
    return {name: value / 1e6 for name, value in counts.items()}


_WORK: tuple[str, ...] = (
    *("conv", "expand", "project", "depthwise3", "depthwise5", "depthwise7", "strided"),
    *("dense", "written", "added", "pooled", "scaled"),
)


def _columns() -> tuple[str, ...]:
    """The names of all kinds of work, in order; each activation that is not fused is one."""
    passes = [name for name, act in ACTIVATIONS.items() if not act.fused]
    return (*_WORK, *passes, "gates", "call")


def _with_unmeasured_activations(
    weights: np.ndarray, amounts: np.ndarray, ms: np.ndarray
) -> np.ndarray:
    """Sets the cost of activations that no measured piece has, which the fit leaves at 0.

    A pass over the feature map costs as much as in the most expensive activation that was measured.
    If none has a price, it costs at most as much as writing the map: no piece takes less time than
    writing its output.

    Args:
      weights: [kinds of work], milliseconds for a million.
      amounts: [pieces, kinds of work], in millions.
      ms: [pieces], milliseconds.
    """
    columns = _columns()
    prices = dict(zip(columns, weights, strict=True))
    measured = dict(zip(columns, np.any(amounts > 0, axis=0), strict=True))
    passes = {name: act.passes for name, act in ACTIVATIONS.items() if not act.fused}
    price = max((prices[n] / passes[n] for n in passes if measured[n]), default=0.0)
    price = price or np.min(ms / amounts[:, columns.index("written")])
    prices |= {n: price * passes[n] for n in passes if not measured[n]}
    return np.array(list(prices.values()))


def _row(piece: Piece) -> list[float]:
    """Returns the trees' inputs: the work, and the sizes, which decide what fits in a cache."""
    size = math.sqrt(math.prod(piece.sizes))
    sizes = (size, piece.inputs, piece.expansion, piece.out, piece.kernel, piece.stride)
    return [*work(piece).values(), *sizes, piece.squeezed, KINDS.index(piece.kind)]


class CostModel:
    """model(spec) -> milliseconds; `fit` makes one.

    Args:
      known: The milliseconds of the pieces in the table.
      weights: The milliseconds for each kind of work, in the order of `work`.
      trees: Predicts the logarithm of the correction from `_row`; None corrects nothing.
      whole: Converts the sum over pieces to the milliseconds of a network.
    """

    def __init__(
        self,
        known: Mapping[Piece, float],
        weights: np.ndarray,
        trees: Any | None,
        whole: Calibration = Calibration(1.0, 1.0),
    ):
        self.known, self.weights, self.trees, self.whole = dict(known), weights, trees, whole
        self._predicted: dict[Piece, float] = {}

    def piece(self, piece: Piece) -> float:
        """Returns the milliseconds of a piece, measured or predicted."""
        if piece in self.known:
            return self.known[piece]
        if piece not in self._predicted:
            self._predicted[piece] = self.predicted([piece])[0]
        return self._predicted[piece]

    def predicted(self, some: Sequence[Piece]) -> np.ndarray:
        """Predicts the milliseconds [N] of N pieces, also of those that are in the table."""
        ms = np.array([list(work(p).values()) for p in some]) @ self.weights
        if self.trees is not None:
            ms = ms * np.exp(self.trees.predict([_row(p) for p in some]))
        return ms

    def pieces_ms(self, spec: NetSpec) -> float:
        """Returns the sum over the network's pieces."""
        return sum(self.piece(piece) for piece in pieces(spec))

    def __call__(self, spec: NetSpec) -> float:
        return float(self.whole(self.pieces_ms(spec)))

    def covered(self, spec: NetSpec) -> float:
        """Returns the fraction of the network's pieces that are in the table."""
        parts = pieces(spec)
        return sum(piece in self.known for piece in parts) / len(parts)


def fit(table: Table) -> CostModel:
    """Fits a model to a table, without the networks that are held out.

    Raises:
      ValueError: The table has no pieces.
    """
    if not table.pieces:
        raise ValueError("the latency table has no pieces to fit a model on")
    some, ms = list(table.pieces), np.array(list(table.pieces.values()))
    amounts = np.array([list(work(p).values()) for p in some])
    # Divided by ms, so that relative errors count.
    weights, _ = optimize.nnls(amounts / ms[:, None], np.ones(len(ms)))
    weights = _with_unmeasured_activations(weights, amounts, ms)
    trees = None
    if len(some) >= _FOR_TREES:
        # scikit-learn takes a second to import.
        from sklearn.ensemble import GradientBoostingRegressor

        trees = GradientBoostingRegressor(
            n_estimators=200, max_depth=3, learning_rate=0.05, subsample=0.7, random_state=0
        )
        trees.fit([_row(p) for p in some], np.log(ms / np.maximum(amounts @ weights, 1e-6)))
    model = CostModel(table.pieces, weights, trees)
    wholes = [w for w in table.wholes if not w.held_out]
    if len(wholes) < 2:
        return model
    whole = calibrate([model.pieces_ms(w.spec) for w in wholes], [w.ms for w in wholes])
    return CostModel(table.pieces, weights, trees, whole)


@dataclasses.dataclass(frozen=True)
class Errors:
    """The errors of predicted latencies.

    Attributes:
      networks: The number of networks.
      mape: The mean absolute error in percent of the measurement.
      low, high: The lowest and the highest error, in percent.
      spearman, kendall: Rank correlations; NaN for fewer than two networks.
    """

    networks: int
    mape: float
    low: float
    high: float
    spearman: float
    kendall: float


def errors(predicted: ArrayLike, measured: ArrayLike) -> Errors:
    """Returns the errors of predictions [N] for N networks that the model was not fitted to.

    Raises:
      ValueError: There are no networks, or the numbers of values differ.
    """
    ours, true = np.asarray(predicted, float), np.asarray(measured, float)
    if ours.shape != true.shape or not len(ours):
        raise ValueError(
            f"got {len(ours)} predictions for {len(true)} measurements, "
            "expected as many, at least one"
        )
    percent = 100 * (ours / true - 1)
    has_ranks = len(ours) > 1
    return Errors(
        networks=len(ours),
        mape=float(np.mean(np.abs(percent))),
        low=float(percent.min()),
        high=float(percent.max()),
        spearman=float(stats.spearmanr(ours, true)[0]) if has_ranks else float("nan"),
        kendall=float(stats.kendalltau(ours, true)[0]) if has_ranks else float("nan"),
    )


def judge(model: CostModel, table: Table) -> Errors | None:
    """Returns the errors on the networks that the table holds out; None without any."""
    held_out = [w for w in table.wholes if w.held_out]
    if not held_out:
        return None
    return errors([model(w.spec) for w in held_out], [w.ms for w in held_out])
