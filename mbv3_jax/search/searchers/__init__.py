"""Searchers: each proposes points of a space and is told their rewards.

All have `ask(count) -> points`, `tell(points, rewards)`, `best() -> (point, reward)`, `state()`
(numbers, lists and arrays in nested dicts) and `load(state)`, after which it goes on as the one
that was saved. The seed decides everything.
"""

from mbv3_jax.search.searchers.base import Searcher, run
from mbv3_jax.search.searchers.evolution import Evolution
from mbv3_jax.search.searchers.policy_gradient import PolicyGradient
from mbv3_jax.search.searchers.random import Random

__all__ = ["Evolution", "PolicyGradient", "Random", "Searcher", "run"]
