"""Predicts measurements of networks with a Gaussian process over their stages.

The covariance of two networks is a sum of three parts: one that is linear in all their features,
one for the similarity of the whole networks, and one for the similarity of each of their stages
(RBF kernels). The last makes a prediction a sum over stages, as latency nearly is. The weights of
the parts maximise the marginal likelihood (Rasmussen and Williams, Gaussian Processes for Machine
Learning, sections 2.2 and 5.4).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg, optimize

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import sides
from mbv3_jax.search.space import Point, Space

# The weights of the parts are found from at most this many networks; predictions use all.
_TUNED = 512
_ITERATIONS = 30  # more hardly change a prediction
# The logarithms of all weights and lengths are believed to be normal, this far around their start.
_SPREAD = 3.0
_JITTER = 1e-8
_LEAST = 1e-9  # of a number whose logarithm is taken
_AT_ONCE = 2048  # networks that are predicted together, to bound memory

# The features of N networks by name: an array [N] of numbers, NaN where a network has no such
# feature, or of texts, None where it has not.
Features = dict[str, np.ndarray]


def describe(space: Space | None, networks: Sequence[Point | NetSpec]) -> Features:
    """Returns the features of N networks; what stands before "/" in a name is the stage.

    In a space they are the choices that make a difference, and without one those of the blocks at
    each resolution: depth, and the means of width, kernel, expansion, squeeze-and-excite and
    nonlinearity. Multiply-adds, parameters and the parts around the blocks describe the whole.

    Raises:
      ValueError: A network is not in the space; the message says what does not fit.
    """
    if space is None:
        levels = []
        for spec in networks:
            assert isinstance(spec, NetSpec)  # a point has a space
            levels.append(_by_level(spec))
        names = dict.fromkeys(name for level in levels for name in level)
        return {n: np.array([level.get(n, np.nan) for level in levels]) for n in names}
    points = [space.encode(n) if isinstance(n, NetSpec) else n for n in networks]
    for point in points:
        space.check(point)
    rows = np.array(points, int).reshape(len(points), len(space.decisions))
    active = np.array([space.active(p) for p in points], bool).reshape(rows.shape)
    values = np.where(active, _choices(space)[np.arange(rows.shape[1]), rows], np.nan).T
    features: Features = {}
    for decision, indices, is_active, numbers in zip(
        space.decisions, rows.T, active.T, values, strict=True
    ):
        features[decision.name] = numbers
        if isinstance(decision.choices[0], str):
            texts = np.array(decision.choices, object)[indices]
            texts[~is_active] = None
            features[decision.name] = texts
        if decision.what == "out":  # the next stage begins with this width
            features[f"stage{decision.stage + 2}/input"] = numbers
    features["network/madds"], features["network/params"] = space.counts(points).T
    return features


@functools.lru_cache(maxsize=8)
def _choices(space: Space) -> np.ndarray:
    """Returns the choices [decisions, the most choices] that are numbers."""
    table = np.full((len(space.decisions), max(len(d.choices) for d in space.decisions)), np.nan)
    for row, decision in zip(table, space.decisions, strict=True):
        if not isinstance(decision.choices[0], str):
            row[: len(decision.choices)] = decision.choices
    return table


@functools.lru_cache(maxsize=1 << 14)
def _by_level(spec: NetSpec) -> dict[str, float]:
    features = {
        "network/resolution": math.sqrt(math.prod(sides(spec.resolution))),
        "network/stem": float(spec.stem.out),
        "network/last": float(spec.last.out),
        "network/madds": float(cost.madds(spec)),
        "network/params": float(cost.params(spec)),
    }
    levels: dict[int, list[dict[str, float]]] = {}
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
            mean = np.mean([block.get(name, 0.0) for block in blocks])
            features[f"level{level + 1}/{name}"] = float(mean)
    return features


def _is_known(values: np.ndarray) -> np.ndarray:
    """Returns where networks [N] have a feature."""
    return values != None if values.dtype == object else ~np.isnan(values)  # noqa: E711


@dataclasses.dataclass(frozen=True)
class _Number:
    """A feature that is a number: its range, and how it becomes one of about unit size."""

    low: float
    high: float
    mean: float
    scale: float

    def sizes(self, values: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(values, _LEAST)) if self.low > 0 else values

    def misfit(self, value: float) -> str | None:
        if self.low <= value <= self.high:
            return None
        return f"{value:g}, known from {self.low:g} to {self.high:g}"

    @classmethod
    def fit(cls, values: np.ndarray) -> "_Number":
        plain = cls(float(values.min()), float(values.max()), 0.0, 1.0)
        sizes = plain.sizes(values)
        return dataclasses.replace(plain, mean=float(sizes.mean()), scale=float(sizes.std()))


@dataclasses.dataclass(frozen=True)
class _Text:
    """A feature that is one of some texts: a column for each."""

    known: tuple[str, ...]

    def misfit(self, value: str) -> str | None:
        return None if value in self.known else f"{value}, known {', '.join(self.known)}"


class Encoder:
    """Turns features into rows of numbers, scaled for the networks that it was fitted to.

    Args:
      features: The features of at least one network. Those that are the same in all make no column.

    Attributes:
      groups: The columns of each stage.
    """

    def __init__(self, features: Features):
        self._fields: dict[str, _Number | _Text] = {}
        self._constant: dict[str, float | str] = {}
        for name in sorted(features):
            values = features[name]
            values = values[_is_known(values)]
            if not len(values):
                continue
            if np.all(values == values[0]):
                self._constant[name] = values[0]
            elif values.dtype == object:
                self._fields[name] = _Text(tuple(sorted(set(values))))
            else:
                self._fields[name] = _Number.fit(values)
        self._numbers = {n: f for n, f in self._fields.items() if isinstance(f, _Number)}
        self._texts = {n: f for n, f in self._fields.items() if isinstance(f, _Text)}
        numbers = self._numbers.values()
        self._mean = np.array([f.mean for f in numbers])[:, None]
        self._scale = np.array([f.scale for f in numbers])[:, None]
        self._is_log = np.array([f.low > 0 for f in numbers], bool)
        groups: dict[str, list[int]] = {}
        columns = [*self._numbers, *(n for n, field in self._texts.items() for _ in field.known)]
        for column, name in enumerate(columns):
            groups.setdefault(name.split("/")[0], []).append(column)
        groups.pop("network", None)
        self.groups = [np.array(columns) for columns in groups.values()]

    def rows(self, features: Features) -> np.ndarray:
        """Returns [N, columns] for N networks."""
        count = len(next(iter(features.values())))
        nothing = np.full(count, np.nan)
        numbers = np.array([features.get(name, nothing) for name in self._numbers], float)
        numbers = numbers.reshape(len(self._numbers), count)
        numbers[self._is_log] = np.log(np.maximum(numbers[self._is_log], _LEAST))
        numbers = (numbers - self._mean) / self._scale
        # What a network does not have must not make it differ: such a feature is average.
        numbers[np.isnan(numbers)] = 0
        texts = [
            np.array(features.get(name, nothing) == text, float)
            for name, field in self._texts.items()
            for text in field.known
        ]
        return np.array([*numbers, *texts], float).reshape(-1, count).T

    def misfits(self, features: Features) -> list[str | None]:
        """Returns for each network a feature outside the fitted ones; None if all are known."""
        reasons: list[str | None] = [None] * len(next(iter(features.values())))
        for name, values in features.items():
            for i in np.flatnonzero(_is_known(values)):
                if reasons[i] is None and (reason := self._misfit(name, values[i])):
                    reasons[i] = f"{name} is {reason}"
        return reasons

    def _misfit(self, name: str, value) -> str | None:
        if name in self._fields:
            return self._fields[name].misfit(value)
        if name in self._constant:
            known = self._constant[name]
            return None if value == known else f"{value}, known only {known}"
        return f"{value}, unknown"


class Predictor:
    """Predicts a positive number, such as accuracy or latency, with its uncertainty.

    Args:
      space: The space of the networks; None if they belong to none, and are specs.
      relative: Whether measurements scatter in proportion to their size, as times do, instead of
        by the same amount.
      seed: Seed of the choice of networks from which the weights of the covariance are found, if
        there are many.
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
    ) -> "Predictor":
        """Fits to the values [N] of N networks, from scratch; returns itself.

        Args:
          networks: Points or specs.
          values: What was measured.
          counts: Of how many measurements [N] each value is the mean; default 1.

        Raises:
          ValueError: There are fewer than two networks, the numbers of networks and values differ,
            or a network is not in the space.
        """
        y = np.asarray(values, float)
        if len(y) < 2 or y.shape != (len(networks),):
            raise ValueError(f"predictor: got {len(networks)} networks and {y.shape} values")
        features = describe(self.space, networks)
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
        self._rows, self._known = rows, z
        apart = _squares(rows, rows)
        np.fill_diagonal(apart, np.inf)
        self._furthest = float(apart.min(1).max())
        return self

    def predict(self, networks: Sequence[Point | NetSpec]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the expected measurements [N] of N networks and their standard deviations [N].

        The deviation is that of a single measurement: it includes both the uncertainty of the
        predictor and the scatter of measurements of one network.

        Raises:
          ValueError: `fit` has not been called, or a network is not in the space.
        """
        means, deviations = [np.zeros(0)], [np.zeros(0)]
        for mean, rows, with_known in self._expected(networks):
            explained = linalg.solve_triangular(
                self._factor, with_known.T, lower=True, check_finite=False
            )
            variance = np.maximum(self._kernel.variances(rows) - np.sum(explained**2, 0), 0)
            scatter = self._kernel.noise * (mean**2 if self.relative else 1.0)
            means.append(self._unit * mean)
            deviations.append(self._unit * self._scale * np.sqrt(variance + scatter))
        return np.concatenate(means), np.concatenate(deviations)

    def expect(self, networks: Sequence[Point | NetSpec]) -> np.ndarray:
        """Returns what `predict` expects [N], quicker, without the deviations."""
        parts = [self._unit * mean for mean, _, _ in self._expected(networks)]
        return np.concatenate([np.zeros(0), *parts])

    def draw(
        self, networks: Sequence[Point | NetSpec], count: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws what may be true of N networks, given what is known: [count, N].

        Similar networks have similar values in one draw. The scatter of measurements is left out.
        """
        rows = self._fitted().rows(describe(self.space, networks))
        with_known = self._kernel(rows, self._rows)
        mean = self._mean + self._scale * (with_known @ self._weights)
        explained = linalg.solve_triangular(
            self._factor, with_known.T, lower=True, check_finite=False
        )
        covariance = self._kernel(rows, rows) - explained.T @ explained
        # Networks that are nearly alike make it singular up to rounding.
        covariance[np.diag_indices(len(rows))] += 1e-6
        factor = linalg.cholesky(covariance, lower=True, check_finite=False)
        drawn = rng.normal(size=(count, len(rows))) @ factor.T
        return self._unit * (mean + self._scale * drawn)

    def left_out(self) -> np.ndarray:
        """Returns for each fitted network [N] the prediction from all others.

        The covariance is weighed by all of them (Rasmussen and Williams, equation 5.12).
        """
        self._fitted()
        inverse = linalg.solve_triangular(
            self._factor, np.eye(len(self._rows)), lower=True, check_finite=False
        )
        z = self._known - self._weights / np.sum(inverse**2, 0)
        return self._unit * (self._mean + self._scale * z)

    def _expected(
        self, networks: Sequence[Point | NetSpec]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields for some networks at a time means, rows, and covariances with what is known."""
        encoder = self._fitted()
        for start in range(0, len(networks), _AT_ONCE):
            rows = encoder.rows(describe(self.space, networks[start : start + _AT_ONCE]))
            with_known = self._kernel(rows, self._rows)
            mean = self._mean + self._scale * (with_known @ self._weights)
            if self.relative:  # a time is positive, however far one extrapolates
                mean = np.maximum(mean, self._least)
            yield mean, rows, with_known

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
                features = describe(self.space, [network])
            except ValueError as e:
                reasons.append(str(e))
                continue
            (reason,) = encoder.misfits(features)
            if reason is None:
                nearest = float(_squares(encoder.rows(features), self._rows).min())
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
