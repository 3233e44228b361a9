import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.train import losses, schedules
from mbv3_jax.train.optimizers import make_optimizer
from mbv3_jax.train.sharding import make_mesh, put_batch, replicated
from mbv3_jax.train.state import create_state
from mbv3_jax.train.step import make_train_step

BATCH = 8


def normalise(images):
    return images.astype(jnp.float32) / 127.5 - 1


def preprocess(batch, key):
    return normalise(batch["image"]), batch["label"]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, 32, 32, 3), np.uint8),
        "label": rng.integers(0, 10, BATCH).astype(np.int32),
    }


class Trainer:
    """A step with the state that it starts from."""

    def __init__(
        self, spec, *, devices=1, seed=0, base_lr=0.5, ema_decay=None, average_from=None, **options
    ):
        self.spec, self.mesh = spec, make_mesh(jax.devices()[:devices])
        self.schedule = schedules.make_schedule(
            "cosine", base_lr=base_lr, total_steps=10, steps_per_epoch=5, warmup_steps=2
        )
        tx = make_optimizer("sgd", self.schedule, momentum=0.9)
        self.step = make_train_step(
            spec,
            tx,
            self.schedule,
            preprocess=preprocess,
            mesh=self.mesh,
            seed=seed,
            ema_decay=ema_decay,
            average_from=average_from,
            **options,
        )
        averages = ema_decay is not None or average_from is not None
        state = create_state(spec, tx, seed=0, with_ema=averages)
        # The fresh head is so small that hardly any gradient passes it.
        params = state.variables["params"]
        params |= {
            name: jax.tree.map(lambda x: x * 20, params[name]) for name in ("head", "logits")
        }
        self.first = jax.tree.map(np.array, state)

    def run(self, batch, steps):
        """Trains from the first state; returns the last state and the metrics of each step."""
        state = jax.device_put(jax.tree.map(np.array, self.first), replicated(self.mesh))
        history = []
        for _ in range(steps):
            state, metrics = self.step(state, put_batch(batch, self.mesh))
            history.append({k: float(v) for k, v in metrics.items()})
        return state, history


@pytest.fixture(scope="module")
def plain(tiny_spec):
    return Trainer(tiny_spec)


@pytest.fixture(scope="module")
def with_dropout(tiny_spec):
    return Trainer(tiny_spec.replace(dropout=0.5), ema_decay=0.9)


def loss_and_stats(spec, variables, batch, compute=Compute(), smoothing=0.0):  # noqa: B008
    variables = jax.tree.map(jnp.asarray, variables)
    logits, stats = functional.apply(
        spec, variables, normalise(batch["image"]), train=True, compute=compute
    )
    labels = jnp.asarray(batch["label"])
    loss = losses.cross_entropy(logits, labels, label_smoothing=smoothing)
    return jnp.mean(loss), (stats, logits)


def loss_and_gradient(spec, variables, batch):
    def loss(params):
        return loss_and_stats(spec, {**variables, "params": params}, batch)

    (value, (stats, logits)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"]
    )
    return value, stats, logits, gradient


def norm(tree):
    return np.sqrt(
        sum(float(np.sum(np.square(x, dtype=np.float64))) for x in jax.tree.leaves(tree))
    )


def assert_close(got, want, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def same_bits(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_update_and_metrics(plain, batch):
    first = plain.first.variables
    loss, stats, logits, gradient = loss_and_gradient(plain.spec, first, batch)
    state, (metrics, second) = plain.run(batch, 2)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["top1"] == np.mean(np.argmax(logits, -1) == batch["label"])
    assert metrics["grad_norm"] == pytest.approx(norm(gradient), rel=1e-4)
    assert metrics["grad_norm"] > 0.1
    # Warm-up: the first update is of learning rate 0, the second of half the base.
    assert metrics["lr"] == 0 and metrics["update_norm"] == 0
    assert metrics["param_norm"] == pytest.approx(norm(first["params"]), rel=1e-5)
    assert second["lr"] == pytest.approx(0.25)
    # SGD with momentum 0.9: the trace is 1.9 times the gradient, which has not changed.
    params = jax.tree.map(lambda w, g: w - 0.25 * 1.9 * g, first["params"], gradient)
    assert_close(state.variables["params"], params, rtol=1e-4, atol=1e-5)
    assert second["update_norm"] == pytest.approx(0.25 * 1.9 * norm(gradient), rel=1e-4)
    assert second["param_norm"] == pytest.approx(norm(params), rel=1e-5)
    assert int(state.step) == 2
    twice = loss_and_stats(plain.spec, {**first, "batch_stats": stats}, batch)[1][0]
    assert_close(state.variables["batch_stats"], twice, rtol=1e-4, atol=1e-5)


def test_learning_rate_is_the_schedule_and_loss_falls(plain, batch):
    _, history = plain.run(batch, 8)
    want = [float(plain.schedule(t)) for t in range(8)]
    np.testing.assert_allclose([m["lr"] for m in history], want, rtol=1e-6)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_the_old_state_is_donated_and_one_compilation_serves_all_steps(plain, batch):
    state = jax.device_put(jax.tree.map(np.array, plain.first), replicated(plain.mesh))
    new, _ = plain.step(state, put_batch(batch, plain.mesh))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    plain.step(new, put_batch(batch, plain.mesh))
    assert plain.step.func._cache_size() == 1


def test_label_smoothing_changes_loss_and_update(plain, batch):
    smoothed = Trainer(plain.spec, loss=losses.make_loss("cross_entropy", label_smoothing=0.1))
    want, _ = loss_and_stats(plain.spec, plain.first.variables, batch, smoothing=0.1)
    _, curve = smoothed.run(batch, 8)
    _, other = plain.run(batch, 8)
    assert curve[0]["loss"] == pytest.approx(float(want), rel=1e-5)
    assert curve[1]["grad_norm"] < 0.99 * other[1]["grad_norm"]
    assert curve[-1]["loss"] > other[-1]["loss"] + 0.02


def test_accumulation_is_a_loop_over_parts(plain, batch):
    trainer = Trainer(plain.spec, accum_steps=2)
    state, (metrics, _) = trainer.run(batch, 2)
    variables, total = plain.first.variables, None
    for _ in range(2):  # two steps; the first one's update is zero
        values, gradients = [], []
        for part in range(2):
            strided = {k: v[part::2] for k, v in batch.items()}
            loss, stats, _, gradient = loss_and_gradient(plain.spec, variables, strided)
            variables = {**variables, "batch_stats": stats}
            values.append(float(loss))
            gradients.append(gradient)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
        total = mean if total is None else jax.tree.map(lambda t, g: 0.9 * t + g, total, mean)
    assert metrics["loss"] == pytest.approx(np.mean(values), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm(mean), rel=1e-4)
    params = jax.tree.map(lambda w, t: w - 0.25 * t, variables["params"], total)
    assert_close(state.variables["params"], params, rtol=1e-4, atol=1e-5)
    assert_close(state.variables["batch_stats"], variables["batch_stats"], rtol=1e-4, atol=1e-5)


def test_the_average_covers_parameters_and_batch_norm_statistics(with_dropout, batch):
    want = with_dropout.first.ema
    for steps in (1, 2):
        state, _ = with_dropout.run(batch, steps)
        decay = min(0.9, steps / (9 + steps))  # (1 + t) / (10 + t) for t = steps - 1
        want = jax.tree.map(lambda e, v, d=decay: d * e + (1 - d) * v, want, state.variables)
        assert_close(state.ema, want)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.ema, with_dropout.first.ema)
    assert all(x > 0 for x in jax.tree.leaves(moved["batch_stats"]))


def test_same_seed_same_bits_and_each_step_its_own_key(with_dropout, batch):
    one, curve = with_dropout.run(batch, 3)
    two, _ = with_dropout.run(batch, 3)
    assert same_bits(one, two)
    # The first update is of learning rate 0: the first two steps differ in their dropout alone.
    assert abs(curve[0]["loss"] - curve[1]["loss"]) > 1e-3
    other = Trainer(with_dropout.spec, ema_decay=0.9, seed=1)
    assert same_bits(other.first, with_dropout.first)
    assert not same_bits(other.run(batch, 3)[0].variables, one.variables)


def test_two_devices_make_the_curve_of_one(plain, batch):
    _, one = plain.run(batch, 4)
    state, two = Trainer(plain.spec, devices=2).run(batch, 4)
    for name in one[0]:
        got, want = ([m[name] for m in curve] for curve in (two, one))
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-6, err_msg=name)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))


def test_per_device_batch_norm_takes_the_statistics_of_each_half(plain, batch):
    state, (metrics, *_) = Trainer(plain.spec, devices=2, compute=Compute(bn_groups=2)).run(
        batch, 1
    )
    halves = [{k: v[i : i + BATCH // 2] for k, v in batch.items()} for i in (0, BATCH // 2)]
    results = [loss_and_stats(plain.spec, plain.first.variables, half) for half in halves]
    assert metrics["loss"] == pytest.approx(np.mean([float(r[0]) for r in results]), rel=1e-5)
    means = jax.tree.map(lambda a, b: (a + b) / 2, *(r[1][0] for r in results))
    assert_close(state.variables["batch_stats"], means, rtol=1e-4, atol=1e-5)
    _, (whole,) = plain.run(batch, 1)
    assert abs(metrics["loss"] - whole["loss"]) > 1e-3


def test_the_average_of_the_last_steps_is_their_mean(tiny_spec, batch):
    trainer = Trainer(tiny_spec, average_from=2)
    states = [trainer.run(batch, steps)[0] for steps in (2, 3, 4, 5)]
    assert_close(states[0].ema, states[0].variables)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(s.variables for s in states[1:]))
    assert_close(states[-1].ema, mean)
    assert states[-1].for_evaluation is states[-1].ema
