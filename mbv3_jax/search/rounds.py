"""Brief trainings in rounds, of networks that a predictor chooses from the previous rounds."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from mbv3_jax.core.checks import check_number, check_whole
from mbv3_jax.search.evaluators import Agreement, TrainBriefly, agreement
from mbv3_jax.search.predictor import Predictor
from mbv3_jax.search.space import Point, Space


class State(TypedDict):
    """The state after the rounds that have ended, as JSON values."""

    trained: list[tuple[tuple[int, ...], float]]
    rounds_done: int


@dataclasses.dataclass
class Rounds:
    """Trains networks in rounds: fit a predictor, search on it, train its choices, fit again.

    Attributes:
      space: The space to search.
      train_briefly: Trains points, in this process or in many, and returns their validation
        accuracies.
      search: (predictor, seed, count, known) -> up to `count` points to train, none of the known.
      seed: Seed of the samples, the predictors and the trainings.
      draw: (generator, count) -> the first points to train, and possibly more; None draws them from
        the whole space.
      groups: points -> the number of the group of each [N]. Estimates are judged within groups, for
        instance of about equal cost; None: there is one group.
      trained: Every (point, accuracy) so far, in order.
      random: How many of the first of them were drawn at random.
      rounds_done: The number of rounds that have ended.
    """

    space: Space
    train_briefly: TrainBriefly
    search: Callable[[Predictor, int, int, set[Point]], Sequence[Point]]
    seed: int = 0
    draw: Callable[[np.random.Generator, int], Sequence[Point]] | None = None
    groups: Callable[[Sequence[Point]], np.ndarray] | None = None
    trained: list[tuple[Point, float]] = dataclasses.field(default_factory=list)
    random: int = 0
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

        The networks of the rounds are chosen by the search. The random ones show how far the
        predictor can be trusted.

        Args:
          first: The number of networks before the first round.
          per_round: The number of networks in each round.
          rounds: The number of rounds.
          after_round: Called with this object when the networks of a round are trained, to save
            `state()`. After `load`, `run` continues with the next round.

        Returns:
          The predictor that is fitted to all networks.
        """
        self.random = first
        if not self.trained:
            self._train(self._fresh(first, 0), 0)
            after_round(self)
        for number in range(self.rounds_done + 1, rounds + 1):
            known = {p for p, _ in self.trained}
            seed = self.seed * 1009 + number
            chosen = self.search(self._fitted(number), seed, per_round, known)
            self._train(list(dict.fromkeys(chosen))[:per_round], number)
            self.rounds_done = number
            after_round(self)
        return self._fitted(rounds + 1)

    @property
    def agreement(self) -> Agreement:
        """How well the accuracies of the random networks agree with predictions from all others."""
        if min(len(self.trained), self.random) < 2:
            return agreement([], [])
        estimates = self._fitted(self.rounds_done + 1).left_out()[: self.random]
        points, accuracies = zip(*self.trained[: self.random], strict=True)
        if self.groups is None:
            return agreement(estimates, accuracies)
        groups = self.groups(points)
        return agreement(_within(groups, estimates), _within(groups, np.array(accuracies)))

    def state(self) -> dict:
        """Returns what `load` takes: lists and numbers that JSON can hold."""
        return {
            "trained": [[list(p), a] for p, a in self.trained],
            "rounds_done": self.rounds_done,
        }

    def load(self, state: State) -> None:
        """Continues from what `state` returned.

        Raises:
          ValueError: A network is not in the space, an accuracy is no fraction, or there is none.
        """
        for i, (point, accuracy) in enumerate(state["trained"]):
            check_number(f"trained[{i}][1]", accuracy, at_least=0, at_most=1)
            try:
                self.space.check(point)
            except ValueError as e:
                raise ValueError(f"trained[{i}]: {e}") from e
        check_whole("rounds_done", state["rounds_done"], 0)
        if not state["trained"]:
            raise ValueError("trained: got [], expected at least one network")
        self.trained = [(tuple(point), accuracy) for point, accuracy in state["trained"]]
        self.rounds_done = state["rounds_done"]

    def _fitted(self, number: int) -> Predictor:
        predictor = Predictor(self.space, seed=self.seed * 1009 + number)
        return predictor.fit([p for p, _ in self.trained], [a for _, a in self.trained])

    def _fresh(self, count: int, number: int) -> list[Point]:
        """Returns random points that have not been trained; fewer if the space has no more."""
        rng = np.random.default_rng((self.seed, number))
        draw = self.draw or self.space.sample
        known = {p for p, _ in self.trained}
        fresh: list[Point] = []
        for _ in range(100):
            if len(fresh) == count:
                break
            for point in draw(rng, count):
                if point not in known and len(fresh) < count:
                    known.add(point)
                    fresh.append(point)
        return fresh

    def _train(self, points: Sequence[Point], number: int) -> None:
        accuracies = np.asarray(self.train_briefly(points, self.seed * 1009 + number), float)
        self.trained += zip(points, accuracies.tolist(), strict=True)


def _within(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values [N] less the means of their groups [N]."""
    return values - np.array([values[groups == group].mean() for group in groups])
