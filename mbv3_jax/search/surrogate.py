"""The surrogate: a small ensemble that predicts accuracy from the choices, trained in rounds."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mbv3_jax.search.evaluators import Agreement, TrainBriefly, agreement
from mbv3_jax.search.space import Point, Space

MEMBERS = 5


class Surrogate:
    """Predicts accuracy by several small networks on the one-hot choices (scikit-learn).

    Each member starts from other weights and sees another bootstrap sample; their spread is the
    uncertainty. Targets are standardised, so that nothing depends on the range of accuracies.

    Args:
      space: The space of the points.
      seed: Seed of the members' weights and samples.
      hidden: The units of the hidden layers.
    """

    def __init__(self, space: Space, seed: int = 0, hidden: tuple[int, ...] = (32,)):
        self.space, self.seed, self.hidden = space, seed, hidden
        self._mean, self._scale = 0.0, 1.0
        self._members: list[Any] = []

    def fit(self, points: Sequence[Point], accuracies: ArrayLike) -> "Surrogate":
        """Fits the members from scratch to the accuracies [N] of N points; returns itself.

        Raises:
          ValueError: There are fewer than two points, or another number of accuracies.
        """
        # scikit-learn takes a second to import, which only searches by a surrogate should pay.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor
        from threadpoolctl import threadpool_limits

        x, y = self.space.one_hot(points), np.asarray(accuracies, float)
        if len(y) < 2 or len(x) != len(y):
            raise ValueError(f"surrogate: got {len(x)} points and {len(y)} accuracies")
        self._mean, self._scale = y.mean(), max(y.std(), 1e-6)
        rng = np.random.default_rng(self.seed)
        self._members = []
        for member in range(MEMBERS):
            rows = rng.integers(len(y), size=len(y)) if len(y) >= 10 else np.arange(len(y))
            model = MLPRegressor(
                hidden_layer_sizes=self.hidden, solver="lbfgs", alpha=1.0, max_iter=200,
                random_state=self.seed * MEMBERS + member,
            )  # fmt: skip
            # The products are too small for more than one thread. Stopping early is intended.
            with threadpool_limits(1), warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._members.append(model.fit(x[rows], (y[rows] - self._mean) / self._scale))
        return self

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean [N] and the standard deviation [N] of the members' predictions.

        Raises:
          ValueError: `fit` has not been called.
        """
        if not self._members:
            raise ValueError("surrogate: fit it first")
        x = self.space.one_hot(points)
        predictions = np.stack([m.predict(x) for m in self._members]) * self._scale + self._mean
        return predictions.mean(0), predictions.std(0)


@dataclasses.dataclass
class Rounds:
    """Trains networks in rounds: fit the surrogate, search on it, train its choices, fit again.

    Attributes:
      space: The space to search.
      train_briefly: Trains points, in this process or in many, and returns their validation
        accuracies.
      search: (surrogate, seed, count) -> up to `count` points that it would choose, best first.
      seed: Seed of the samples, the surrogates and the trainings.
      trained: Every (point, accuracy) so far, in order.
      held_out: (predicted, trained accuracy) of random networks, predicted before their training.
      rounds_done: The number of rounds that have ended.
    """

    space: Space
    train_briefly: TrainBriefly
    search: Callable[[Surrogate, int, int], Sequence[Point]]
    seed: int = 0
    trained: list[tuple[Point, float]] = dataclasses.field(default_factory=list)
    held_out: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    rounds_done: int = 0

    def run(
        self,
        first: int,
        per_round: int,
        rounds: int,
        *,
        after_round: Callable[["Rounds"], None] = lambda _: None,
    ) -> Surrogate:
        """Trains `first` random networks, then `per_round` networks in each of some rounds.

        Half of a round's networks are the search's choices and half are random: the surrogate
        learns where the search looks, and the random half measures its agreement.

        Args:
          first: The number of networks before the first round.
          per_round: The number of networks in each round.
          rounds: The number of rounds.
          after_round: Called with this object when the networks of a round are trained, to save
            `state()`. After `load`, `run` continues with the next round.

        Returns:
          The surrogate that is fitted to all networks.
        """
        if not self.trained:
            self._train(self._fresh(first, 0), 0)
            after_round(self)
        for number in range(self.rounds_done + 1, rounds + 1):
            surrogate = self._fitted(number)
            random = self._fresh(per_round - per_round // 2, number)
            known = {p for p, _ in self.trained} | set(random)
            proposed = self.search(surrogate, self.seed * 1009 + number, per_round * 4)
            chosen = [p for p in dict.fromkeys(proposed) if p not in known][: per_round // 2]
            predicted = surrogate.evaluate(random)[0].tolist() if random else []
            accuracies = self._train([*random, *chosen], number).tolist()
            self.held_out += zip(predicted, accuracies[: len(random)], strict=True)
            self.rounds_done = number
            after_round(self)
        return self._fitted(rounds + 1)

    @property
    def agreement(self) -> Agreement:
        """The surrogates' agreement with the random networks of all rounds so far."""
        predicted, trained = zip(*self.held_out, strict=True) if self.held_out else ((), ())
        return agreement(predicted, trained)

    def state(self) -> dict:
        """Returns what `load` takes: lists and numbers that JSON can hold."""
        return {
            "trained": [[list(p), a] for p, a in self.trained],
            "held_out": [list(pair) for pair in self.held_out],
            "rounds_done": self.rounds_done,
        }

    def load(self, state: dict) -> None:
        """Continues from what `state` returned."""
        self.trained = [(tuple(p), a) for p, a in state["trained"]]
        self.held_out = [tuple(pair) for pair in state["held_out"]]
        self.rounds_done = state["rounds_done"]

    def _fitted(self, number: int) -> Surrogate:
        surrogate = Surrogate(self.space, seed=self.seed * 1009 + number)
        return surrogate.fit([p for p, _ in self.trained], [a for _, a in self.trained])

    def _fresh(self, count: int, number: int) -> list[Point]:
        """Returns random points that have not been trained; fewer if the space has no more."""
        rng = np.random.default_rng((self.seed, number))
        known = {p for p, _ in self.trained}
        fresh: list[Point] = []
        for _ in range(100):
            for point in self.space.sample(rng, count):
                if point not in known and len(fresh) < count:
                    known.add(point)
                    fresh.append(point)
        return fresh

    def _train(self, points: Sequence[Point], number: int) -> np.ndarray:
        accuracies = np.asarray(self.train_briefly(points, self.seed * 1009 + number), float)
        self.trained += zip(points, accuracies.tolist(), strict=True)
        return accuracies
