"""Policies: distributions over the points of a space, with parameters to learn.

A policy is made of the number of choices of each decision. It has `init(key) -> params`,
`log_probs(params, points, active) -> [N]` and `sample(params, key, count) -> points [N, D]`. Points
are int32 [N, D]; `active` is float32 [N, D], and inactive decisions do not count.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mbv3_jax.core.checks import choose
from mbv3_jax.search.searchers import Searcher


class Factorised:
    """A softmax of its own for each decision (TuNAS); even at the start."""

    def __init__(self, sizes: tuple[int, ...]):
        self.sizes = np.array(sizes)
        self.there = np.arange(self.sizes.max()) < self.sizes[:, None]

    def init(self, key):
        return {"logits": jnp.zeros(self.there.shape)}

    def log_softmax(self, params) -> jax.Array:
        """[D, choices]; -inf where a decision has fewer."""
        return jax.nn.log_softmax(jnp.where(self.there, params["logits"], -jnp.inf), axis=-1)

    def log_probs(self, params, points, active):
        logits = jnp.where(self.there, params["logits"], -1e9)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        chosen = log_p[jnp.arange(len(self.sizes)), points]
        return jnp.sum(chosen * active, axis=-1)

    def sample(self, params, key, count):
        logits = jnp.where(self.there, params["logits"], -jnp.inf)
        return jax.random.categorical(key, logits, shape=(count, len(self.sizes)))

    def mode(self, params):
        """The most probable choice of each decision [D]."""
        return jnp.argmax(jnp.where(self.there, params["logits"], -jnp.inf), axis=-1)


class Autoregressive:
    """An LSTM that takes the decisions one after another (MnasNet, as NASNet).

    Its input is an embedding of the choice before; a softmax for each decision reads its state.
    The softmaxes begin at zero, so that the first points are drawn evenly.
    """

    def __init__(self, sizes: tuple[int, ...], units: int = 64):
        self.sizes = np.array(sizes)
        self.there = np.arange(self.sizes.max()) < self.sizes[:, None]
        self.units = units

    def init(self, key):
        decisions, choices = self.there.shape
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

    def _step(self, params, carry, before, decision):
        hidden, cell = carry
        inputs = jnp.concatenate([params["embedding"][before], hidden], axis=-1)
        gates = inputs @ params["kernel"] + params["bias"]
        inward, forget, outward, new = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(forget + 1) * cell + jax.nn.sigmoid(inward) * jnp.tanh(new)
        hidden = jax.nn.sigmoid(outward) * jnp.tanh(cell)
        logits = hidden @ params["readout"][decision] + params["offset"][decision]
        return (hidden, cell), jnp.where(jnp.asarray(self.there)[decision], logits, -1e9)

    def _start(self, count):
        zeros = jnp.zeros((count, self.units))
        return (zeros, zeros), jnp.full(count, self.there.size)

    def log_probs(self, params, points, active):
        def body(carry, inputs):
            (state, before), (decision, choice, on) = carry, inputs
            state, logits = self._step(params, state, before, decision)
            log_p = jax.nn.log_softmax(logits)
            chosen = jnp.take_along_axis(log_p, choice[:, None], axis=-1)[:, 0]
            # What makes no difference is not read on either.
            seen = jnp.where(on > 0, choice, 0)
            return (state, decision * self.there.shape[1] + seen), chosen * on

        start = self._start(points.shape[0])
        inputs = (jnp.arange(len(self.sizes)), points.T, active.T)
        return jnp.sum(jax.lax.scan(body, start, inputs)[1], axis=0)

    def sample(self, params, key, count):
        return self._draw(params, count, lambda d, x: jax.random.categorical(
            jax.random.fold_in(key, d), x))  # fmt: skip

    def mode(self, params):
        """The most probable choice of each decision [D], one after another."""
        return self._draw(params, 1, lambda _, logits: jnp.argmax(logits, axis=-1))[0]

    def _draw(self, params, count, pick):
        def body(carry, decision):
            state, before = carry
            state, logits = self._step(params, state, before, decision)
            choice = pick(decision, logits)
            return (state, decision * self.there.shape[1] + choice), choice

        return jax.lax.scan(body, self._start(count), jnp.arange(len(self.sizes)))[1].T


POLICIES = {"factorised": Factorised, "autoregressive": Autoregressive}


# Policy gradient (REINFORCE) over a factorised softmax (TuNAS) or an RNN (MnasNet).

# TuNAS, appendix: the learning rate for 256 rewards at a time, which rises tenfold to the end.
TUNAS_RATE, RISE = 3e-4, 10.0
QUIET = 0.25  # the part of a search in which TuNAS trains the shared weights alone


def warm_up(step: int, total: int, part: float = QUIET) -> float:
    """TuNAS's op and filter warm-up: the probability that a step trains all operations (or all
    filters) at once instead of those sampled; from 1 down to 0 in the first part of the search."""
    return max(0.0, 1 - step / (part * total)) if part * total else 0.0


_ADAM = optax.scale_by_adam(b1=0.0, b2=0.999)


class _Programs(NamedTuple):
    policy: Factorised | Autoregressive
    sample: Callable
    gradient: Callable
    update: Callable


@functools.cache
def _compiled(policy: str, sizes: tuple[int, ...]) -> _Programs:
    """What is compiled once for all searches in a space."""
    own = POLICIES[policy](sizes)

    def mean(params, points, active, weights):
        return jnp.mean(weights * own.log_probs(params, points, active))

    sample = jax.jit(own.sample, static_argnums=2)
    return _Programs(own, sample, jax.jit(jax.grad(mean)), jax.jit(_ADAM.update))


class PolicyGradient(Searcher):
    """Moves the policy towards points whose reward is above the moving average of rewards.

    Each `tell` is one step: the mean of (reward - baseline) * grad log p(point), by Adam with beta1
    0. `total_steps` is how many there will be; the learning rate rises tenfold on the way.

    Args:
      space, seed: see `Searcher`.
      total_steps: calls of `tell`.
      policy: "factorised" or "autoregressive".
      learning_rate: at the start; None is TuNAS's, 3e-4 times batch / 256, which suits its tens
        of thousands of steps. Adam moves a logit by about the rate at each step, and a choice is
        as good as made when its logit is 5 ahead: with few steps take about 1 / steps.
      baseline_decay: of the moving average of rewards.
    """

    def __init__(
        self,
        space,
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
        self.step, self.baseline = 0, None
        self.params = self.policy.init(jax.random.key(seed))
        self._opt_state = _ADAM.init(self.params)

    def ask(self, count):
        key = jax.random.key(int(self.rng.integers(2**63)))
        raw = np.asarray(self._programs.sample(self.params, key, count))
        return [self.space.canonical(point) for point in raw]

    def learn(self, points, rewards):
        if self.baseline is None:
            self.baseline = float(rewards.mean())
        grads = self.gradient(points, rewards)
        updates, self._opt_state = self._programs.update(grads, self._opt_state)
        rate = self._rate(len(points))
        self.params = jax.tree.map(lambda p, u: p + rate * u, self.params, updates)
        decay = self.baseline_decay
        self.baseline = decay * self.baseline + (1 - decay) * float(rewards.mean())
        self.step += 1

    def gradient(self, points, rewards):
        """The estimated gradient of the mean reward in the parameters, from N points and
        rewards, less the baseline."""
        active = np.array([self.space.active(p) for p in points], np.float32)
        weights = np.asarray(rewards, np.float32) - np.float32(self.baseline or 0.0)
        return self._programs.gradient(self.params, np.array(points, np.int32), active, weights)

    def mode(self):
        """The most probable choice of each decision, as a point."""
        return self.space.canonical(np.asarray(self.policy.mode(self.params)))

    def _rate(self, batch: int) -> float:
        first = self.learning_rate
        first = TUNAS_RATE * batch / 256 if first is None else first
        return first * RISE ** min(1.0, self.step / self.total_steps)

    def state(self):
        arrays = {"params": self.params, "opt_state": self._opt_state}
        leaves = [np.asarray(x) for x in jax.tree.leaves(arrays)]
        own = {"step": self.step, "baseline": self.baseline, "leaves": leaves}
        return super().state() | own

    def load(self, state):
        super().load(state)
        self.step, self.baseline = state["step"], state["baseline"]
        arrays = {"params": self.params, "opt_state": self._opt_state}
        leaves, structure = jax.tree.flatten(arrays)
        loaded = [
            jnp.asarray(x, ours.dtype) for x, ours in zip(state["leaves"], leaves, strict=True)
        ]
        arrays = jax.tree.unflatten(structure, loaded)
        self.params, self._opt_state = arrays["params"], arrays["opt_state"]
