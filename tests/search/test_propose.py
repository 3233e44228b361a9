import dataclasses
import io
import json
import types

import numpy as np
import pytest
from ml_collections.config_dict import placeholder
from rich.console import Console

from mbv3_jax.arch import cost, spec_from_json
from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.folder import lock_folder
from mbv3_jax.search import candidates
from mbv3_jax.search.candidates import Trainings, work
from mbv3_jax.search.evaluators import Table
from mbv3_jax.search.objective import COUNTS, Costs, Reward
from mbv3_jax.search.predictor import Predictor
from mbv3_jax.search.presets import preset
from mbv3_jax.search.space import Space, Stage
from mbv3_jax.search.strategies import SEARCHERS, Goal, propose, propose_trainings, refine

QUIET = Console(quiet=True)
TOY = preset("toy")
POINTS = list(TOY.points())


@pytest.mark.parametrize("seed", range(3))
def test_the_proposed_network_is_nearly_the_best_there_is(seed):
    values = 0.3 + 0.2 * np.random.default_rng(seed).random(len(POINTS))
    table = Table({p: [v] for p, v in zip(POINTS, values, strict=True)})
    costs = Costs(TOY, COUNTS)
    target = float(np.median(costs(POINTS)["madds"]))
    reward = Reward(targets={"madds": target}, exponent=-0.3)
    rewards = dict(zip(POINTS, reward(values, costs(POINTS)), strict=True))
    found = propose(TOY, table, costs, reward, seed=seed, count=5)
    assert len(set(found)) == 5
    assert rewards[found[0]] >= 0.99 * max(rewards.values())
    assert [rewards[p] for p in found] == sorted((rewards[p] for p in found), reverse=True)


def test_costs_are_those_of_the_networks_and_counted_once():
    asked = []

    def counted(spec):
        asked.append(spec)
        return cost.madds(spec)

    costs = Costs(TOY, {"madds": counted, "params": cost.params})
    got = costs([POINTS[3], POINTS[5], POINTS[3]])
    specs = [TOY.to_spec(POINTS[i]) for i in (3, 5, 3)]
    assert got["madds"].tolist() == [cost.madds(s) for s in specs]
    assert got["params"].tolist() == [cost.params(s) for s in specs]
    assert len(asked) == 2
    assert costs([])["madds"].shape == (0,)


@pytest.fixture
def trainings(tmp_path, tiny_config, tiny_spec):
    space = Space(name="two", base=tiny_spec, stages=(Stage(out=(8,), stride=2, kernel=(3, 5)),))
    config = tiny_config("--config.total_steps=2", "--config.schedule.warmup_steps=0")
    with config.unlocked():  # as configs/found.py does
        del config.net.name
        config.net.name = placeholder(str)
    return Trainings(space, config, tmp_path)


def test_trainings_are_runs_that_are_found_again(trainings):
    space, said = trainings.space, io.StringIO()
    trainings.console = Console(file=said)
    trainings([(0,)], 3)
    first = trainings([(1,)], 3)
    assert said.getvalue().count("data: synthetic, ") == 1
    assert first.shape == (1,) and np.all((first >= 0) & (first <= 1))
    run = trainings.run_folder((1,), 3)
    assert spec_from_json((run / "spec.json").read_text()).blocks == space.to_spec((1,)).blocks
    before = (run / "summary.json").stat().st_mtime_ns
    np.testing.assert_array_equal(trainings([(1,)], 3), first)
    assert (run / "summary.json").stat().st_mtime_ns == before


def test_all_trainings_learn_from_the_same_teacher(trainings, monkeypatch):
    teacher = {"path": "/large", "network": "tiny", "digest": "a" * 64}
    trained = []
    monkeypatch.setattr(
        candidates, "read_teacher", lambda path: types.SimpleNamespace(record=lambda: teacher)
    )
    monkeypatch.setattr(candidates, "train", lambda config, run, *_, **__: trained.append(run))
    config = trainings.config.copy_and_resolve_references()
    with config.unlocked():
        config.teacher = "/large"
    taught = dataclasses.replace(trainings, config=config.lock())
    assert taught._train(taught._entry((0,), 3))
    teacher["digest"] = "b" * 64
    with pytest.raises(UsageError, match=r"/large is another teacher than when .* started"):
        taught._train(taught._entry((1,), 3))
    assert trained == [taught.run_folder((0,), 3)]


def test_all_trainings_learn_by_the_same_hierarchy(trainings, monkeypatch, tmp_path):
    monkeypatch.setattr(candidates, "train", lambda *_, **__: None)
    file = tmp_path / "tree.csv"
    config = trainings.config.copy_and_resolve_references()
    with config.unlocked():
        config.loss = {"name": "semantic_softmax", "hierarchy": str(file)}
    learning = dataclasses.replace(trainings, config=config.lock())
    with pytest.raises(UsageError, match=r"^config: loss\.hierarchy: \S+tree\.csv: No such file"):
        learning._train(learning._entry((0,), 3))
    file.write_text("child,parent\na,b\n")
    assert learning._train(learning._entry((0,), 3))
    file.write_text("child,parent\nb,a\n")
    with pytest.raises(UsageError, match=r"the file has changed since .* search in another folder"):
        learning._train(learning._entry((1,), 3))


def test_a_worker_trains_what_another_process_wants(trainings):
    wants = trainings.folder / "wanted.json"
    wants.write_text(json.dumps([trainings._entry(p, 3) for p in ((0,), (1,))]))
    runs = [trainings.run_folder(p, 3) for p in ((0,), (1,))]

    def ended():
        return all((run / "summary.json").exists() for run in runs)

    assert work(trainings.config, trainings.folder, ended, QUIET) == 2
    before = [(run / "summary.json").stat().st_mtime_ns for run in runs]
    assert trainings([(0,), (1,)], 3).shape == (2,)
    assert before == [(run / "summary.json").stat().st_mtime_ns for run in runs]


def test_what_another_process_is_at_is_waited_for(trainings, monkeypatch):
    taken, naps = lock_folder(_made(trainings.run_folder((0,), 3))), []

    def nap(seconds):
        naps.append((trainings.run_folder((1,), 3) / "summary.json").exists())
        taken.close()  # killed

    # Not time.sleep itself: other threads of this process sleep, too.
    monkeypatch.setattr(candidates, "time", types.SimpleNamespace(sleep=nap))
    assert trainings([(0,), (1,)], 3).shape == (2,)
    assert naps == [True]  # the other was trained meanwhile


def _made(folder):
    folder.mkdir()
    return folder


class _Budget:
    """Accuracy rises with every index, and the reward falls steeply away from a sum of 3."""

    def evaluate(self, points):
        accuracies = np.array([np.dot(p, range(1, len(p) + 1)) for p in points], float) / 100
        return accuracies, np.zeros(len(points))


def _far_from_three(spec):
    return 1.0 + abs(sum(_POINT_OF[spec.blocks]) - 3)


_POINT_OF = {TOY.to_spec(p).blocks: p for p in TOY.points()}


@pytest.mark.parametrize("seed", range(3))
def test_refining_pays_one_decision_by_another(seed):
    """From a point at the target, every single change costs more than it gains."""
    costs = Costs(TOY, {"far": _far_from_three})
    reward = Reward(targets={"far": 1.0}, form="absolute", exponent=-10.0)
    goal = Goal(_Budget(), costs, reward)
    start = TOY.canonical((1, 1, 1, 0, 0, 0, 0))
    rewards = {p: goal([p]).item() for p in _POINT_OF.values()}
    assert rewards[start] < max(rewards.values())

    def refined(**options):
        return refine(TOY, goal, start, batch=16, seed=seed, **options)

    assert refined(rounds=0) == start
    assert rewards[refined(rounds=20)] == max(rewards.values())
    assert refined(rounds=20, changes=1) == start


def test_trainings_are_proposed_where_something_is_to_be_hoped():
    """None that is known, mostly good ones, and not only those that are expected to be the best."""
    rng = np.random.default_rng(0)
    points = list(TOY.points())
    # Not quite a sum over decisions, so that something is left to be found out.
    values = {p: 0.5 + 0.05 * np.dot(p, range(1, len(p) + 1)) + 0.2 * rng.normal() for p in points}
    known = [points[i] for i in rng.permutation(len(points))[:12]]
    predictor = Predictor(TOY).fit(known, [values[p] for p in known])
    costs, reward = Costs(TOY, COUNTS), Reward(targets={"madds": 5e5}, exponent=-0.001)
    strategy = SEARCHERS["random"](TOY, steps=4, batch=8)

    def proposed(seed, count=8):
        return propose_trainings(
            strategy, TOY, predictor, costs, reward, seed=seed, count=count, known=set(known)
        )

    first = proposed(0)
    assert len(set(first)) == 8 and not set(first) & set(known)
    assert first == proposed(0) != proposed(1)
    hoped = np.mean([values[p] for p in first])
    assert hoped > np.mean(list(values.values())) + 0.1
    rest = [p for p in points if p not in known]
    greedy = [rest[i] for i in np.argsort(-predictor.expect(rest))[:8]]
    assert set(first) != set(greedy)
    assert len(proposed(0, count=500)) <= len(rest)
    # What a searcher has found is changed a little, so that even two points lead on.
    few = SEARCHERS["random"](TOY, steps=1, batch=2)
    led_on = propose_trainings(few, TOY, predictor, costs, reward, seed=0, count=20)
    assert len(led_on) == 20
    every = Predictor(TOY).fit(points, [values[p] for p in points])
    nothing = propose_trainings(
        strategy, TOY, every, costs, reward, seed=0, count=3, known=set(points)
    )
    assert nothing == []
