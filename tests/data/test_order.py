"""The order of examples: a permutation, uniform, the same everywhere and for good."""

import numpy as np
import pytest

from mbv3_jax.data.loader import _ROUNDS, _TABLE, EpochOrder, feistel


@pytest.mark.parametrize("length", [1, 2, 3, 1000, _TABLE, _TABLE + 1, 200_000])
def test_every_epoch_is_a_permutation_of_its_own(length):
    order = EpochOrder(length, seed=3)
    epochs = [order(np.arange(length) + e * length) for e in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(length))
    if length > 3:
        assert np.mean(epochs[0] == epochs[1]) < 0.01


@pytest.mark.parametrize("length", [50, _TABLE + 7])
def test_positions_across_epochs_and_in_any_slices(length):
    order = EpochOrder(length, seed=0)
    whole = order(np.arange(3 * length))
    for start in (0, length - 3, 2 * length - 1):
        part = order(np.arange(start, start + 5))
        np.testing.assert_array_equal(part, whole[start : start + 5])


def test_the_order_never_changes():
    # Written down: a release that shuffled otherwise would break the resuming of every run.
    assert EpochOrder(10, seed=1)(np.arange(10)).tolist() == [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]
    assert EpochOrder(1_281_167, seed=1)(np.arange(4)).tolist() == [
        188096,
        1087785,
        1192433,
        844397,
    ]


def test_seeds_give_other_orders():
    a, b = (EpochOrder(1000, seed=seed)(np.arange(1000)) for seed in (0, 1))
    assert np.mean(a == b) < 0.01


@pytest.mark.parametrize("length", [40, _TABLE + 7])
def test_where_an_example_lands_is_uniform(length):
    """Pearson's statistic over (example's tenth, its position's tenth), 81 degrees of freedom."""
    counts, order = np.zeros((10, 10)), EpochOrder(length, seed=5)
    epochs = 400 if length == 40 else 2
    position = np.arange(length)
    for epoch in range(epochs):
        index = order(position + epoch * length)
        np.add.at(counts, (index * 10 // length, position * 10 // length), 1)
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert 40 < statistic < 140  # a chance of one in ten thousand on either side


def test_neighbours_do_not_stay_neighbours():
    length = 1 << 17
    keys = np.random.Philox(key=7).random_raw(_ROUNDS)
    index = feistel(np.arange(length, dtype=np.uint64), length, keys)
    steps = np.abs(np.diff(index))
    assert abs(steps.mean() / length - 1 / 3) < 0.01  # of two uniform places
    assert np.sum(steps == 1) < 20  # 2 are expected
