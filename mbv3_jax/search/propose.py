"""The points that a policy gradient finds best by an evaluator that answers at once."""

from collections.abc import Callable

from mbv3_jax.search.costs import Costs
from mbv3_jax.search.evaluators import Evaluator
from mbv3_jax.search.rewards import Reward
from mbv3_jax.search.searchers.base import run
from mbv3_jax.search.searchers.policy_gradient import PolicyGradient
from mbv3_jax.search.space import Point, Space

STEPS, BATCH = 300, 16


def propose(
    space: Space,
    evaluator: Evaluator,
    costs: Costs,
    reward: Reward,
    *,
    seed: int,
    count: int = 1,
    steps: int = STEPS,
    batch: int = BATCH,
    policy: str = "factorised",
    after_step: Callable = lambda *_: None,
) -> list[Point]:
    """Searches and returns up to `count` of the points visited, best first.

    Args:
      space, evaluator, costs, reward: where, and what is maximised.
      seed: of the search.
      count: how many points.
      steps, batch: `steps` updates of the policy, each from `batch` points.
      policy: of `PolicyGradient`.
      after_step: as for `searchers.base.run`.
    """
    rate = {"factorised": 1.6, "autoregressive": 0.6}[policy] / steps
    searcher = PolicyGradient(space, seed, total_steps=steps, policy=policy, learning_rate=rate)
    visited: dict[Point, float] = {}

    def reward_of(points):
        return reward(evaluator.evaluate(points)[0], costs(points))

    def note(step, points, rewards):
        after_step(step, points, rewards)
        visited.update(zip(points, rewards.tolist(), strict=True))

    run(searcher, reward_of, steps=steps, batch=batch, after_step=note)
    return sorted(visited, key=visited.get, reverse=True)[:count]
