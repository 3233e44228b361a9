import json

import numpy as np
import pytest

from mbv3_jax.search.evaluators import (
    Agreement,
    Corrected,
    Table,
    agreement,
    half_width,
    split_half_reliability,
)
from mbv3_jax.search.policy_gradient import PolicyGradient
from mbv3_jax.search.predictor import Predictor
from mbv3_jax.search.presets import preset
from mbv3_jax.search.rounds import Rounds
from mbv3_jax.search.searchers import run

TOY = preset("toy")
POINTS = list(TOY.points())
WEIGHTS = np.random.default_rng(3).normal(size=TOY.one_hot(POINTS).shape[1])


def truth(points):
    return 0.5 + 0.05 * np.tanh(TOY.one_hot(points) @ WEIGHTS)


def briefly(points, seed):
    return truth(points) + 0.005 * np.random.default_rng(seed).normal(size=len(points))


def search(evaluator, seed, count, known):
    searcher = PolicyGradient(TOY, seed, total_steps=40, learning_rate=0.03)
    seen = {}

    def reward(points):
        found = evaluator.evaluate(points)[0]
        seen.update(zip(points, found.tolist(), strict=True))
        return found

    run(searcher, reward, steps=40, batch=8)
    return [p for p in sorted(seen, key=seen.get, reverse=True) if p not in known][:count]


def test_a_predictor_ranks_networks_that_it_has_not_seen():
    rng = np.random.default_rng(0)
    some = [POINTS[i] for i in rng.permutation(len(POINTS))]
    seen, unseen = some[:40], some[40:]
    predictor = Predictor(TOY).fit(seen, briefly(seen, 0))
    mean, uncertainty = predictor.evaluate(unseen)
    assert agreement(mean, truth(unseen)).spearman > 0.9
    assert np.abs(mean - truth(unseen)).mean() < 0.5 * truth(unseen).std()
    assert np.all(uncertainty > 0)
    again = Predictor(TOY).fit(seen, briefly(seen, 0)).evaluate(unseen)[0]
    np.testing.assert_array_equal(again, mean)
    with pytest.raises(ValueError, match="fit it first"):
        Predictor(TOY).evaluate(seen)


def test_rounds_find_a_good_network_and_can_be_resumed():
    saved = []
    rounds = Rounds(TOY, briefly, search, seed=0)
    surrogate = rounds.run(16, 8, 3, after_round=lambda r: saved.append(json.dumps(r.state())))
    assert [len(json.loads(s)["trained"]) for s in saved] == [16, 24, 32, 40]
    assert len({p for p, _ in rounds.trained}) == 40
    best = max(POINTS, key=lambda p: surrogate.evaluate([p])[0][0])
    assert truth([best])[0] > np.quantile(truth(POINTS), 0.95)
    assert rounds.agreement.count == 16 and rounds.agreement.trusted
    later = Rounds(TOY, briefly, search, seed=0)
    later.load(json.loads(saved[1]))
    later.run(16, 8, 3)
    assert later.trained == rounds.trained and later.agreement == rounds.agreement


def test_all_choices_of_the_rounds_are_the_searchs():
    asked = []

    def best(predictor, seed, count, known):
        asked.append((seed, count, frozenset(known)))
        rest = [p for p in POINTS if p not in known]
        order = np.argsort(-predictor.expect(rest), kind="stable")
        return [rest[i] for i in order[:count]]

    rounds = Rounds(TOY, briefly, best, seed=3)
    rounds.run(10, 4, 2)
    assert [(seed, count, len(known)) for seed, count, known in asked] == [
        (3 * 1009 + 1, 4, 10),
        (3 * 1009 + 2, 4, 14),
    ]
    points = [p for p, _ in rounds.trained]
    assert len(set(points)) == 18
    chosen, random = truth(points[10:]).mean(), truth(points[:10]).mean()
    assert chosen > random + 0.01


def test_agreement_is_of_random_networks_that_others_predict():
    """Noise cannot be predicted by other noise, however closely a predictor repeats it."""

    def noise(points, seed):
        return np.random.default_rng(seed).normal(size=len(points))

    rounds = Rounds(TOY, noise, search, seed=1)
    rounds.run(40, 4, 1)
    assert rounds.agreement.count == 40 and not rounds.agreement.trusted


def test_agreement_within_groups_does_not_count_what_sets_them_apart():
    """Networks of two costs are easily told apart; that says nothing about those of one cost."""
    decided_by = np.argmax(np.ptp(TOY.one_hot(POINTS) * WEIGHTS, axis=0))

    def group(points):
        return TOY.one_hot(points)[:, decided_by] > 0.5

    def by_group(points, seed):
        noise = np.random.default_rng(seed).normal(size=len(points))
        return 0.4 + 0.2 * group(points) + 0.001 * noise

    rounds = Rounds(TOY, by_group, search, seed=1)
    rounds.run(40, 4, 1)
    assert rounds.agreement.trusted
    rounds.groups = group
    assert rounds.agreement.count == 40 and not rounds.agreement.trusted


def test_the_first_networks_can_be_drawn_by_another_rule():
    drawn = POINTS[5:17]
    counts = []

    def draw(rng, count):
        counts.append(count)
        return drawn

    rounds = Rounds(TOY, briefly, search, seed=0, draw=draw)
    rounds.run(10, 4, 1)
    assert [p for p, _ in rounds.trained[:10]] == drawn[:10] and len(rounds.trained) == 14
    assert counts == [10]  # enough were drawn at once


def test_what_is_left_out_is_predicted_by_the_others():
    accuracies = truth(POINTS[:30])
    spoiled = np.where(np.arange(30) == 7, accuracies + 0.5, accuracies)
    predictor = Predictor(TOY).fit(POINTS[:30], spoiled)
    kept = [i for i in range(30) if i != 7]
    again = Predictor(TOY).fit([POINTS[i] for i in kept], spoiled[kept])
    # The weights of the covariance were found with the network, which is why they differ a little.
    left_out = predictor.left_out()
    assert left_out.shape == (30,)
    assert abs(left_out[7] - spoiled[7]) > 0.4
    assert abs(left_out[7] - again.expect([POINTS[7]])[0]) < 0.1


def test_draws_are_what_may_be_true():
    """Their mean and deviation are the predicted ones, and networks that are alike go together."""
    predictor = Predictor(TOY).fit(POINTS[::4], briefly(POINTS[::4], 0))
    some = POINTS[1:40:3]
    drawn = predictor.draw(some, 4000, np.random.default_rng(0))
    assert drawn.shape == (4000, len(some))
    mean, deviation = predictor.predict(some)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.1 * deviation.max())
    assert np.all(drawn.std(0) < deviation * 1.05)
    twins = predictor.draw([some[0], some[0], some[-1]], 2000, np.random.default_rng(1))
    correlations = np.corrcoef(twins.T)
    assert correlations[0, 1] > 0.99 > correlations[0, 2]
    np.testing.assert_allclose(predictor.expect(some), mean)


def test_a_bad_evaluator_is_called_one():
    noise = np.random.default_rng(0).normal(size=128)
    found = agreement(noise, truth(POINTS), reliability=0.9)
    assert not found.trusted
    assert "warning: below 0.5, the search rests on a bad evaluator" in found.describe()
    assert "truth's own reliability 0.90" in found.describe()
    good = agreement(truth(POINTS) ** 2, truth(POINTS))
    assert good.spearman == pytest.approx(1) and "warning" not in good.describe()
    constant = agreement(np.zeros(4), np.arange(4))
    assert np.isnan(constant.spearman) and not constant.trusted
    assert not Rounds(TOY, briefly, search).agreement.trusted  # nothing was compared


@pytest.mark.parametrize(("count", "correlation"), [(10, 0.0), (10, 0.7), (24, 0.5)])
def test_the_interval_of_a_correlation_holds_it_19_times_of_20(count, correlation):
    rng = np.random.default_rng(0)
    true = 6 / np.pi * np.arcsin(correlation / 2)  # of ranks, where this is that of normal numbers
    within = 0
    for _ in range(600):
        a, b = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], count).T
        low, high = agreement(a, b).interval
        within += low <= true <= high
    assert 0.93 <= within / 600 <= 0.98


def test_the_interval_of_a_correlation_is_printed_where_there_is_one():
    ten = Agreement(0.0, 0.0, 10)
    assert ten.interval == pytest.approx((-0.63, 0.63), abs=0.01)
    assert "Spearman 0.00 (95%: -0.63 to 0.63), Kendall" in ten.describe()
    assert Agreement(1.0, 1.0, 3).interval is None
    assert "Spearman 1.00, Kendall" in Agreement(1.0, 1.0, 3).describe()
    assert Agreement(1.0, 1.0, 5).interval[0] > 0.9  # and no infinity
    assert Agreement(float("nan"), float("nan"), 9).interval is None


def test_reliability_is_that_of_the_mean_over_seeds():
    rng = np.random.default_rng(0)
    networks, seeds, noise = 4000, 4, 1.5
    accuracies = rng.normal(size=(networks, 1)) + noise * rng.normal(size=(networks, seeds))
    want = 1 / (1 + noise**2 / seeds)  # variance of the truth over that of the mean
    assert split_half_reliability(accuracies) == pytest.approx(want, abs=0.02)
    with pytest.raises(ValueError, match="got 1 seeds"):
        split_half_reliability(accuracies[:, :1])


def test_an_interval_is_students():
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / np.sqrt(3))


def test_a_table_knows_its_own_error():
    table = Table({(0, 0): [0.5, 0.7], (0, 1): [0.4]})
    accuracy, error = table.evaluate([(0, 1), (0, 0)])
    np.testing.assert_allclose(accuracy, [0.4, 0.6])
    assert np.isnan(error[0]) and error[1] == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"1 points are not in it, the first \(1, 1\)"):
        table.evaluate([(1, 1)])


def test_trainings_correct_estimates_that_favour_cheap_networks():
    size = TOY.counts(POINTS)[:, 0]
    cost_of = dict(zip(POINTS, size.tolist(), strict=True))
    estimates = truth(POINTS) - 0.2 * np.log(size)
    table = Table({p: [e] for p, e in zip(POINTS, estimates.tolist(), strict=True)})
    some = POINTS[::6]
    corrected = Corrected(
        table, lambda points: np.array([cost_of[p] for p in points]), some, briefly(some, 0)
    )
    mean, deviation = corrected.evaluate(POINTS)
    assert agreement(estimates, truth(POINTS)).spearman < 0.5
    assert agreement(mean, truth(POINTS)).spearman > 0.9
    assert np.abs(mean - truth(POINTS)).max() < 0.02
    assert deviation == pytest.approx(np.full(len(POINTS), 0.005), rel=0.3)
