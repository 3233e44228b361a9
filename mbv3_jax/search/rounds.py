"""Brief trainings in rounds, of networks that a predictor chooses by the rounds before."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mbv3_jax.search.evaluators import Agreement, TrainBriefly, agreement
from mbv3_jax.search.predictor import Predictor
from mbv3_jax.search.space import Point, Space


@dataclasses.dataclass
class Rounds:
    """Trains networks in rounds: fit a predictor, search on it, train its choices, fit again.

    Attributes:
      space: The space to search.
      train_briefly: Trains points, in this process or in many, and returns their validation
        accuracies.
      search: (predictor, seed, count) -> up to `count` points that it would choose, best first.
      seed: Seed of the samples, the predictors and the trainings.
      trained: Every (point, accuracy) so far, in order.
      held_out: (predicted, trained accuracy) of random networks, predicted before their training.
      rounds_done: The number of rounds that have ended.
    """

    space: Space
    train_briefly: TrainBriefly
    search: Callable[[Predictor, int, int], Sequence[Point]]
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
    ) -> Predictor:
        """Trains `first` random networks, then `per_round` networks in each of some rounds.

        Half of a round's networks are the search's choices and half are random: the predictor
        learns where the search looks, and the random half measures its agreement.

        Args:
          first: The number of networks before the first round.
          per_round: The number of networks in each round.
          rounds: The number of rounds.
          after_round: Called with this object when the networks of a round are trained, to save
            `state()`. After `load`, `run` continues with the next round.

        Returns:
          The predictor that is fitted to all networks.
        """
        if not self.trained:
            self._train(self._fresh(first, 0), 0)
            after_round(self)
        for number in range(self.rounds_done + 1, rounds + 1):
            predictor = self._fitted(number)
            random = self._fresh(per_round - per_round // 2, number)
            known = {p for p, _ in self.trained} | set(random)
            proposed = self.search(predictor, self.seed * 1009 + number, per_round * 4)
            chosen = [p for p in dict.fromkeys(proposed) if p not in known][: per_round // 2]
            predicted = predictor.evaluate(random)[0].tolist() if random else []
            accuracies = self._train([*random, *chosen], number).tolist()
            self.held_out += zip(predicted, accuracies[: len(random)], strict=True)
            self.rounds_done = number
            after_round(self)
        return self._fitted(rounds + 1)

    @property
    def agreement(self) -> Agreement:
        """The predictors' agreement with the random networks of all rounds so far."""
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

    def _fitted(self, number: int) -> Predictor:
        predictor = Predictor(self.space, seed=self.seed * 1009 + number)
        return predictor.fit([p for p, _ in self.trained], [a for _, a in self.trained])

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
