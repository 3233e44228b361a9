"""Policy gradient (REINFORCE): policies over the points of a space, and the searcher that learns.

A policy is a distribution over points: a softmax for each decision as in TuNAS (arXiv 2008.06120),
or an LSTM that takes one decision after another as in MnasNet (arXiv 1807.11626).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mbv3_jax.core.checks import choose
from mbv3_jax.search.searchers import Searcher
from mbv3_jax.search.space import Point, Space

# TuNAS, appendix: the learning rate for 256 rewards at a time, which rises tenfold to the end.
TUNAS_RATE, RISE = 3e-4, 10.0
# The fraction of a search in which TuNAS trains only the shared weights.
QUIET = 0.25

_ADAM = optax.scale_by_adam(b1=0.0, b2=0.999)


class Policy(Protocol):
    """A distribution over points, built from the number of choices of each decision.

    Points are int32 [N, decisions]. `active` is float32 [N, decisions]: 0 for decisions that make
    no difference, which do not count.
    """

    def init(self, key: jax.Array) -> dict: ...

    def log_probs(self, params: dict, points: jax.Array, active: jax.Array) -> jax.Array:
        """Returns the log probabilities [N] of points."""
        ...

    def sample(self, params: dict, key: jax.Array, count: int) -> jax.Array:
        """Draws points [count, decisions]."""
        ...

    def mode(self, params: dict) -> jax.Array:
        """Returns the most probable choice of each decision [decisions]."""
        ...


class Factorised:
    """An independent softmax for each decision (TuNAS), uniform at the start.

    Args:
      sizes: The number of choices of each decision.
    """

    def __init__(self, sizes: tuple[int, ...]):
        self.sizes = np.array(sizes)
        self.valid = np.arange(self.sizes.max()) < self.sizes[:, None]  # [decisions, choices]

    def init(self, key: jax.Array) -> dict:
        return {"logits": jnp.zeros(self.valid.shape)}

    def log_probs(self, params: dict, points: jax.Array, active: jax.Array) -> jax.Array:
        logits = jnp.where(self.valid, params["logits"], -1e9)  # -inf would give NaN gradients
        log_p = jax.nn.log_softmax(logits, axis=-1)
        chosen = log_p[jnp.arange(len(self.sizes)), points]
        return jnp.sum(chosen * active, axis=-1)

    def sample(self, params: dict, key: jax.Array, count: int) -> jax.Array:
        logits = jnp.where(self.valid, params["logits"], -jnp.inf)
        return jax.random.categorical(key, logits, shape=(count, len(self.sizes)))

    def mode(self, params: dict) -> jax.Array:
        return jnp.argmax(jnp.where(self.valid, params["logits"], -jnp.inf), axis=-1)


class Lstm:
    """An LSTM that takes the decisions one after another (MnasNet, after NASNet).

    Its input is an embedding of the previous choice, and a softmax for each decision reads its
    state. The softmaxes begin at zero, so that the first points are drawn uniformly.

    Args:
      sizes: The number of choices of each decision.
      units: The size of the embedding and of the state.
    """

    def __init__(self, sizes: tuple[int, ...], units: int = 64):
        self.sizes = np.array(sizes)
        self.valid = np.arange(self.sizes.max()) < self.sizes[:, None]  # [decisions, choices]
        self.units = units

    def init(self, key: jax.Array) -> dict:
        decisions, choices = self.valid.shape
        units, draw = self.units, jax.nn.initializers.uniform(0.2)
        keys = jax.random.split(key, 3)
        return {
            # One for each choice of each decision, and one for the beginning.
            "embedding": draw(keys[0], (decisions * choices + 1, units)) - 0.1,
            "kernel": draw(keys[1], (2 * units, 4 * units)) - 0.1,
            "bias": jnp.zeros(4 * units),
            "readout": jnp.zeros((decisions, units, choices)),
            "offset": jnp.zeros((decisions, choices)),
        }

    def log_probs(self, params: dict, points: jax.Array, active: jax.Array) -> jax.Array:
        def body(carry, inputs):
            (state, previous), (decision, choice, on) = carry, inputs
            state, logits = self._step(params, state, previous, decision)
            log_p = jax.nn.log_softmax(logits)
            chosen = jnp.take_along_axis(log_p, choice[:, None], axis=-1)[:, 0]
            # The next decision must not depend on a choice that makes no difference.
            seen = jnp.where(on > 0, choice, 0)
            return (state, decision * self.valid.shape[1] + seen), chosen * on

        start = self._start(points.shape[0])
        inputs = (jnp.arange(len(self.sizes)), points.T, active.T)
        return jnp.sum(jax.lax.scan(body, start, inputs)[1], axis=0)

    def sample(self, params: dict, key: jax.Array, count: int) -> jax.Array:
        def pick(decision, logits):
            return jax.random.categorical(jax.random.fold_in(key, decision), logits)

        return self._draw(params, count, pick)

    def mode(self, params: dict) -> jax.Array:
        """Returns the most probable choice [decisions] after the most probable ones before it."""
        return self._draw(params, 1, lambda _, logits: jnp.argmax(logits, axis=-1))[0]

    def _start(self, count: int):
        zeros = jnp.zeros((count, self.units))
        return (zeros, zeros), jnp.full(count, self.valid.size)

    def _step(self, params: dict, state, previous: jax.Array, decision: jax.Array):
        """Returns the next state and the logits [N, choices] of a decision."""
        hidden, cell = state
        inputs = jnp.concatenate([params["embedding"][previous], hidden], axis=-1)
        gates = inputs @ params["kernel"] + params["bias"]
        inward, forget, outward, new = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(forget + 1) * cell + jax.nn.sigmoid(inward) * jnp.tanh(new)
        hidden = jax.nn.sigmoid(outward) * jnp.tanh(cell)
        logits = hidden @ params["readout"][decision] + params["offset"][decision]
        return (hidden, cell), jnp.where(jnp.asarray(self.valid)[decision], logits, -1e9)

    def _draw(self, params: dict, count: int, pick: Callable) -> jax.Array:
        def body(carry, decision):
            state, previous = carry
            state, logits = self._step(params, state, previous, decision)
            choice = pick(decision, logits)
            return (state, decision * self.valid.shape[1] + choice), choice

        return jax.lax.scan(body, self._start(count), jnp.arange(len(self.sizes)))[1].T


POLICIES: dict[str, Callable[[tuple[int, ...]], Policy]] = {"factorised": Factorised, "lstm": Lstm}


def warm_up(step: int, total: int, fraction: float = QUIET) -> float:
    """Returns TuNAS's probability of an operation or filter warm-up at a step.

    A step under warm-up trains all operations (or all filters) instead of the sampled ones. The
    probability falls from 1 to 0 over the first `fraction` of `total` steps.
    """
    return max(0.0, 1 - step / (fraction * total)) if fraction * total else 0.0


class PolicyGradient(Searcher):
    """Moves a policy towards points whose reward is above the moving average of rewards.

    Each `tell` is one update by the mean of (reward - baseline) * grad log p(point), with Adam at
    beta1 = 0. The learning rate rises tenfold until the end.

    Args:
      space, seed: As for `Searcher`.
      total_steps: The number of calls of `tell`.
      policy: One of `POLICIES`.
      learning_rate: The rate at the start. None is TuNAS's, 3e-4 times batch / 256, which suits
        its tens of thousands of steps. Adam moves a logit by about the rate in each step, and a
        choice is practically made when its logit is ahead by 5: with few steps, take about
        1 / steps.
      baseline_decay: Decay of the moving average of rewards.

    Raises:
      ValueError: An option is out of range; the message names it.
    """

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        *,
        total_steps: int,
        policy: str = "factorised",
        learning_rate: float | None = None,
        baseline_decay: float = 0.95,
    ):
        super().__init__(space, seed)
        if not 0 <= baseline_decay < 1:
            raise ValueError(
                f"policy_gradient.baseline_decay: got {baseline_decay!r}, expected 0 to below 1"
            )
        if not total_steps > 0:
            raise ValueError(f"policy_gradient.total_steps: got {total_steps!r}, expected above 0")
        choose("policy_gradient.policy", policy, POLICIES)
        self._programs = _compiled(policy, tuple(len(d.choices) for d in space.decisions))
        self.policy = self._programs.policy
        self.total_steps, self.learning_rate = total_steps, learning_rate
        self.baseline_decay = baseline_decay
        self.step = 0
        self.baseline: float | None = None
        self.params = self.policy.init(jax.random.key(seed))
        self._opt_state = _ADAM.init(self.params)

    def ask(self, count: int) -> list[Point]:
        key = jax.random.key(int(self.rng.integers(2**63)))
        raw = np.asarray(self._programs.sample(self.params, key, count))
        return [self.space.canonical(point) for point in raw]

    def learn(self, points: Sequence[Point], rewards: np.ndarray) -> None:
        if self.baseline is None:
            self.baseline = float(rewards.mean())
        grads = self.gradient(points, rewards)
        updates, self._opt_state = self._programs.update(grads, self._opt_state)
        rate = self._rate(len(points))
        self.params = jax.tree.map(lambda p, u: p + rate * u, self.params, updates)
        decay = self.baseline_decay
        self.baseline = decay * self.baseline + (1 - decay) * float(rewards.mean())
        self.step += 1

    def gradient(self, points: Sequence[Point], rewards: np.ndarray) -> dict:
        """Estimates the gradient of the mean reward from N points and rewards [N]."""
        active = np.array([self.space.active(p) for p in points], np.float32)
        weights = np.asarray(rewards, np.float32) - np.float32(self.baseline or 0.0)
        return self._programs.gradient(self.params, np.array(points, np.int32), active, weights)

    def mode(self) -> Point:
        """Returns the most probable choice of each decision, as a point."""
        return self.space.canonical(np.asarray(self.policy.mode(self.params)).tolist())

    def state(self) -> dict:
        arrays = {"params": self.params, "opt_state": self._opt_state}
        leaves = [np.asarray(x) for x in jax.tree.leaves(arrays)]
        progress = {"step": self.step, "baseline": self.baseline, "leaves": leaves}
        return super().state() | progress

    def load(self, state: dict) -> None:
        super().load(state)
        self.step, self.baseline = state["step"], state["baseline"]
        arrays = {"params": self.params, "opt_state": self._opt_state}
        current, structure = jax.tree.flatten(arrays)
        leaves = [jnp.asarray(x, c.dtype) for x, c in zip(state["leaves"], current, strict=True)]
        arrays = jax.tree.unflatten(structure, leaves)
        self.params, self._opt_state = arrays["params"], arrays["opt_state"]

    def _rate(self, batch: int) -> float:
        first = self.learning_rate
        first = TUNAS_RATE * batch / 256 if first is None else first
        return first * RISE ** min(1.0, self.step / self.total_steps)


class _Programs(NamedTuple):
    policy: Any
    sample: Callable
    gradient: Callable
    update: Callable


@functools.cache
def _compiled(policy_name: str, sizes: tuple[int, ...]) -> _Programs:
    """Returns what is compiled once for all searches in a space."""
    policy = POLICIES[policy_name](sizes)

    def mean(params, points, active, weights):
        return jnp.mean(weights * policy.log_probs(params, points, active))

    sample = jax.jit(policy.sample, static_argnums=2)
    return _Programs(policy, sample, jax.jit(jax.grad(mean)), jax.jit(_ADAM.update))
