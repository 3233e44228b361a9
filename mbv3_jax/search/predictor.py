"""Predicts what was measured of networks: a Gaussian process over their stages.

The covariance of two networks is a sum of three parts: one that is linear in all their features,
one for how alike the whole networks are, and one for how alike each of their stages is (RBF
kernels). The last makes a prediction a sum over stages, as latency nearly is. How much each part
counts is found by the marginal likelihood (Rasmussen and Williams, Gaussian Processes for Machine
Learning, sections 2.2 and 5.4).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg, optimize

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.search.space import Point, Space

# The parts are weighed by so many networks at most; predictions rest on all of them.
_TUNED = 512
_ITERATIONS = 30  # more hardly change a prediction
# The logarithms of all weights and lengths are believed to be normal, this far around their start.
_SPREAD = 3.0
_JITTER = 1e-8
_AT_ONCE = 2048  # networks that are predicted together, to bound memory

Features = dict[str, float | str]


def describe(space: Space | None, network: Point | NetSpec) -> Features:
    """Returns the features of a network by name; what stands before "/" is the stage.

    In a space they are the choices that make a difference, and without one those of the blocks at
    each resolution: depth, and the means of width, kernel, expansion, squeeze-and-excite and
    nonlinearity. Multiply-adds, parameters and the parts around the blocks describe the whole.

    Raises:
      ValueError: The network is not in the space; the message says what does not fit.
    """
    if space is None:
        assert isinstance(network, NetSpec)  # a point has a space
        spec, features = network, _by_level(network)
    else:
        point = space.encode(network) if isinstance(network, NetSpec) else network
        spec, features = space.to_spec(point), {}
        active = space.active(point)
        for decision, index, is_active in zip(space.decisions, point, active, strict=True):
            if is_active:
                choice = decision.choices[index]
                features[decision.name] = choice if isinstance(choice, str) else float(choice)
                if decision.what == "out":  # the next stage begins with this width
                    features[f"stage{decision.stage + 2}/input"] = float(choice)
    features["network/madds"] = float(cost.madds(spec))
    features["network/params"] = float(cost.params(spec))
    return features


def _by_level(spec: NetSpec) -> Features:
    features: Features = {
        "network/resolution": float(spec.resolution),
        "network/stem": float(spec.stem.out),
        "network/last": float(spec.last.out),
    }
    levels: dict[int, list[Features]] = {}
    level = 0
    for block, width in zip(spec.blocks, spec.block_inputs(), strict=True):
        level += block.stride > 1
        levels.setdefault(level, []).append(
            {
                "width": float(block.out),
                "kernel": float(block.kernel),
                "expansion": block.expansion / width,
                "se": float(block.se is not None),
                f"act={block.act}": 1.0,
            }
        )
    for level, blocks in levels.items():
        features[f"level{level + 1}/depth"] = float(len(blocks))
        for name in sorted({name for block in blocks for name in block}):
            mean = np.mean([float(block.get(name, 0.0)) for block in blocks])
            features[f"level{level + 1}/{name}"] = float(mean)
    return features


@dataclasses.dataclass(frozen=True)
class _Number:
    """A feature that is a number: its range, and how it becomes one of about unit size."""

    low: float
    high: float
    mean: float
    scale: float

    def columns(self, value: float | str | None) -> list[float]:
        # What a network does not have must not make it differ: such a feature is average.
        return [0.0 if value is None else (self.size(float(value)) - self.mean) / self.scale]

    def size(self, value: float) -> float:
        return math.log(max(value, 1e-9)) if self.low > 0 else value

    def misfit(self, value: float | str) -> str | None:
        if self.low <= float(value) <= self.high:
            return None
        return f"{value:g}, known from {self.low:g} to {self.high:g}"

    @classmethod
    def fit(cls, values: Sequence[float]) -> "_Number":
        plain = cls(min(values), max(values), 0.0, 1.0)
        sizes = [plain.size(v) for v in values]
        return dataclasses.replace(plain, mean=float(np.mean(sizes)), scale=float(np.std(sizes)))


@dataclasses.dataclass(frozen=True)
class _Text:
    """A feature that is one of some texts: a column for each."""

    known: tuple[str, ...]

    def columns(self, value: float | str | None) -> list[float]:
        return [float(value == text) for text in self.known]

    def misfit(self, value: float | str) -> str | None:
        return None if value in self.known else f"{value}, known {', '.join(self.known)}"


class Encoder:
    """Turns features into rows of numbers, scaled as the networks that it was fitted to need.

    Args:
      some: The features of at least one network. Those that are the same in all make no column.

    Attributes:
      groups: The columns of each stage.
    """

    def __init__(self, some: Sequence[Features]):
        self._fields: dict[str, _Number | _Text] = {}
        self._constant: dict[str, float | str] = {}
        groups: dict[str, list[int]] = {}
        width = 0
        for name in sorted({name for features in some for name in features}):
            values = [features[name] for features in some if name in features]
            if len(set(values)) == 1:
                self._constant[name] = values[0]
                continue
            field = (
                _Text(tuple(sorted(set(map(str, values)))))
                if isinstance(values[0], str)
                else _Number.fit([float(v) for v in values])
            )
            self._fields[name] = field
            columns = range(width, width + len(field.columns(None)))
            width += len(columns)
            group = name.split("/")[0]
            if group != "network":
                groups.setdefault(group, []).extend(columns)
        self.groups = [np.array(columns) for columns in groups.values()]

    def rows(self, some: Sequence[Features]) -> np.ndarray:
        """Returns [N, columns] for N networks."""
        rows = [
            [x for name, field in self._fields.items() for x in field.columns(features.get(name))]
            for features in some
        ]
        return np.array(rows, float).reshape(len(some), -1)

    def misfit(self, features: Features) -> str | None:
        """Returns which feature has a value unlike any it was fitted to; None if all are known."""
        for name, value in features.items():
            if name in self._fields:
                reason = self._fields[name].misfit(value)
            elif name in self._constant:
                known = self._constant[name]
                reason = None if value == known else f"{value}, known only {known}"
            else:
                reason = f"{value}, unknown"
            if reason:
                return f"{name} is {reason}"
        return None


class Predictor:
    """Predicts a positive number, such as accuracy or latency, with its uncertainty.

    Args:
      space: The space of the networks; None if they belong to none, and are specs.
      relative: Whether measurements scatter in proportion to their size, as times do, instead of
        by the same amount.
      seed: Draws the networks by which the parts of the covariance are weighed, if there are many.
    """

    def __init__(self, space: Space | None, *, relative: bool = False, seed: int = 0):
        self.space, self.relative, self.seed = space, relative, seed
        self._encoder: Encoder | None = None

    def fit(
        self,
        networks: Sequence[Point | NetSpec],
        values: ArrayLike,
        *,
        counts: ArrayLike | None = None,
        features: Sequence[Features] | None = None,
    ) -> "Predictor":
        """Fits to the values [N] of N networks, from scratch; returns itself.

        Args:
          networks: Points or specs.
          values: What was measured.
          counts: Of how many measurements [N] each value is the mean; default 1.
          features: The networks' `describe`, if it is known already.

        Raises:
          ValueError: There are fewer than two networks, the numbers of networks and values differ,
            or a network is not in the space.
        """
        y = np.asarray(values, float)
        if len(y) < 2 or y.shape != (len(networks),):
            raise ValueError(f"predictor: got {len(networks)} networks and {y.shape} values")
        if features is None:
            features = [describe(self.space, n) for n in networks]
        scatter = 1 / (np.ones(len(y)) if counts is None else np.asarray(counts, float))
        self._unit = float(np.mean(y)) if self.relative else 1.0
        y = y / self._unit
        if self.relative:
            scatter = scatter * y**2
        self._mean, self._scale = float(y.mean()), max(float(y.std()), 1e-9)
        self._least = float(y.min()) / 10
        self._encoder = Encoder(features)
        rows, z = self._encoder.rows(features), (y - self._mean) / self._scale
        some = np.random.default_rng(self.seed).permutation(len(y))[:_TUNED]
        self._kernel = _Kernel.tuned(rows[some], z[some], scatter[some], self._encoder.groups)
        covariance = self._kernel(rows, rows)
        covariance[np.diag_indices(len(y))] += self._kernel.noise * scatter + _JITTER
        self._factor = linalg.cholesky(covariance, lower=True, check_finite=False)
        self._weights = linalg.cho_solve((self._factor, True), z)
        self._rows = rows
        apart = _squares(rows, rows)
        np.fill_diagonal(apart, np.inf)
        self._furthest = float(apart.min(1).max())
        return self

    def predict(self, networks: Sequence[Point | NetSpec]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the expected measurements [N] of N networks and their standard deviations [N].

        The deviation is that of a single measurement: it holds both what the predictor does not
        know and how measurements of one network scatter.

        Raises:
          ValueError: `fit` has not been called, or a network is not in the space.
        """
        encoder = self._fitted()
        means, deviations = [np.zeros(0)], [np.zeros(0)]
        for start in range(0, len(networks), _AT_ONCE):
            some = networks[start : start + _AT_ONCE]
            rows = encoder.rows([describe(self.space, n) for n in some])
            with_known = self._kernel(rows, self._rows)
            mean = self._mean + self._scale * (with_known @ self._weights)
            explained = linalg.solve_triangular(
                self._factor, with_known.T, lower=True, check_finite=False
            )
            variance = np.maximum(self._kernel.variances(rows) - np.sum(explained**2, 0), 0)
            if self.relative:  # a time is positive, however far one extrapolates
                mean = np.maximum(mean, self._least)
            scatter = self._kernel.noise * (mean**2 if self.relative else 1.0)
            means.append(self._unit * mean)
            deviations.append(self._unit * self._scale * np.sqrt(variance + scatter))
        return np.concatenate(means), np.concatenate(deviations)

    evaluate = predict  # as an `Evaluator` of accuracy

    def outside(self, networks: Sequence[Point | NetSpec]) -> list[str | None]:
        """Returns for each network why it lies outside what is known; None where it does not.

        A network lies outside if it is not in the space, if a feature has a value that none of the
        fitted networks has or lies between, or if it is further from all of them than any of them
        is from the others.
        """
        encoder = self._fitted()
        reasons: list[str | None] = []
        for network in networks:
            try:
                features = describe(self.space, network)
            except ValueError as e:
                reasons.append(str(e))
                continue
            reason = encoder.misfit(features)
            if reason is None:
                nearest = float(_squares(encoder.rows([features]), self._rows).min())
                if nearest > self._furthest * (1 + 1e-9):
                    reason = "further from every known network than any of them from the others"
            reasons.append(reason)
        return reasons

    def _fitted(self) -> Encoder:
        if self._encoder is None:
            raise ValueError("predictor: fit it first")
        return self._encoder


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the squared distances [N, M] of rows."""
    squares = np.sum(a * a, 1)[:, None] + np.sum(b * b, 1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0)


class _Kernel:
    """The covariance of rows, of data that are scaled to mean 0 and variance 1.

    Args:
      logs: Logarithms of the weights of the linear part, of the whole and of the noise, the length
        of the whole, and then the weight of each group and the length of each group.
      groups: The columns of each group.
    """

    def __init__(self, logs: np.ndarray, groups: Sequence[np.ndarray]):
        self.logs, self.groups = logs, groups
        self.linear, self.whole, self.noise, self.length = np.exp(logs[:4])
        self.weights, self.lengths = np.exp(logs[4:]).reshape(2, -1)

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Returns the covariances [N, M]."""
        total = self.linear * (1 + a @ b.T) / max(a.shape[1], 1)
        total += self.whole * np.exp(-0.5 / self.length**2 * _squares(a, b))
        for group, weight, length in zip(self.groups, self.weights, self.lengths, strict=True):
            total += weight * np.exp(-0.5 / length**2 * _squares(a[:, group], b[:, group]))
        return total

    def variances(self, rows: np.ndarray) -> np.ndarray:
        """Returns the diagonal [N] of the covariance of rows with themselves."""
        linear = self.linear * (1 + np.sum(rows * rows, 1)) / max(rows.shape[1], 1)
        return linear + self.whole + self.weights.sum()

    @classmethod
    def tuned(
        cls, rows: np.ndarray, z: np.ndarray, scatter: np.ndarray, groups: Sequence[np.ndarray]
    ) -> "_Kernel":
        """Returns the kernel under which data z [N] at rows [N, D] are most probable."""
        count, width = rows.shape
        linear_part = (1 + rows @ rows.T) / max(width, 1)
        apart = [_squares(rows, rows)] + [_squares(rows[:, g], rows[:, g]) for g in groups]
        start = np.concatenate(
            [
                [0, 0, -4, 0.5 * math.log(max(width, 1))],
                np.full(len(groups), -2.0),
                np.full(len(groups), math.log(2)),
            ]
        )
        diagonal = np.diag_indices(count)

        def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
            """Returns the negative log posterior of the weights and its gradient."""
            kernel = cls(logs, groups)
            weights = [kernel.whole, *kernel.weights]
            lengths = [kernel.length, *kernel.lengths]
            parts = [
                weight * np.exp(-0.5 / length**2 * square)
                for weight, length, square in zip(weights, lengths, apart, strict=True)
            ]
            linear, noise = kernel.linear * linear_part, kernel.noise * scatter
            covariance = linear + sum(parts)
            covariance[diagonal] += noise + _JITTER
            factor = linalg.cholesky(covariance, lower=True, check_finite=False)
            solved = linalg.cho_solve((factor, True), z, check_finite=False)
            # Half the trace of (inverse - solved solved^T) times a part's derivative.
            inverse = linalg.cho_solve((factor, True), np.eye(count), check_finite=False)
            pull = 0.5 * (inverse - np.outer(solved, solved))
            by_weight = [np.vdot(pull, part) for part in parts]
            by_length = [
                np.vdot(pull, part * square) / length**2
                for part, square, length in zip(parts, apart, lengths, strict=True)
            ]
            gradient = np.array(
                [
                    np.vdot(pull, linear),
                    by_weight[0],
                    np.vdot(pull[diagonal], noise),
                    by_length[0],
                    *by_weight[1:],
                    *by_length[1:],
                ]
            )
            away = (logs - start) / _SPREAD
            value = 0.5 * z @ solved + np.log(factor[diagonal]).sum() + 0.5 * away @ away
            return float(value), gradient + away / _SPREAD

        best = optimize.minimize(
            loss,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(x - 3 * _SPREAD, x + 3 * _SPREAD) for x in start],
            options={"maxiter": _ITERATIONS},
        )
        return cls(best.x, groups)
