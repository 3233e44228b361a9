"""Trains shared weights and, meanwhile, a controller for each reward (TuNAS, arXiv 2008.06120).

A step updates the weights of one network, drawn by the controllers in turn, on a training batch;
then each controller draws networks, which are rewarded for their accuracy on a held-out batch.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mbv3_jax.nn.modules import Compute
from mbv3_jax.search.objective import Costs, Reward
from mbv3_jax.search.policy_gradient import QUIET, PolicyGradient, warm_up
from mbv3_jax.search.space import Point, Space
from mbv3_jax.search.supernet import network
from mbv3_jax.train import losses
from mbv3_jax.train.sharding import batch_sharded, put_batch, replicated
from mbv3_jax.train.state import STEP_STREAM, TrainState
from mbv3_jax.train.step import Preprocess


class Programs:
    """The two compiled programs of a supernet: `step` trains, `correct` counts.

    Both are data-parallel: a batch is split over the mesh, BatchNorm takes all of it.

    Args:
      space: whose networks.
      tx: the optimizer.
      preprocess: as for `train.step.make_train_step`, for training, and for evaluation.
      mesh: from `placement.make_mesh`.
      compute, label_smoothing: as for `train.step.make_train_step`.
    """

    def __init__(
        self,
        space: Space,
        tx: optax.GradientTransformation,
        *,
        preprocess: tuple[Preprocess, Preprocess],
        mesh: Mesh,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        label_smoothing: float = 0.0,
    ):
        self.space, self.mesh = space, mesh
        whole, split = replicated(mesh), batch_sharded(mesh)

        def loss_of(params, images, labels, switches, key):
            logits = network.apply(
                space, params, images, switches, train=True, key=key, compute=compute
            )
            loss = losses.cross_entropy(logits, labels, label_smoothing=label_smoothing)
            return jnp.mean(loss), jnp.mean(losses.correct(logits, labels, 1))

        def step(state: TrainState, batch, switches, seed):
            key = jax.random.fold_in(jax.random.key(seed), STEP_STREAM)
            key_data, key_net = jax.random.split(jax.random.fold_in(key, state.step))
            images, labels = preprocess[0](batch, key_data)
            params = state.variables["params"]
            (loss, top1), grads = jax.value_and_grad(loss_of, has_aux=True)(
                params, images, labels, switches, key_net
            )
            updates, opt_state = tx.update(grads, state.opt_state, params)
            variables = state.variables | {"params": optax.apply_updates(params, updates)}
            return TrainState(state.step + 1, variables, opt_state, None), (loss, top1)

        def correct(params, batch, many):
            images = preprocess[1](batch["image"])

            def one(switches):
                logits = network.apply(space, params, images, switches, compute=compute)
                return jnp.sum(losses.correct(logits, batch["label"], 1))

            return jax.lax.map(one, many)

        self._step = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(whole, split, whole, whole),
            out_shardings=whole,
        )
        self._correct = jax.jit(correct, in_shardings=(whole, split, whole), out_shardings=whole)

    def step(self, state: TrainState, batch: dict, point: Point, seed: int):
        """One update of a point's weights; returns the state and (loss, top-1) on the device.

        Args:
          state: of `network.largest(space)`; donated. It keeps no average.
          batch: this process's part of the host batch {"image": uint8 [N, H, W, C], "label": [N]}.
          point: whose weights.
          seed: of dropout and augmentation.
        """
        switches = jax.tree.map(lambda x: x[0], network.switches(self.space, [point]))
        return self._step(state, put_batch(batch, self.mesh), switches, np.uint32(seed))

    def correct(self, params, batch: dict, points) -> np.ndarray:
        """How many of a host batch each of N points gets right, float [N]."""
        many = network.switches(self.space, points)
        return np.asarray(self._correct(params, put_batch(batch, self.mesh), many))


class Controllers:
    """A policy gradient for each reward, on weights that are trained meanwhile.

    In the first quarter of the steps they learn nothing and draw evenly, and more or less of the
    drawn networks is replaced by the largest choices (TuNAS's warm-up: of operations, of filters).

    Args:
      space: whose networks.
      costs: of points.
      rewards: by name.
      total_steps: of the weights.
      seed: of all draws.
      points: how many each controller draws a step.
      learning_rate: at the start, rising tenfold; "tunas" is 3e-4 per 256 `images`, which suits
        its tens of thousands of steps; None suits `total_steps` (see `PolicyGradient`).
      images: of a training batch.
    """

    def __init__(
        self,
        space: Space,
        costs: Costs,
        rewards: Mapping[str, Reward],
        *,
        total_steps: int,
        seed: int,
        points: int = 2,
        learning_rate: float | str | None = None,
        images: int = 0,
    ):
        self.space, self.costs, self.rewards = space, costs, dict(rewards)
        self.total_steps, self.seed, self.points = total_steps, seed, points
        self.quiet_steps = int(QUIET * total_steps)
        learning = max(1, total_steps - self.quiet_steps)
        rate = 1.6 / learning if learning_rate is None else learning_rate
        if learning_rate == "tunas":
            rate = 3e-4 * images / 256
        self.searchers = {
            name: PolicyGradient(space, seed * 1009 + i, total_steps=learning, learning_rate=rate)
            for i, name in enumerate(self.rewards)
        }
        self.trace: dict[str, list[float]] = {name: [] for name in self.rewards}

    def draw(self, step: int) -> Point:
        """Whose weights step `step` (from 0) trains."""
        names = list(self.searchers)
        (point,) = self.searchers[names[step % len(names)]].ask(1)
        coins = np.random.default_rng((self.seed, step)).random(2)
        probability = warm_up(step, self.total_steps)
        for coin, kinds in zip(
            coins, (("kernel", "se", "depth"), ("out", "expansion")), strict=True
        ):
            if coin < probability:
                point = tuple(
                    d.choices.index(max(d.choices)) if d.what in kinds else index
                    for index, d in zip(point, self.space.decisions, strict=True)
                )
        return self.space.canonical(point)

    def learn(self, step: int, accuracy_of) -> None:
        """Lets each controller draw and learn; `accuracy_of(points)` gives fractions [N]."""
        if step < self.quiet_steps:
            return
        drawn = {name: s.ask(self.points) for name, s in self.searchers.items()}
        accuracies = np.split(
            accuracy_of([p for points in drawn.values() for p in points]), len(drawn)
        )
        for (name, points), accuracy in zip(drawn.items(), accuracies, strict=True):
            reward = self.rewards[name](accuracy, self.costs(points))
            self.searchers[name].tell(points, reward)
            self.trace[name].append(float(np.mean(reward)))

    def found(self) -> dict[str, Point]:
        """The most probable point of each."""
        return {name: searcher.mode() for name, searcher in self.searchers.items()}

    def state(self) -> dict:
        """What `load` takes: lists, numbers and strings that JSON holds exactly."""
        searchers = {}
        for name, searcher in self.searchers.items():
            own = searcher.state()
            searchers[name] = own | {"leaves": [np.asarray(x).tolist() for x in own["leaves"]]}
        return {"searchers": searchers, "trace": self.trace}

    def load(self, state: dict) -> None:
        for name, searcher in self.searchers.items():
            searcher.load(state["searchers"][name])
        self.trace = {name: list(values) for name, values in state["trace"].items()}
