"""Policies: distributions over the points of a space, with parameters to learn.

A policy is made of the number of choices of each decision. It has `init(key) -> params`,
`log_probs(params, points, active) -> [N]` and `sample(params, key, count) -> points [N, D]`. Points
are int32 [N, D]; `active` is float32 [N, D], and inactive decisions do not count.
"""

import jax
import jax.numpy as jnp
import numpy as np


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
