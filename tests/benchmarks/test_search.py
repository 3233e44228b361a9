"""The comparison of searches on a table, on a small made-up one."""

import numpy as np
import pytest

from benchmarks import search, search_page
from mbv3_jax.arch import cost
from mbv3_jax.search.network_table import Column, make_network_table
from mbv3_jax.search.presets import preset

TOY = preset("toy")
POINTS = list(TOY.points())
MADDS = np.array([cost.madds(TOY.to_spec(p)) for p in POINTS], float)


@pytest.fixture(scope="module")
def table():
    """Accuracy rises with the cost, and by half a point for every second choice but one."""
    noise = 0.3 * np.random.default_rng(0).normal(size=len(POINTS))
    top1 = (
        noise
        + 50
        + 2 * np.log(MADDS / MADDS.min())
        + np.array(POINTS) @ [0.5, 0.5, 0, 0.5, 0, 0.5, 0.5]
    )
    columns = {
        "top1": Column(kind="accuracy", unit="%", values=tuple((v,) for v in top1)),
        **{
            name: Column(
                kind="cost", unit="ms", values=tuple((v,) for v in 1 + power * MADDS**power / 1e5)
            )
            for name, power in (
                ("a100_throughput", 1.0), ("tpuv3_throughput", 0.9), ("zcu102_latency", 1.1)
            )
        },
    }  # fmt: skip
    return make_network_table(
        name="made up", source="here", license="CC0-1.0", space=TOY, networks=POINTS,
        columns=columns,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows(table):
    """Of two seeds, in two of the settings."""
    costs = search.make_costs(table)
    with pytest.MonkeyPatch.context() as patch:
        some = {name: search.SETTINGS[name] for name in ("no constraint", search.TWO_COSTS)}
        patch.setattr(search, "SETTINGS", some)
        patch.setattr(search, "BUDGETS", dict.fromkeys(some, (8,)))
        patch.setattr(search, "PROPOSALS", {"steps": 2, "batch": 16})
        patch.setattr(search, "LONG", {"steps": 8, "batch": 32})
        worlds = [search.make_world(table, costs, seed) for seed in range(2)]
        yield [row for world in worlds for name in some for row in search.run_setting(world, name)]


def test_every_method_trains_as_much_as_it_may(rows):
    methods = {row["method"] for row in rows}
    assert methods == {*search.ALL, search.AT_COST, search.NEAREST, search.MADDS}
    for row in rows:
        # NSGA-II may not find as many that differ.
        least = row["budget"] - 2 * row["method"].startswith("NSGA-II")
        assert least <= row["trained"] <= row["budget"], row
        assert row["regret"] >= 0


def test_who_judges_has_not_told(table):
    world = search.make_world(table, search.make_costs(table), 0)
    told = search.Trainings(world.seen, 0).evaluate(POINTS)[0]
    quiet, judged = world.seen.expect(POINTS), world.judge.expect(POINTS)
    assert np.std(told - quiet) == pytest.approx(search.NOISE, rel=0.2)
    again = search.Trainings(world.seen, 0).evaluate(POINTS[::-1])[0]
    np.testing.assert_array_equal(told, again[::-1])  # whatever else was trained
    assert not np.allclose(told, search.Trainings(world.seen, 1).evaluate(POINTS)[0])
    assert not np.allclose(quiet, judged)


def test_the_halves_share_no_network(table, monkeypatch):
    rows = []
    original = search.Proxy

    def spy(table, *, rows: np.ndarray, **rest):
        halves.append(set(rows.tolist()))
        return original(table, rows=rows, **rest)

    halves: list[set] = []
    costs = search.make_costs(table)
    monkeypatch.setattr(search, "Proxy", spy)
    search.make_world(table, costs, 3)
    seen, judge = halves
    assert not rows and not seen & judge and seen | judge == set(range(len(POINTS)))


def test_rewards_are_by_the_judge_at_the_cost(rows, table):
    costs = search.make_costs(table)
    world = search.make_world(table, costs, 0)
    for row in rows:
        if row["seed"] == 0:
            point = tuple(row["point"])
            off = abs(row["relative"] - 1) if search.SETTINGS[row["setting"]] else 0
            for key, predictor in (("seeds", world.seen), ("half", world.judge)):
                expected = predictor.expect([point]).item() + search.EXPONENT * off
                assert row[key] == pytest.approx(expected), row


def test_random_networks_at_the_cost_are_at_the_cost(rows, table):
    costs = search.make_costs(table)
    for row in rows:
        if row["method"] == search.AT_COST:
            assert abs(row["relative"] - 1) < search.NEAR
        if row["method"] == search.NEAREST:
            assert abs(row["relative"] - 1) < 0.02
    world = search.make_world(table, costs, 0)
    (point, _, _), trained = search.untrained(world, "no constraint", search.MADDS)
    assert trained == 0 and point == max(POINTS, key=lambda p: cost.madds(TOY.to_spec(p)))


def test_the_page_has_every_method_and_pairs_seeds(rows, tmp_path, monkeypatch):
    some = {r["setting"]: search.SETTINGS[r["setting"]] for r in rows}
    monkeypatch.setattr(search, "SETTINGS", some)
    monkeypatch.setattr(search, "BUDGETS", dict.fromkeys(some, (8,)))
    text = search_page.document(rows)
    for name in search.ALL:
        assert text.count(f"| {name} |") >= 4
    assert "2 seeds, each with" in text and "{" not in text
    results = search_page.Results(rows)
    gain = results.against(search.TWO_COSTS, "evolution", 8, "random", "half")
    by_hand = [
        100 * (r["half"] - o["half"])
        for r in rows
        for o in rows
        if (r["seed"], r["setting"], r["budget"]) == (o["seed"], search.TWO_COSTS, 8)
        and (o["setting"], o["budget"]) == (search.TWO_COSTS, 8)
        and (r["method"], o["method"]) == ("evolution", "random")
    ]
    np.testing.assert_allclose(gain, by_hand)
    search_page.draw(rows, tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"search_regret.png", "search_fronts.png"}


def test_interval_is_students():
    assert search_page.interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48"
