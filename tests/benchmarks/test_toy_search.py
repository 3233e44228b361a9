import sys

import numpy as np
import pytest

from benchmarks import search_page, toy_search, toy_supernet, toy_truth
from benchmarks.toy_table import ToyTable

SEEDS = 3


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A table in which accuracy rises with every choice, a little more for each later one."""
    rng, rows = np.random.default_rng(0), []
    for point in toy_truth.SPACE.points():
        value = 0.2 + 0.01 * np.dot(point, range(1, len(point) + 1))
        for seed in range(SEEDS):
            for steps in (300, 2400):
                noisy = value + 0.005 * rng.standard_normal(2)
                name = "-".join(map(str, point))
                rows.append(f"{name},{seed},{steps},{noisy[0]:.4f},{noisy[1]:.4f}")
    path = tmp_path_factory.mktemp("truth") / "truth.csv"
    path.write_text("\n".join(["point,seed,steps,validation,test", *rows]))
    return path


@pytest.fixture(scope="module")
def tasks(truth):
    table, problem = ToyTable(truth), toy_search.make_problem()
    return [toy_search.Task(table, problem, seed) for seed in range(2)]


@pytest.fixture
def supernets(tasks, tmp_path, monkeypatch):
    """Two seeds of supernets of both ways that believe half of the test accuracies."""
    table, file = tasks[0].table, tmp_path / "supernets.jsonl"
    for way in toy_supernet.WAYS:
        for seed in range(2):
            toy_supernet.append_line(
                file,
                {
                    "way": way,
                    "seed": seed,
                    "points": {name: list(table.points[0]) for name in toy_truth.TARGETS},
                    "believed": (0.5 * table.test[:, 0]).tolist(),
                },
            )
    noted = toy_supernet.read(file)
    monkeypatch.setattr(toy_supernet, "read", lambda *_: noted)


def test_what_a_search_is_told_does_not_judge_it(tasks):
    task = tasks[0]
    table, told = task.table, task.train(task.table.points)
    assert set(task.seeds) == set(range(SEEDS))
    for i, seed in enumerate(task.seeds):
        assert told[i] == table.validation[i, seed]
        np.testing.assert_allclose(task.truth[i], np.delete(table.test[i], seed).mean())
    assert (task.seeds != tasks[1].seeds).mean() > 0.3


@pytest.mark.parametrize("target", toy_truth.TARGETS)
def test_many_networks_cost_about_as_much_as_each_target(tasks, target):
    task = tasks[0]
    assert len(task.near(target)) >= 24
    paid = task.costs["madds"][task.near(target)] / toy_truth.TARGETS[target]
    assert 0.9 < paid.min() < 1 < paid.max() < 1.1
    regrets = [task.regret(target, p) for p in task.table.points]
    assert min(regrets) == 0 < max(regrets)


@pytest.mark.parametrize("name", toy_search.METHODS)
def test_methods_train_as_many_networks_as_they_may(tasks, name, monkeypatch):
    task, asked, train = tasks[0], [], tasks[0].train
    monkeypatch.setattr(task, "train", lambda p: asked.extend(p) or train(p))
    found = toy_search.METHODS[name](task, "medium", 16)
    assert len(asked) == 16
    assert found in asked
    assert task.regret("medium", found) < np.median(
        [task.regret("medium", p) for p in task.table.points]
    )


def test_choices_without_training_are_by_cost(tasks):
    task, target = tasks[0], toy_truth.TARGETS["large"]
    madds = dict(zip(task.table.points, task.costs["madds"], strict=True))
    nearest = toy_search.untrained(toy_search.NEAREST, task, "large")
    most = toy_search.untrained(toy_search.MADDS, task, "large")
    assert abs(madds[nearest] - target) == min(abs(m - target) for m in madds.values())
    assert madds[most] == max(m for m in madds.values() if m < 1.1 * target)


def test_supernets_choose_by_what_they_believe(tasks, supernets, monkeypatch):
    task, asked, train = tasks[0], [], tasks[0].train
    believed = task.believed("small", 0.5 * task.table.test[:, 0])
    assert toy_search.by_weights("even", task, "small") == task.table.points[np.argmax(believed)]
    assert toy_search.by_controller(task, "small") == task.table.points[0]
    monkeypatch.setattr(task, "train", lambda p: asked.extend(p) or train(p))
    found = toy_search.corrected(task, "small")
    assert len(asked) == toy_search.CHECKS + toy_search.FINALISTS
    assert found in asked[toy_search.CHECKS :]
    # The correction makes good that the weights believe half of the accuracy.
    assert task.regret("small", found) < 0.02
    assert toy_search.correlations([task])["supernet, even"][0] > 0.98


def test_a_search_of_all_methods_goes_on_and_becomes_a_page(
    truth, supernets, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(toy_search, "BUDGETS", (16,))
    monkeypatch.setattr(toy_search, "PROPOSALS", {"steps": 2, "batch": 8})
    out = tmp_path / "rows.jsonl"
    arguments = [f"--truth={truth}", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["toy_search", "--seeds=2", *arguments])
    toy_search.main()
    with out.open("a") as file:
        file.write('{"seed": 2, "rows": [{"seed"')  # a kill in the middle of a line
    monkeypatch.setattr(sys, "argv", ["toy_search", "--seeds=3", *arguments])
    toy_search.main()
    assert capsys.readouterr().out.split() == ["0", "1", "2"]
    rows = toy_search.read(out)
    methods = {r["method"] for r in rows if r["seed"] == 0}
    assert methods == {*toy_search.METHODS, *toy_search.UNTRAINED, *toy_search.SUPERNETS}
    assert methods - {r["method"] for r in rows if r["seed"] == 2} == set(toy_search.SUPERNETS)
    page = search_page.toy_part(rows, ToyTable(truth))
    for name in methods:
        assert f"| {name}" in page


def test_the_noted_runs_are_whole():
    noted, rows = toy_supernet.read(), toy_search.read()
    assert set(noted) == {(way, s) for way in toy_supernet.WAYS for s in range(5)}
    for line in noted.values():
        assert len(line["believed"]) == 128
        for point in line["points"].values():
            toy_truth.SPACE.check(point)
    assert {r["seed"] for r in rows} == set(range(20))
    table = ToyTable()
    assert table.test.shape == table.brief.shape == (128, 3)
    # The rows are of the table that stands beside them.
    task = toy_search.Task(table, toy_search.make_problem(), 7)
    for row in (r for r in rows if r["seed"] == 7):
        assert row["regret"] == task.regret(row["target"], tuple(row["point"]))


def test_noted_supernets_survive_a_kill_in_the_middle_of_a_line(tmp_path, monkeypatch, capsys):
    class Supernets:
        def run(self, way, seed):
            return {"way": way, "seed": seed, "points": {}}

    out = tmp_path / "runs.jsonl"
    out.write_text('{"way": "even", "seed": 0, "points": {"old": [1]}}\n{"way": "controllers", "se')
    monkeypatch.setattr(toy_supernet, "Supernets", Supernets)
    monkeypatch.setattr(sys, "argv", ["toy_supernet", "--seeds=2", f"--out={out}"])
    toy_supernet.main()
    noted = {key: line["points"] for key, line in toy_supernet.read(out).items()}
    assert noted == {
        ("even", 0): {"old": [1]},
        ("controllers", 0): {},
        ("even", 1): {},
        ("controllers", 1): {},
    }
    assert capsys.readouterr().err == ""
