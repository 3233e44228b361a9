"""Predictions of networks from others: what is learned, how sure it is, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import spec_to_json
from mbv3_jax.cli.main import main
from mbv3_jax.search.network_table import Column, make_network_table, write_network_table
from mbv3_jax.search.predictor import Encoder, Predictor, describe
from mbv3_jax.search.presets import preset
from mbv3_jax.search.proxy import Proxy, judge
from mbv3_jax.search.space import Space, Stage

TOY = preset("toy")
SPACE = preset("accel_nasbench")
POINTS = SPACE.sample(np.random.default_rng(0), 260)
# What each choice adds to the time of a network: stages add up, choices within a stage multiply.
_RNG = np.random.default_rng(1)
_FACTORS = [np.sort(_RNG.uniform(0.5, 2.0, len(d.choices))) for d in SPACE.decisions]


def time_of(point) -> float:
    stages = np.ones(len(SPACE.stages))
    for decision, index, factors in zip(SPACE.decisions, point, _FACTORS, strict=True):
        stages[decision.stage] *= factors[index]
    return 10 + stages.sum()


TIMES = np.array([time_of(p) for p in POINTS])


def accuracy_of(point) -> float:
    """Falls with the logarithm of the time, so that the order of networks is that of `time_of`."""
    return 1 - 0.2 * np.log(time_of(point))


def scattered(values, part, seed=0):
    return values * (1 + part * np.random.default_rng(seed).normal(size=len(values)))


def test_what_adds_up_over_stages_is_predicted_closely():
    predictor = Predictor(SPACE, relative=True).fit(POINTS[:160], TIMES[:160])
    mean, deviation = predictor.predict(POINTS[160:])
    error = np.abs(mean / TIMES[160:] - 1)
    guess = np.abs(TIMES[:160].mean() / TIMES[160:] - 1)
    assert error.mean() < 0.15 * guess.mean()
    assert stats.kendalltau(mean, TIMES[160:])[0] > 0.88
    assert np.all(deviation > 0)


def test_the_uncertainty_is_that_of_the_measurements():
    """Of what scatters by 3%, and by equal amounts, 90% lies within the 90% intervals."""
    for relative in (True, False):
        noisy = scattered(TIMES, 0.03) if relative else TIMES + scattered(np.ones(260), 0.5) - 1
        predictor = Predictor(SPACE, relative=relative).fit(POINTS[:160], noisy[:160])
        mean, deviation = predictor.predict(POINTS[160:])
        within = np.abs(mean - noisy[160:]) < 1.645 * deviation
        assert 0.8 < within.mean() < 0.98
        size = deviation / (mean if relative else 1.0)
        assert size.mean() > (0.025 if relative else 0.4)


def test_small_times_are_not_lost_in_the_scatter_of_large_ones():
    """All scatter by 10%: the fit must believe a small time as much as a large one."""
    wide = TIMES**5
    noisy = scattered(wide, 0.1)
    small = np.flatnonzero(wide < np.quantile(wide, 0.2))
    small = small[small >= 160]
    errors = []
    for relative in (True, False):
        predictor = Predictor(SPACE, relative=relative).fit(POINTS[:160], noisy[:160])
        mean, _ = predictor.predict([POINTS[i] for i in small])
        errors.append(np.abs(mean / wide[small] - 1).mean())
    assert errors[0] < 0.33 * errors[1]


def test_means_of_many_measurements_count_more():
    """One network is measured twice, badly once; the count says which value to believe."""
    points, times = [*POINTS[:80], POINTS[100]], [*TIMES[:80], 2 * TIMES[100]]
    trusted, doubted = (
        Predictor(SPACE).fit(points, times, counts=[1] * 80 + [count]).predict([POINTS[100]])[0][0]
        for count in (1000.0, 0.001)
    )
    assert trusted > 1.8 * TIMES[100] > 1.2 * doubted


def test_a_predictor_repeats_itself_and_depends_on_its_data():
    first, second = (Predictor(SPACE).fit(POINTS[:40], TIMES[:40]) for _ in range(2))
    np.testing.assert_array_equal(first.predict(POINTS[:5]), second.predict(POINTS[:5]))
    more = Predictor(SPACE).fit(POINTS[:60], TIMES[:60]).predict(POINTS[200:])[0]
    assert not np.allclose(first.predict(POINTS[200:])[0], more)
    assert first.predict([])[0].shape == (0,)


def test_equal_values_are_predicted_as_they_are():
    mean, _ = Predictor(SPACE, relative=True).fit(POINTS[:4], [2.0] * 4).predict(POINTS[4:8])
    np.testing.assert_allclose(mean, 2.0)


def test_a_network_is_the_same_as_a_point_and_as_a_spec():
    predictor = Predictor(SPACE).fit(POINTS[:40], TIMES[:40])
    specs = [SPACE.to_spec(p, name="x") for p in POINTS[40:44]]
    np.testing.assert_array_equal(predictor.predict(POINTS[40:44]), predictor.predict(specs))


def test_networks_without_a_space_are_known_by_their_blocks():
    specs = [SPACE.to_spec(p) for p in POINTS]
    mean, _ = Predictor(None, relative=True).fit(specs[:160], TIMES[:160]).predict(specs[160:])
    # Two stages share a resolution twice, so that less is known than in the space.
    assert stats.kendalltau(mean, TIMES[160:])[0] > 0.7
    features = describe(None, [specs[0].replace(resolution=64)])
    assert features["network/resolution"] == [64] and features["level1/depth"] >= 1
    assert features["network/params"] == [cost.params(specs[0])]


def test_the_width_of_a_stage_is_known_to_the_next():
    wide = Space(
        name="own", base=TOY.base, stages=(Stage(out=(16, 24)), Stage(out=(16, 24), kernel=(3, 5)))
    )
    features = describe(wide, [(1, 0, 1), (0, 1, 0)])
    expected = {"stage1/width": [24, 16], "stage2/input": [24, 16], "stage2/width": [16, 24]}
    for name, values in (expected | {"stage2/kernel": [5, 3]}).items():
        np.testing.assert_array_equal(features[name], values)


def test_what_a_network_does_not_have_is_no_feature():
    deep = Stage(out=(16,), depth=(1, 2), act=("relu", "h_swish"), per_block=("act",))
    features = describe(Space(name="own", base=TOY.base, stages=(deep,)), [(0, 1, 0), (1, 0, 1)])
    np.testing.assert_array_equal(features["stage1/depth"], [1, 2])
    assert features["stage1/block1/act"].tolist() == ["h_swish", "relu"]
    assert features["stage1/block2/act"].tolist() == [None, "h_swish"]


def test_what_a_network_does_not_have_is_average():
    acts = np.array(["relu", "swish", None], object)
    encoder = Encoder({"a/x": np.array([1.0, 4.0, 2.0]), "b/act": acts})
    rows = encoder.rows({"a/x": np.array([np.nan, 2.0]), "b/act": np.array([None, "swish"])})
    np.testing.assert_allclose(rows[:, 0], 0, atol=1e-9)
    np.testing.assert_array_equal(rows[:, 1:], [[0, 0], [0, 1]])
    assert [list(group) for group in encoder.groups] == [[0], [1, 2]]


def test_what_lies_outside_is_named():
    low = [p for p in POINTS if SPACE.to_spec(p).blocks[0].kernel == 3]
    predictor = Predictor(SPACE).fit(low, [time_of(p) for p in low])
    other = next(p for p in POINTS if SPACE.to_spec(p).blocks[0].kernel == 5)
    alien = SPACE.to_spec(low[0]).replace(resolution=128)
    known, kernel, resolution = predictor.outside([low[0], other, alien])
    assert known is None
    assert kernel == "stage1/kernel is 5.0, known only 3.0"
    assert "resolution: got 128, expected 224" in resolution
    with pytest.raises(ValueError, match="resolution: got 128"):
        predictor.predict([alien])
    levels = Predictor(None).fit([SPACE.to_spec(p) for p in low], [time_of(p) for p in low])
    (reason,) = levels.outside([SPACE.to_spec(low[0]).replace(resolution=256)])
    assert reason.startswith("network/resolution is 256")


def test_what_is_far_from_all_is_named():
    """Neighbours of one network are known, but not what differs from it in everything."""
    rng, near = np.random.default_rng(0), {POINTS[0]}
    while len(near) < 40:
        near.add(SPACE.mutate(POINTS[0], rng))
    near = sorted(near)
    predictor = Predictor(SPACE).fit(near, [time_of(p) for p in near])
    assert predictor.outside(near) == [None] * 40
    seen = [sorted({p[i] for p in near} - {POINTS[0][i]}) for i in range(len(POINTS[0]))]
    far = [other[0] if other else old for other, old in zip(seen, POINTS[0], strict=True)]
    (reason,) = predictor.outside([SPACE.canonical(far)])
    assert reason is not None
    # Changed in eight decisions, each of which has been seen, at a known cost.
    changed = []
    for _ in range(300):
        point = POINTS[0]
        for _ in range(8):
            point = SPACE.mutate(point, rng)
        changed.append(point)
    assert any((reason or "").startswith("further from") for reason in predictor.outside(changed))


@pytest.mark.parametrize(
    ("points", "values"), [(POINTS[:1], [1.0]), (POINTS[:3], [1.0, 2.0]), ([], [])]
)
def test_too_little_to_learn_from_is_refused(points, values):
    with pytest.raises(ValueError, match=f"got {len(points)} networks"):
        Predictor(SPACE).fit(points, values)


def table(count=120, **columns):
    values = {
        "top1": Column(
            kind="accuracy", unit="%", values=tuple((100 * accuracy_of(p),) for p in POINTS[:count])
        ),
        "speed": Column(
            kind="cost",
            unit="images/s",
            higher_is_better=True,
            values=tuple((1000 / t,) if i % 9 else () for i, t in enumerate(TIMES[:count])),
        ),
    }
    return make_network_table(
        name="made up", source="here", license="CC0-1.0", space=SPACE,
        networks=POINTS[:count], columns=values | columns,
    )  # fmt: skip


def test_a_proxy_predicts_accuracy_and_cost():
    proxy = Proxy(table(), rows=range(100))
    accuracy, _ = proxy.evaluate(POINTS[120:])
    np.testing.assert_array_equal(proxy.expect(POINTS[120:]), accuracy)
    truth = np.array([accuracy_of(p) for p in POINTS[120:]])
    assert np.abs(accuracy - truth).mean() < 0.3 * truth.std()
    seconds = proxy.cost("speed")
    predicted = np.array([seconds(SPACE.to_spec(p)) for p in POINTS[200:]])
    assert stats.kendalltau(predicted, TIMES[200:])[0] > 0.75
    np.testing.assert_allclose(predicted.mean(), TIMES[200:].mean() / 1000, rtol=0.03)
    with pytest.raises(ValueError, match="cost: got 'top1', expected"):
        proxy.cost("top1")
    with pytest.raises(ValueError, match="accuracy: got 'speed', expected"):
        Proxy(table(), accuracy="speed")
    with pytest.raises(ValueError, match="made up has no accuracy, only speed"):
        costs = dataclasses.replace(table(), columns={"speed": table().columns["speed"]})
        Proxy(costs).evaluate(POINTS[:1])


def test_a_proxy_learns_from_its_rows_alone():
    """The networks that are held out have accuracies that would spoil everything."""
    spoiled = tuple((50.0 + 3 * (i % 7),) for i in range(120))
    honest = table().columns["top1"].values[:100]
    made = table(top1=Column(kind="accuracy", unit="%", values=honest + spoiled[100:]))
    expected = Proxy(table(), rows=range(100)).evaluate(POINTS[120:])
    np.testing.assert_array_equal(Proxy(made, rows=range(100)).evaluate(POINTS[120:]), expected)


def test_scores_are_of_networks_that_were_held_out():
    """Values without any order cannot be predicted, however well the fit repeats them."""
    noise = np.random.default_rng(5).uniform(40, 60, 120)
    made = table(noise=Column(kind="accuracy", unit="%", values=tuple((v,) for v in noise)))
    scores = {s.column: s for s in judge(made, train=80, held_out=40, seeds=2)}
    assert len(scores["top1"].kendall) == 2
    assert min(scores["top1"].kendall) > 0.7 > 0.4 > max(np.abs(scores["noise"].kendall))
    assert 3 < np.mean(scores["noise"].error) < 8  # points; 5 for the mean of all
    assert min(scores["noise"].within_most) > 0.8 > 0.35 < max(scores["noise"].within_half)
    assert 0.2 < scores["speed"].error[0] < 5  # percent of some milliseconds
    with pytest.raises(ValueError, match="119 networks to learn from and 2 to predict, but made"):
        judge(made, train=119, held_out=2, seeds=1)


def test_the_command_scores_and_predicts(tmp_path, capsys):
    write_network_table(tmp_path / "t.json", table())
    file = str(tmp_path / "t.json")
    assert main(["search", "proxy", file, "--train=80", "--seeds=2", "--column=top1"]) in (None, 0)
    shown = capsys.readouterr().out
    assert "learned from 80 networks, predicted 40 others; 2 splits" in shown
    assert "points ±" in shown and "speed" not in shown
    spec, alien = tmp_path / "a.json", tmp_path / "b.json"
    spec.write_text(spec_to_json(SPACE.to_spec(POINTS[200], name="mine")))
    alien.write_text(spec_to_json(TOY.to_spec(next(TOY.points()))))
    assert main(["search", "proxy", file, f"--spec={spec}"]) in (None, 0)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{spec}: mine"
    speed = float(shown[2].split()[1])
    assert shown[2].endswith("images/s") and abs(speed / (1000 / TIMES[200]) - 1) < 0.1
    assert main(["search", "proxy", file, f"--spec={alien}"]) == 2
    assert f"{alien}: toy is not in the space accel_nasbench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--column=speeds"], "--column: got 'speeds', expected one of 'top1', 'speed'"),
        (["--train=1"], "train: got 1"),
        (["--train=200"], "200 networks to learn from"),
        (["--held-out=200"], "200 to predict"),
        (["--seeds=0"], "seeds: got 0"),
        (["--spec=none.json"], "none.json"),
    ],
)
def test_what_the_command_refuses(tmp_path, capsys, flags, message):
    write_network_table(tmp_path / "t.json", table())
    assert main(["search", "proxy", str(tmp_path / "t.json"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_column_that_was_hardly_measured_is_refused(tmp_path, capsys):
    rare = Column(kind="cost", unit="ms", values=((1.0,), *[()] * 119), higher_is_better=False)
    write_network_table(tmp_path / "t.json", table(rare=rare))
    assert json.loads((tmp_path / "t.json").read_text())["columns"]["rare"]["unit"] == "ms"
    assert main(["search", "proxy", str(tmp_path / "t.json"), "--column=rare"]) == 2
    assert "rare: got " in capsys.readouterr().err
