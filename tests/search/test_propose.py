import json

import numpy as np
import pytest
from ml_collections.config_dict import placeholder
from rich.console import Console

from mbv3_jax.arch import cost, spec_from_json
from mbv3_jax.run.folder import lock_folder
from mbv3_jax.search import candidates
from mbv3_jax.search.candidates import Trainings, work
from mbv3_jax.search.evaluators import Table
from mbv3_jax.search.objective import COUNTS, Costs, Reward
from mbv3_jax.search.presets import preset
from mbv3_jax.search.space import Space, Stage
from mbv3_jax.search.strategies import propose

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
    space = trainings.space
    first = trainings([(1,)], 3)
    assert first.shape == (1,) and np.all((first >= 0) & (first <= 1))
    run = trainings.run_folder((1,), 3)
    assert spec_from_json((run / "spec.json").read_text()).blocks == space.to_spec((1,)).blocks
    before = (run / "summary.json").stat().st_mtime_ns
    np.testing.assert_array_equal(trainings([(1,)], 3), first)
    assert (run / "summary.json").stat().st_mtime_ns == before


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

    monkeypatch.setattr(candidates.time, "sleep", nap)
    assert trainings([(0,), (1,)], 3).shape == (2,)
    assert naps == [True]  # the other was trained meanwhile


def _made(folder):
    folder.mkdir()
    return folder
