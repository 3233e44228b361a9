import contextlib

import jax
import numpy as np
import optax
import pytest
from ml_collections.config_dict import placeholder
from rich.console import Console
from supernet_parts import extract

from mbv3_jax.core.errors import UsageError
from mbv3_jax.nn import functional
from mbv3_jax.run.checkpoint import Checkpoints
from mbv3_jax.search.objective import COUNTS, Costs, Problem, Reward
from mbv3_jax.search.space import Space, Stage
from mbv3_jax.search.supernet import network, run
from mbv3_jax.search.supernet.training import Controllers, Programs, SharedWeights
from mbv3_jax.train import sharding
from mbv3_jax.train.state import create_state

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def space(tiny_spec):
    stage = Stage(out=(8, 16), stride=2, kernel=(3, 5), expansion=(2, 4), se=(False, True))
    return Space(name="eight", base=tiny_spec.replace(bn_decay=0.9), stages=(stage,))


@pytest.fixture(scope="module")
def rewards(space):
    costs = Costs(space, COUNTS)
    madds = costs(list(space.points()))["madds"]
    ends = {"cheap": madds.min(), "dear": madds.max()}
    return costs, {n: Reward(targets={"madds": m}, exponent=-5.0) for n, m in ends.items()}


@pytest.fixture(scope="module")
def config(tiny_config):
    config = tiny_config("--config.total_steps=12", "--config.checkpoint_every_steps=5")
    with config.unlocked():  # as configs/found.py does
        del config.net.name
        config.net.name = placeholder(str)
    return config.lock()


def _train(config, space, rewards, folder):
    costs, by_name = rewards
    problem = Problem(space=space, costs=costs, cost_name="madds", rewards=by_name)
    return run.train_supernet(config, problem, folder, QUIET, seed=3)


@pytest.mark.slow
def test_cut_off_it_ends_with_the_same_bits(config, space, rewards, tmp_path, monkeypatch):
    whole, evaluator = _train(config, space, rewards, tmp_path / "whole")
    assert len(whole.trace["cheap"]) == 9  # the first quarter is quiet
    with monkeypatch.context() as patch:
        step, done = Programs.step, []

        def stop(self, *arguments):
            done.append(1)
            if len(done) == 8:
                raise KeyboardInterrupt
            return step(self, *arguments)

        patch.setattr(Programs, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            _train(config, space, rewards, tmp_path / "cut")
    with contextlib.closing(Checkpoints(tmp_path / "cut", read_only=True)) as checkpoints:
        assert checkpoints.steps() == [5]
    again, other = _train(config, space, rewards, tmp_path / "cut")
    assert again.state() == whole.state()
    for a, b in zip(jax.tree.leaves(evaluator.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)
    points = list(space.points())
    accuracy, error = evaluator.evaluate(points)
    assert accuracy.shape == error.shape == (len(points),)
    assert np.all((accuracy >= 0) & (accuracy <= 1))
    ended, _ = _train(config, space, rewards, tmp_path / "whole")  # nothing is left to do
    assert ended.state() == whole.state()


@pytest.mark.slow
def test_one_and_two_devices_give_the_same_numbers(space):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "label": rng.integers(0, 10, 8).astype(np.int32),
    }
    point = tuple(len(d.choices) - 1 for d in space.decisions)
    found = []
    for count in (1, 2):
        tx = optax.sgd(0.1)
        programs = Programs(
            space,
            tx,
            preprocess=(lambda b, _: (b["image"] / 127.5 - 1, b["label"]), lambda x: x / 127.5 - 1),
            mesh=sharding.make_mesh(jax.devices()[:count]),
        )
        spec = network.largest(space)
        weights = create_state(spec, tx, seed=0, with_ema=False)
        weights = jax.device_put(weights, sharding.replicated(programs.mesh))
        for _ in range(2):
            weights, (loss, _) = programs.step(weights, batch, point, 0)
        right = programs.correct(weights.variables["params"], batch, [point, (0,) * len(point)])
        params = weights.variables["params"]
        found.append((loss, right, params))
        own = extract(space, params, point)
        logits, _ = functional.apply(
            space.to_spec(point), own, batch["image"] / 127.5 - 1, train=True, key=jax.random.key(0)
        )
        assert right[0] == np.sum(np.argmax(logits, -1) == batch["label"])
    (loss, right, params), (loss2, right2, params2) = found
    np.testing.assert_allclose(loss, loss2, rtol=1e-5)
    np.testing.assert_array_equal(right, right2)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(params2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_controllers_go_where_the_rewards_are(space, rewards):
    costs, by_name = rewards
    controllers = Controllers(space, costs, by_name, total_steps=400, seed=0, points=4)
    for step in range(400):
        controllers.learn(step, lambda points: np.full(len(points), 0.5))
    madds = {name: costs([p])["madds"].item() for name, p in controllers.modes().items()}
    # Squeeze-and-excite costs next to nothing, and is left to chance.
    for name, reward in by_name.items():
        assert madds[name] == pytest.approx(reward.targets["madds"], rel=0.01)


def test_warm_up_draws_the_largest_at_first_and_less_later(space, rewards):
    costs, by_name = rewards
    controllers = Controllers(space, costs, by_name, total_steps=4000, seed=0)
    largest = tuple(len(d.choices) - 1 for d in space.decisions)
    early = [controllers.draw(step) for step in range(100)]
    late = [controllers.draw(step) for step in range(2000, 2100)]
    assert np.mean([p == largest for p in early]) > 0.8
    assert np.mean([p == largest for p in late]) < 0.3


def test_wrong_classes_and_no_batches_are_refused(config, space, rewards, tmp_path):
    with pytest.raises(UsageError, match=r"space\.num_classes: got 7, but the data 'synthetic'"):
        _train(config, space.replace(num_classes=7), rewards, tmp_path)
    with pytest.raises(ValueError, match="no held-out batches"):
        SharedWeights(None, None, [])
