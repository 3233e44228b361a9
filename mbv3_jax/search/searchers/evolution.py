"""Regularised evolution (Real et al., arXiv 1802.01548): tournaments, mutation, death by age."""

import collections

import numpy as np

from mbv3_jax.search.searchers.base import Searcher


class Evolution(Searcher):
    """The youngest `population` points; a child is the best of `tournament` of them, mutated once.

    The first `population` points are random. The defaults of the paper, 100 and 25, are for
    20,000 networks; the ones here are for some hundreds.
    """

    def __init__(self, space, seed: int = 0, *, population: int = 20, tournament: int = 5):
        super().__init__(space, seed)
        if not 1 <= tournament <= population:
            raise ValueError(
                f"evolution.tournament: got {tournament}, expected 1 to population {population}"
            )
        self.population, self.tournament = population, tournament
        self._living = collections.deque(maxlen=population)  # (point, reward), the oldest first
        self._asked = 0

    def ask(self, count):
        points = []
        for _ in range(count):
            if self._asked < self.population or not self._living:
                points += self.space.sample(self.rng, 1)
            else:
                some = self.rng.integers(len(self._living), size=self.tournament)
                parent = max((self._living[i] for i in some), key=lambda member: member[1])
                points.append(self.space.mutate(parent[0], self.rng))
            self._asked += 1
        return points

    def learn(self, points, rewards: np.ndarray):
        self._living.extend((tuple(p), r) for p, r in zip(points, rewards.tolist(), strict=True))

    def state(self):
        living = [[list(p), r] for p, r in self._living]
        return super().state() | {"living": living, "asked": self._asked}

    def load(self, state):
        super().load(state)
        self._living.clear()
        self._living.extend((tuple(p), r) for p, r in state["living"])
        self._asked = state["asked"]
