import contextlib
import dataclasses

import jax
import numpy as np
import optax
import pytest
from ml_collections.config_dict import placeholder
from rich.console import Console
from supernet_parts import extract
from tiny_config import SPEC

from mbv3_jax.arch import spec_to_json
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.data.sources.synthetic import Synthetic
from mbv3_jax.nn import functional
from mbv3_jax.run.checkpoint import Checkpoints
from mbv3_jax.search.objective import COUNTS, Costs, Problem, Reward
from mbv3_jax.search.space import Space, Stage
from mbv3_jax.search.supernet import network, run
from mbv3_jax.search.supernet.training import Controllers, Programs, SharedWeights
from mbv3_jax.train import losses, sharding
from mbv3_jax.train.experiment import make_experiment
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


def test_without_points_networks_are_drawn_evenly_to_the_end(space, rewards):
    costs, by_name = rewards
    controllers = Controllers(space, costs, by_name, total_steps=400, seed=0, points=0)
    for step in range(400):
        controllers.learn(step, lambda _: 1 / 0)  # never asked
    late = [controllers.draw(step) for step in range(100, 400)]
    points = list(space.points())
    assert min(late.count(p) for p in points) > len(late) / len(points) / 3
    assert controllers.trace == {"cheap": [], "dear": []}


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


def test_controllers_go_where_the_accuracy_is(space, rewards):
    costs, by_name = rewards
    # Costs hardly count, so that both controllers must find the most accurate network.
    by_name = {n: Reward(targets=r.targets, exponent=-1e-3) for n, r in by_name.items()}
    best = (1, 0, 1, 0)
    assert space.canonical(best) == best and len(best) == len(space.decisions)

    def accuracy_of(points):
        return np.array([np.mean(np.equal(point, best)) for point in points])

    controllers = Controllers(space, costs, by_name, total_steps=400, seed=0, points=4)
    for step in range(400):
        controllers.learn(step, accuracy_of)
    assert controllers.modes() == {"cheap": best, "dear": best}
    assert all(np.mean(t[-20:]) > np.mean(t[:20]) for t in controllers.trace.values())


# What of the configuration reaches the weights.


class Stop(Exception):
    """Ends a training before its first step."""


def test_an_image_that_cannot_be_read_is_one_line(config, space, rewards, tmp_path, monkeypatch):
    def load(self, indices, views=None):
        return self.batch(indices), {0: "3.png: No such file or directory"}

    monkeypatch.setattr(Synthetic, "load", load)
    with pytest.raises(RunError, match=r"^3\.png: No such file or directory\. Once that is "):
        _train(config, space, rewards, tmp_path)


def test_other_data_are_refused(config, space, rewards, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(self, *arguments):
        save(self, *arguments)
        raise Stopped

    save = run._Session._save
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run._Session, "_save", stop)
        _train(config, space, rewards, tmp_path)
    other = config.copy_and_resolve_references()
    other.data.num_examples = 60
    with pytest.raises(RunError) as caught:
        _train(other.lock(), space, rewards, tmp_path)
    assert str(caught.value).startswith(
        f"the data is not what step 5 of {tmp_path / 'checkpoints'} was trained on: fingerprint "
        "'synthetic/train/32/10/50', now 'synthetic/train/32/10/60'. Restore"
    )


@pytest.fixture
def programs_of(space, rewards, tmp_path, monkeypatch):
    """programs_of(config) -> the space and the options that its `Programs` get."""

    def programs_of(config):
        def stop(space, tx, **options):
            raise Stop(space, options)

        monkeypatch.setattr(run, "Programs", stop)
        with pytest.raises(Stop) as stopped:
            _train(config, space, rewards, tmp_path / "weights")
        return stopped.value.args

    return programs_of


def _with(config, **fields):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update(fields)
    return config.lock()


def test_the_dropout_and_the_label_smoothing_of_the_configuration_are_used(config, programs_of):
    used, options = programs_of(_with(config, net={"dropout": 0.3}, label_smoothing=0.2))
    assert used.base.dropout == 0.3
    logits, labels = np.eye(2, 10, dtype=np.float32), np.array([0, 5])
    expected = losses.cross_entropy(logits, labels, label_smoothing=0.2)
    np.testing.assert_array_equal(options["loss"](logits, labels), expected)
    assert not np.array_equal(expected, losses.cross_entropy(logits, labels))
    used, _ = programs_of(_with(config, net={"dropout": 0.0}))
    assert used.base.dropout == 0.0


def test_drop_path_is_refused_rather_than_ignored(config, space, rewards, tmp_path):
    with pytest.raises(UsageError, match=r"drop_path: got 0\.1, expected 0"):
        _train(_with(config, net={"drop_path": 0.1}), space, rewards, tmp_path)


def test_the_loss_is_smoothed(space):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "label": rng.integers(0, 10, 8).astype(np.int32),
    }
    point, spec = (1,) * len(space.decisions), network.largest(space)
    tx, found = optax.sgd(0.1), []
    for smoothing in (0.0, 0.3):
        programs = Programs(
            space,
            tx,
            preprocess=(lambda b, _: (b["image"] / 127.5 - 1, b["label"]), lambda x: x / 127.5 - 1),
            mesh=sharding.make_mesh(jax.devices()[:1]),
            loss=losses.make_loss("cross_entropy", label_smoothing=smoothing),
        )
        state = create_state(spec, tx, seed=0, with_ema=False)
        params = state.variables["params"]
        bias = np.arange(10, dtype=np.float32) / 3  # far from even probabilities
        params = params | {"logits": params["logits"] | {"bias": bias}}
        variables = state.variables | {"params": params}
        switches = jax.tree.map(lambda x: x[0], network.switches(space, [point]))
        logits = network.apply(space, params, batch["image"] / 127.5 - 1, switches)
        expected = losses.cross_entropy(logits, batch["label"], label_smoothing=smoothing).mean()
        state = dataclasses.replace(state, variables=variables)
        _, (loss, _) = programs.step(state, batch, point, 0)
        assert loss == pytest.approx(float(expected), rel=1e-4)
        found.append(float(loss))
    assert abs(found[0] - found[1]) > 1e-3


def test_held_out_batches_are_evaluation_views_of_the_held_out_images(config, tmp_path):
    class Views(Synthetic):
        """Encoded images would come in a random crop where a generator is given for each."""

        def batch(self, indices, views=None):
            batch = super().batch(indices)
            return batch if views is None else batch | {"image": 0 * batch["image"]}

    spec_file = tmp_path / "spec.json"
    spec_file.write_text(spec_to_json(SPEC))
    experiment = make_experiment(_with(config, spec=str(spec_file)))
    source = Views("test", 32, num_classes=10, num_examples=50)
    data = dataclasses.replace(experiment.data, held_out=source)
    experiment = dataclasses.replace(experiment, data=data)
    whole = source.batch(range(50))
    known = {image.tobytes(): label for image, label in zip(*whole.values(), strict=True)}
    with contextlib.closing(run.held_out_batches(experiment, 0, 3)) as batches:
        found = [dict(batch) for batch in batches]
    assert [len(batch["label"]) for batch in found] == [config.batch_size] * 3
    for batch in found:
        for image, label in zip(batch["image"], batch["label"], strict=True):
            assert known[image.tobytes()] == label
    # Shuffled, as for training.
    assert found[0]["label"].tolist() != whole["label"][: config.batch_size].tolist()


def test_a_teacher_is_refused_rather_than_ignored(config, space, rewards, tmp_path):
    with pytest.raises(UsageError, match=r"shared\.teacher: got 'runs/large', but shared weights"):
        _train(_with(config, teacher="runs/large"), space, rewards, tmp_path)


def test_a_held_out_split_smaller_than_a_batch_is_refused_at_once(
    config, space, rewards, tmp_path, monkeypatch
):
    monkeypatch.setattr(Programs, "step", None)
    small = _with(config, data={"num_examples": 6})
    with pytest.raises(UsageError, match=r"shared\.batch_size: got 8, but .* has only 6 images"):
        _train(small, space, rewards, tmp_path)


def test_every_point_is_evaluated_once():
    class Counting:
        def __init__(self):
            self.points = []

        def correct(self, params, batch, points):
            assert len(points) == 8
            self.points += dict.fromkeys(points)
            return np.array([p[0] for p in points], np.float32)

    programs = Counting()
    weights = SharedWeights(programs, None, [{"label": np.zeros(4)}])
    points = [(i % 3,) for i in range(20)]
    np.testing.assert_array_equal(weights.evaluate(points)[0], [i % 3 / 4 for i in range(20)])
    weights.evaluate(points)
    assert programs.points == [(0,), (1,), (2,)]
