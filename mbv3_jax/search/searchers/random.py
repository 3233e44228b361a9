"""Random search: the baseline that every other must beat."""

from mbv3_jax.search.searchers.base import Searcher

_TRIES = 100


class Random(Searcher):
    """Draws every decision evenly, and no network twice while others are easily found."""

    def __init__(self, space, seed: int = 0):
        super().__init__(space, seed)
        self._seen = set()

    def ask(self, count):
        found = []
        for _ in range(_TRIES):
            for point in self.space.sample(self.rng, count):
                if point not in self._seen and len(found) < count:
                    self._seen.add(point)
                    found.append(point)
            if len(found) == count:
                return found
        return found + self.space.sample(self.rng, count - len(found))

    def state(self):
        return super().state() | {"seen": sorted(map(list, self._seen))}

    def load(self, state):
        super().load(state)
        self._seen = set(map(tuple, state["seen"]))
