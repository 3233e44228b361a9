"""Training of shared weights, with a controller for each reward (TuNAS, arXiv 2008.06120).

A step updates the weights of one network, drawn by the controllers in turn, on a training batch.
Then each controller draws networks, which are rewarded for their accuracy on a held-out batch.
`SharedWeights` evaluates networks by the weights, while they are trained or afterwards.
"""

from collections.abc import Callable, Mapping, Sequence

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

# Points that `SharedWeights` evaluates in one call, few enough that the last call wastes little.
_TOGETHER = 8


class Programs:
    """The two compiled programs of a supernet: `step` trains, `correct` counts correct predictions.

    Both are data-parallel: a batch is split over the mesh, and BatchNorm sees all of it.

    Args:
      space: The space of the networks.
      tx: The optimizer.
      preprocess: For training and for evaluation, as for `train.step.make_train_step`.
      mesh: A mesh from `train.sharding.make_mesh`.
      compute: Types and forms of the computation.
      loss: The loss of a training batch; see `train.losses.make_loss`.
    """

    def __init__(
        self,
        space: Space,
        tx: optax.GradientTransformation,
        *,
        preprocess: tuple[Preprocess, Callable[[jax.Array], jax.Array]],
        mesh: Mesh,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        loss: losses.Loss = losses.cross_entropy,
    ):
        self.space, self.mesh = space, mesh
        whole, split = replicated(mesh), batch_sharded(mesh)

        def loss_of(params, images, labels, switches, key):
            logits = network.apply(
                space, params, images, switches, train=True, key=key, compute=compute
            )
            return jnp.mean(loss(logits, labels)), jnp.mean(losses.correct(logits, labels, 1))

        def step(state: TrainState, batch, switches, seed):
            key = jax.random.fold_in(jax.random.key(seed), STEP_STREAM)
            key_data, key_net = jax.random.split(jax.random.fold_in(key, state.step))
            images, labels = preprocess[0](batch, key_data)
            params = state.variables["params"]
            metrics, grads = jax.value_and_grad(loss_of, has_aux=True)(
                params, images, labels, switches, key_net
            )
            updates, opt_state = tx.update(grads, state.opt_state, params)
            variables = state.variables | {"params": optax.apply_updates(params, updates)}
            return TrainState(state.step + 1, variables, opt_state, None), metrics

        def correct(params, batch, switches_of_points):
            images = preprocess[1](batch["image"])

            def count(switches):
                logits = network.apply(space, params, images, switches, compute=compute)
                return jnp.sum(losses.correct(logits, batch["label"], 1))

            return jax.lax.map(count, switches_of_points)

        self._step = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(whole, split, whole, whole),
            out_shardings=whole,
        )
        self._correct = jax.jit(correct, in_shardings=(whole, split, whole), out_shardings=whole)

    def step(
        self, state: TrainState, batch: dict, point: Point, seed: int
    ) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
        """Updates the weights of one point.

        Args:
          state: The state of `network.largest(space)`, without a moving average. It is donated.
          batch: This process's part of the host batch, {"image": uint8 [batch, height, width,
            channels], "label": int32 [batch]}.
          point: The network whose weights are updated.
          seed: Seed of dropout and augmentation.

        Returns:
          The new state, and (loss, top-1) on the device.
        """
        switches = jax.tree.map(lambda x: x[0], network.switches(self.space, [point]))
        return self._step(state, put_batch(batch, self.mesh), switches, np.uint32(seed))

    def correct(self, params: network.Tree, batch: dict, points: Sequence[Point]) -> np.ndarray:
        """Returns how many examples of a host batch each of N points gets right, float [N]."""
        switches = network.switches(self.space, points)
        return np.asarray(self._correct(params, put_batch(batch, self.mesh), switches))


class SharedWeights:
    """An evaluator: accuracies on held-out batches by the weights of a supernet.

    Args:
      programs: The supernet's programs.
      params: Its weights.
      batches: Held-out host batches of equal size. BatchNorm normalises by each batch as it is.

    Raises:
      ValueError: There are no batches.
    """

    def __init__(self, programs: Programs, params: network.Tree, batches: Sequence[dict]):
        self.programs, self.params, self.batches = programs, params, list(batches)
        if not self.batches:
            raise ValueError("supernet: got no held-out batches")
        self._known: dict[Point, float] = {}

    def evaluate(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the fractions of correct predictions [N] and their standard errors [N].

        Every point is computed once. The error is that of a mean over the number of images.
        """
        count = sum(len(b["label"]) for b in self.batches)
        missing = list(dict.fromkeys(tuple(p) for p in points if tuple(p) not in self._known))
        for start in range(0, len(missing), _TOGETHER):
            some = missing[start : start + _TOGETHER]
            # Padded, so that one program serves all calls.
            padded = some + some[-1:] * (_TOGETHER - len(some))
            right = np.sum(
                [self.programs.correct(self.params, b, padded) for b in self.batches], axis=0
            )
            self._known.update(zip(some, (right[: len(some)] / count).tolist(), strict=True))
        accuracy = np.array([self._known[tuple(p)] for p in points], np.float32)
        return accuracy, np.sqrt(accuracy * (1 - accuracy) / count)


class Controllers:
    """A policy gradient for each reward, on weights that are trained at the same time.

    In the first quarter of the steps the controllers learn nothing and draw uniformly, and some
    decisions of the drawn networks are replaced by their largest choices (TuNAS's warm-up of
    operations and of filters). Without `points` they draw uniformly to the end, so that the weights
    of all networks are trained alike.

    Args:
      space: The space of the networks.
      costs: The costs of points.
      rewards: The reward of each controller, by name.
      total_steps: The number of steps that the weights are trained.
      seed: Seed of all draws.
      points: How many networks each controller draws in a step, to learn from them; or 0.
      learning_rate: The rate at the start, which rises tenfold. "tunas" is 3e-4 per 256 `images`,
        which suits TuNAS's tens of thousands of steps. None suits `total_steps` (see
        `PolicyGradient`).
      images: The size of a training batch, for "tunas".
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
        if learning_rate == "tunas":
            rate = 3e-4 * images / 256
        else:
            rate = 1.6 / learning if learning_rate is None else float(learning_rate)
        self.searchers = {
            name: PolicyGradient(space, seed * 1009 + i, total_steps=learning, learning_rate=rate)
            for i, name in enumerate(self.rewards)
        }
        self.trace: dict[str, list[float]] = {name: [] for name in self.rewards}

    def draw(self, step: int) -> Point:
        """Returns the point whose weights are trained in a step, counted from 0."""
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

    def learn(self, step: int, accuracy_of: Callable[[Sequence[Point]], np.ndarray]) -> None:
        """Lets each controller draw points and learn from their rewards.

        Args:
          step: The step of the weights, counted from 0.
          accuracy_of: Returns the accuracies [N] (fractions) of N points by the weights now.
        """
        if step < self.quiet_steps or not self.points:
            return
        drawn = {name: s.ask(self.points) for name, s in self.searchers.items()}
        accuracies = np.split(
            accuracy_of([p for points in drawn.values() for p in points]), len(drawn)
        )
        for (name, points), accuracy in zip(drawn.items(), accuracies, strict=True):
            reward = self.rewards[name](accuracy, self.costs(points))
            self.searchers[name].tell(points, reward)
            self.trace[name].append(float(np.mean(reward)))

    def modes(self) -> dict[str, Point]:
        """Returns the most probable point of each controller."""
        return {name: searcher.mode() for name, searcher in self.searchers.items()}

    def state(self) -> dict:
        """Returns what `load` takes: lists, numbers and strings that JSON holds exactly."""
        searchers = {}
        for name, searcher in self.searchers.items():
            state = searcher.state()
            searchers[name] = state | {"leaves": [np.asarray(x).tolist() for x in state["leaves"]]}
        return {"searchers": searchers, "trace": self.trace}

    def load(self, state: dict) -> None:
        """Continues from what `state` returned."""
        for name, searcher in self.searchers.items():
            searcher.load(state["searchers"][name])
        self.trace = {name: list(values) for name, values in state["trace"].items()}
