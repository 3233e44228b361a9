import sys

import numpy as np
import pytest

from benchmarks import toy_search, toy_supernet
from benchmarks.toy_table import ToyTable
from mbv3_jax.search.presets import preset


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A table in which accuracy rises with every choice, a little more for each later one."""
    rng, rows = np.random.default_rng(0), []
    for point in preset("toy").points():
        value = 0.2 + 0.01 * np.dot(point, range(1, len(point) + 1))
        for seed in range(3):
            for steps in (150, 300):
                noisy = value + 0.005 * rng.standard_normal(2)
                name = "-".join(map(str, point))
                rows.append(f"{name},{seed},{steps},{noisy[0]:.4f},{noisy[1]:.4f}")
    path = tmp_path_factory.mktemp("truth") / "truth.csv"
    path.write_text("\n".join(["point,seed,steps,validation,test", *rows]))
    return toy_search.Task(ToyTable(path))


def test_the_best_has_no_regret_and_all_have_the_whole_area(task):
    regrets = [task.regret(p, 1) for p in task.table.points]
    assert min(regrets) == 0 < max(regrets)
    test = task.accuracy(1)
    np.testing.assert_array_equal(test, task.table.test[:, [0, 2]].mean(1))
    assert task.hypervolume(task.table.points, test, 1) == 1
    assert 0 <= task.hypervolume(task.table.points[:9], test[:9], 1) < 1


@pytest.mark.parametrize("name", [n for n in toy_search.METHODS if not n.startswith("supernet")])
def test_methods_train_as_many_networks_as_they_may(task, name, monkeypatch):
    asked, train = [], task.train
    monkeypatch.setattr(task, "train", lambda p, seed: asked.extend(p) or train(p, seed))
    found = toy_search.METHODS[name](task, 32, 0)
    assert len(asked) == 32
    assert task.regret(found["point"], 0) < np.median(
        [task.regret(p, 0) for p in task.table.points]
    )


def test_the_noted_supernets_are_whole():
    noted = toy_supernet.read(toy_supernet.RUNS)
    assert set(noted) == {(b, s) for b in toy_search.BUDGETS for s in range(20)}
    for line in noted.values():
        preset("toy").check(line["point"])
        assert len(line["believed"]) == 128


def test_the_mean_gradient_is_the_enumerated_one(task):
    cosine, length = toy_search.gradients(task, batches=200)
    assert cosine > 0.98
    assert length == pytest.approx(1, abs=0.1)


def test_interval_is_students(task):
    assert toy_search.interval([1.0, 2.0, 3.0]) == "2.00 +- 2.48"


def test_noted_searches_survive_a_kill_in_the_middle_of_a_line(tmp_path, monkeypatch, capsys):
    class Searches:
        def run(self, budget, seed):
            return {"budget": budget, "seed": seed, "point": [0]}

    out = tmp_path / "runs.jsonl"
    out.write_text('{"budget": 8, "seed": 0, "point": [1]}\n{"budget": 8, "se')
    monkeypatch.setattr(toy_supernet, "Searches", Searches)
    monkeypatch.setattr(sys, "argv", ["toy_supernet", "--seeds=2", f"--out={out}"])
    toy_supernet.main()
    noted = [(r["budget"], r["seed"], r["point"]) for r in toy_supernet.read(out).values()]
    assert noted == [(8, 0, [1]), (8, 1, [0]), *((b, s, [0]) for b in (16, 32) for s in (0, 1))]
    assert capsys.readouterr().err == ""
