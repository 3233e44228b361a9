"""The surrogate: a small ensemble that predicts accuracy from the choices, trained in rounds."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from mbv3_jax.search.evaluators import Agreement, agreement
from mbv3_jax.search.space import Point, Space

MEMBERS = 5


class Surrogate:
    """Predicts accuracy by several small networks on the one-hot choices (scikit-learn).

    Each member starts from other weights and sees another bootstrap sample; their spread is the
    uncertainty. Targets are standardised, so that nothing depends on the range of accuracies.

    Args:
      space: whose points it takes.
      seed: of weights and samples.
      hidden: units of the hidden layers.
    """

    def __init__(self, space: Space, seed: int = 0, hidden: tuple[int, ...] = (32,)):
        self.space, self.seed, self.hidden = space, seed, hidden
        self._members = []

    def fit(self, points: Sequence[Point], accuracies: Sequence[float]) -> "Surrogate":
        """Fits the members anew to accuracies [N] of points.

        Raises:
          ValueError: fewer than two points.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

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
            # One thread: these products are too small for more. It is meant to stop early.
            with threadpool_limits(1), warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._members.append(model.fit(x[rows], (y[rows] - self._mean) / self._scale))
        return self

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """The members' mean [N] and deviation [N].

        Raises:
          ValueError: nothing has been fitted.
        """
        if not self._members:
            raise ValueError("surrogate: fit it first")
        x = self.space.one_hot(points)
        found = np.stack([m.predict(x) for m in self._members]) * self._scale + self._mean
        return found.mean(0), found.std(0)


@dataclasses.dataclass
class Rounds:
    """Rounds of: sample, train briefly, refit, search on the surrogate, train the best, refit.

    space: where to search.
    train_briefly: (points, seed) -> validation accuracies [N] of one training each; whatever
      trains stands behind it, in this process or in many.
    search: (evaluator, seed, count) -> `count` points that it would choose, best first.
    seed: of the samples, the surrogate and the trainings.
    trained: all (point, accuracy) so far, in order: what a resumed search needs.
    held_out: (predicted, found) of random networks, predicted before they were trained.
    rounds_done: how many rounds have ended.
    """

    space: Space
    train_briefly: Callable[[Sequence[Point], int], np.ndarray]
    search: Callable[[Surrogate, int, int], Sequence[Point]]
    seed: int = 0
    trained: list[tuple[Point, float]] = dataclasses.field(default_factory=list)
    held_out: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    rounds_done: int = 0

    def run(
        self, first: int, per_round: int, rounds: int, *, after_round: Callable = lambda _: None
    ) -> Surrogate:
        """Trains `first` random networks, then `per_round` in each of some rounds.

        Half of a round's networks are the search's choices, half are random: the surrogate learns
        where it searches, and the random half is what its agreement is measured on.

        Args:
          first, per_round, rounds: how many.
          after_round: called with this object when a round's networks are trained: to save
            `state()`. A run that is loaded from it goes on with the next round.

        Returns:
          The surrogate fitted to everything trained.
        """
        if not self.trained:
            self._train(self._fresh(first, 0), 0)
            after_round(self)
        for number in range(self.rounds_done + 1, rounds + 1):
            surrogate = self._fitted(number)
            random = self._fresh(per_round - per_round // 2, number)
            known = {p for p, _ in self.trained} | set(random)
            chosen = self.search(surrogate, self.seed * 1009 + number, per_round * 4)
            chosen = [p for p in dict.fromkeys(chosen) if p not in known][: per_round // 2]
            predicted = surrogate.evaluate(random)[0].tolist() if random else []
            found = self._train([*random, *chosen], number).tolist()
            self.held_out += zip(predicted, found[: len(random)], strict=True)
            self.rounds_done = number
            after_round(self)
        return self._fitted(rounds + 1)

    @property
    def agreement(self) -> Agreement:
        """Of the surrogates with the random networks of all rounds so far."""
        return agreement(*zip(*self.held_out, strict=True) if self.held_out else ((), ()))

    def state(self) -> dict:
        """What `load` takes: lists and numbers that JSON holds."""
        return {
            "trained": [[list(p), a] for p, a in self.trained],
            "held_out": [list(pair) for pair in self.held_out],
            "rounds_done": self.rounds_done,
        }

    def load(self, state: dict) -> None:
        self.trained = [(tuple(p), a) for p, a in state["trained"]]
        self.held_out = [tuple(pair) for pair in state["held_out"]]
        self.rounds_done = state["rounds_done"]

    def _fitted(self, number: int) -> Surrogate:
        surrogate = Surrogate(self.space, seed=self.seed * 1009 + number)
        return surrogate.fit(*zip(*self.trained, strict=True))

    def _fresh(self, count: int, number: int) -> list[Point]:
        """Random points that have not been trained; fewer where a space has no more."""
        rng = np.random.default_rng((self.seed, number))
        known, fresh = {p for p, _ in self.trained}, []
        for _ in range(100):
            for point in self.space.sample(rng, count):
                if point not in known and len(fresh) < count:
                    known.add(point)
                    fresh.append(point)
        return fresh

    def _train(self, points: Sequence[Point], number: int) -> np.ndarray:
        found = np.asarray(self.train_briefly(points, self.seed * 1009 + number), float)
        self.trained += zip(points, found.tolist(), strict=True)
        return found
