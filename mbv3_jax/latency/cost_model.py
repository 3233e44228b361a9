"""From what one measure says of networks to milliseconds."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import choose
from mbv3_jax.latency.pieces import KINDS, Piece, pieces
from mbv3_jax.latency.table import Table


@dataclasses.dataclass(frozen=True)
class Calibration:
    """factor * x ** power: milliseconds of what something else says about a network."""

    factor: float
    power: float

    def __call__(self, x) -> np.ndarray:
        return self.factor * np.asarray(x, float) ** self.power


def calibrate(x: Sequence[float], ms: Sequence[float], *, linear: bool = False) -> Calibration:
    """Fits by least squares of logarithms, so that relative errors count.

    Args:
      x: of each network: multiply-adds, milliseconds elsewhere, ...
      ms: that it should be.
      linear: the power is 1.

    Raises:
      ValueError: too few networks.
    """
    if len(x) != len(ms) or len(x) < 2:
        raise ValueError(f"got {len(x)} and {len(ms)} values, expected as many, two or more")
    x, y = np.log(np.asarray(x, float)), np.log(np.asarray(ms, float))
    power, offset = (1.0, np.mean(y - x)) if linear else np.polyfit(x, y, 1)
    return Calibration(float(np.exp(offset)), float(power))


# Predicts the latency of a network from a table, without building it.
#
# A piece that the table has takes what the table says. Others are predicted: a sum of what work
# takes (multiply-adds by kind, values read and written, nonlinearities; weights not negative, so
# that more work never takes less), corrected by boosted trees for what does not add up. A network
# takes factor * sum ** power of its pieces, fitted on networks measured whole: in a large network a
# piece finds less of its data in the caches than alone.

# Fewer pieces of a kind than this are not corrected by trees.
_FOR_TREES = 40


def work(piece: Piece) -> dict[str, float]:
    """Counts of what a piece does, in millions; "call" is 1."""
    before, after = piece.size**2, piece.out_size**2
    kernel, wide = piece.kernel**2, piece.expansion
    found = dict.fromkeys(_columns(), 0.0)
    acted = after * wide
    if piece.kind == "stem":
        found["conv"] = after * kernel * piece.inputs * piece.out
        found["written"], acted = after * piece.out, after * piece.out
    elif piece.kind == "block":
        expands = wide != piece.inputs
        found["expand"] = before * piece.inputs * wide * expands
        found["project"] = after * wide * piece.out
        side = piece.kernel if piece.kernel in (3, 5) else 7
        found[f"depthwise{side}"] = after * kernel * wide
        found["strided"] = after * kernel * wide * (piece.stride > 1)
        found["written"] = before * wide * expands + after * (wide + piece.out)
        found["added"] = after * piece.out * piece.shortcut
        acted += before * wide * expands
    else:
        found["expand"] = after * kernel * piece.inputs * wide
        found["dense"] = wide * piece.head + (piece.head or wide) * piece.out
        found["written"] = found["pooled"] = after * wide
    if not ACTIVATIONS[choose("act", piece.act, ACTIVATIONS)].fused:
        found[piece.act] = acted
    if piece.squeezed:
        found["dense"] += 2 * (wide or piece.out) * piece.squeezed
        found["scaled"] = after * (wide or piece.out)
        found["gates"] = 1e6
    found["call"] = 1e6
    return {name: value / 1e6 for name, value in found.items()}


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
    """Prices activations that no measured piece has, which the fit leaves at 0.

    A pass over the feature map costs as much as in the dearest activation that was measured. If
    none has a price, it costs what writing the map costs at most: no piece takes less time than it
    takes to write its output.

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
    """What the trees see: the work, and sizes, which decide what fits in a cache."""
    sizes = (piece.size, piece.inputs, piece.expansion, piece.out, piece.kernel, piece.stride)
    return [*work(piece).values(), *sizes, piece.squeezed, KINDS.index(piece.kind)]


class CostModel:
    """model(spec) -> milliseconds; see `fit`."""

    def __init__(self, known: dict[Piece, float], weights, trees):
        self.known, self.weights, self.trees = dict(known), weights, trees
        self.whole = Calibration(1.0, 1.0)
        self._predicted: dict[Piece, float] = {}

    def piece(self, piece: Piece) -> float:
        """Milliseconds of one piece, measured or predicted."""
        if piece in self.known:
            return self.known[piece]
        if piece not in self._predicted:
            self._predicted[piece] = self.predicted([piece])[0]
        return self._predicted[piece]

    def predicted(self, some: Sequence[Piece]) -> np.ndarray:
        """Milliseconds of pieces, [N], whether the table has them or not."""
        ms = np.array([list(work(p).values()) for p in some]) @ self.weights
        if self.trees is not None:
            ms = ms * np.exp(self.trees.predict([_row(p) for p in some]))
        return ms

    def pieces_ms(self, spec: NetSpec) -> float:
        """The sum over the network's pieces."""
        return sum(self.piece(piece) for piece in pieces(spec))

    def __call__(self, spec: NetSpec) -> float:
        return float(self.whole(self.pieces_ms(spec)))

    def covered(self, spec: NetSpec) -> float:
        """Which share of the network's pieces the table has."""
        found = pieces(spec)
        return sum(piece in self.known for piece in found) / len(found)


def fit(table: Table) -> CostModel:
    """Fits a model on a table; networks that are held out are not looked at.

    Raises:
      ValueError: the table has no pieces.
    """
    if not table.pieces:
        raise ValueError("the latency table has no pieces to fit a model on")
    some, ms = list(table.pieces), np.array(list(table.pieces.values()))
    amounts = np.array([list(work(p).values()) for p in some])
    # Divided by ms: relative errors count, of small pieces as of large ones.
    weights, _ = optimize.nnls(amounts / ms[:, None], np.ones(len(ms)))
    weights = _with_unmeasured_activations(weights, amounts, ms)
    trees = None
    if len(some) >= _FOR_TREES:
        from sklearn.ensemble import GradientBoostingRegressor

        trees = GradientBoostingRegressor(
            n_estimators=200, max_depth=3, learning_rate=0.05, subsample=0.7, random_state=0
        )
        trees.fit([_row(p) for p in some], np.log(ms / np.maximum(amounts @ weights, 1e-6)))
    model = CostModel(table.pieces, weights, trees)
    wholes = [w for w in table.wholes if not w.held_out]
    if len(wholes) >= 2:
        model.whole = calibrate([model.pieces_ms(w.spec) for w in wholes], [w.ms for w in wholes])
    return model


@dataclasses.dataclass(frozen=True)
class Errors:
    """How good predictions are.

    networks: how many were predicted.
    mape: mean absolute error in percent of what was measured; low, high: the errors that lie
      furthest below and above.
    spearman, kendall: rank correlations; NaN of fewer than two networks.
    """

    networks: int
    mape: float
    low: float
    high: float
    spearman: float
    kendall: float


def errors(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    """Errors of predictions, for networks that the model never saw.

    Raises:
      ValueError: none, or not as many of both.
    """
    predicted, measured = np.asarray(predicted, float), np.asarray(measured, float)
    if predicted.shape != measured.shape or not len(predicted):
        raise ValueError(
            f"got {len(predicted)} predictions for {len(measured)} measurements, "
            "expected as many, at least one"
        )
    percent = 100 * (predicted / measured - 1)
    ranked = len(predicted) > 1
    return Errors(
        networks=len(predicted),
        mape=float(np.mean(np.abs(percent))),
        low=float(percent.min()),
        high=float(percent.max()),
        spearman=float(stats.spearmanr(predicted, measured)[0]) if ranked else float("nan"),
        kendall=float(stats.kendalltau(predicted, measured)[0]) if ranked else float("nan"),
    )


def judge(model: CostModel, table: Table) -> Errors | None:
    """Errors on the networks that the table holds out; None without any."""
    held = [w for w in table.wholes if w.held_out]
    return errors([model(w.spec) for w in held], [w.ms for w in held]) if held else None
