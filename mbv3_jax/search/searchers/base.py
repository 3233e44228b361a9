"""What all searchers share: random numbers that can be resumed, and the best point so far."""

import abc
from collections.abc import Callable, Sequence

import numpy as np

from mbv3_jax.search.space import Point, Space


class Searcher(abc.ABC):
    """A search in `space`, decided by `seed`; see the package for the protocol."""

    def __init__(self, space: Space, seed: int = 0):
        self.space, self.seed = space, seed
        self.rng = np.random.default_rng(seed)
        self._best: tuple[Point, float] | None = None

    @abc.abstractmethod
    def ask(self, count: int) -> list[Point]:
        """Canonical points to evaluate next."""

    def tell(self, points: Sequence[Point], rewards: Sequence[float]) -> None:
        """Learns the rewards of points.

        Raises:
          ValueError: not as many rewards, or one that is no finite number.
        """
        rewards = np.asarray(rewards, float)
        if rewards.shape != (len(points),) or not np.all(np.isfinite(rewards)):
            raise ValueError(f"rewards: got {rewards}, expected {len(points)} finite numbers")
        for point, reward in zip(points, rewards.tolist(), strict=True):
            if self._best is None or reward > self._best[1]:
                self._best = tuple(point), reward
        self.learn(points, rewards)

    def learn(self, points: Sequence[Point], rewards: np.ndarray) -> None:  # noqa: B027
        """What a kind of searcher does with the rewards."""

    def best(self) -> tuple[Point, float]:
        """The point with the highest reward told so far, the first of equals.

        Raises:
          ValueError: none was told.
        """
        if self._best is None:
            raise ValueError("search: no reward was told yet")
        return self._best

    def state(self) -> dict:
        """What `load` takes."""
        best = self._best and {"point": list(self._best[0]), "reward": self._best[1]}
        return {"rng": self.rng.bit_generator.state, "best": best}

    def load(self, state: dict) -> None:
        self.rng.bit_generator.state = state["rng"]
        best = state["best"]
        self._best = best and (tuple(best["point"]), best["reward"])


def run(
    searcher: Searcher,
    reward: Callable[[Sequence[Point]], np.ndarray],
    *,
    steps: int,
    batch: int,
    after_step: Callable[[int, Sequence[Point], np.ndarray], None] = lambda *_: None,
) -> tuple[Point, float]:
    """Asks for `batch` points and tells their rewards, `steps` times; returns the best."""
    for step in range(steps):
        points = searcher.ask(batch)
        rewards = np.asarray(reward(points), float)
        searcher.tell(points, rewards)
        after_step(step, points, rewards)
    return searcher.best()
