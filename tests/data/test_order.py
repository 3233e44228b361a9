"""The order of examples: a permutation, uniform, the same everywhere and for good."""

import numpy as np
import pytest

from mbv3_jax.data.order import _ROUNDS, _TABLE, BalancedOrder, EpochOrder, RepeatedOrder, feistel


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


LABELS = np.repeat([0, 2, 5], [3, 50, 20])  # no example of 1, 3 and 4


def test_balanced_epochs_have_every_class_equally_often():
    order, length = BalancedOrder(LABELS, seed=3), len(LABELS)
    whole = order(np.arange(40 * length))
    for epoch in whole.reshape(40, length):
        assert np.bincount(LABELS[epoch])[[0, 2, 5]].tolist() == [25, 24, 24]
    # No example of a class comes twice before all of them have come once.
    for label in (0, 2, 5):
        members = np.flatnonzero(label == LABELS)
        seen = np.bincount(whole[LABELS[whole] == label], minlength=length)[members]
        assert seen.max() - seen.min() <= 1
    assert np.mean(whole[:length] == whole[length : 2 * length]) < 0.2
    assert np.mean(BalancedOrder(LABELS, seed=4)(np.arange(length)) == whole[:length]) < 0.2
    part = order(np.arange(100, 150))
    np.testing.assert_array_equal(part, whole[100:150])


def test_the_balanced_order_never_changes():
    assert BalancedOrder(LABELS, seed=1)(np.arange(8)).tolist() == [2, 1, 67, 2, 0, 1, 2, 49]


@pytest.mark.parametrize(("batch_size", "repeats"), [(12, 3), (8, 3), (7, 2), (4, 4)])
def test_every_image_of_a_batch_is_repeated(batch_size, repeats):
    below = EpochOrder(50, seed=2)
    order = RepeatedOrder(below, batch_size, repeats)
    images = -(-batch_size // repeats)
    whole = order(np.arange(60 * batch_size))
    for number, batch in enumerate(whole.reshape(60, batch_size)):
        expected = below(np.arange(number * images, (number + 1) * images))
        np.testing.assert_array_equal(batch, np.tile(expected, repeats)[:batch_size])
    # So many batches as show each image once show all of them, before any comes again.
    seen = np.unique(whole[: 50 // images * batch_size])
    assert len(seen) == 50 // images * images
    part = order(np.arange(batch_size + 1, 3 * batch_size - 1))
    np.testing.assert_array_equal(part, whole[batch_size + 1 : 3 * batch_size - 1])


def test_streams_have_nothing_in_common():
    a, b = (EpochOrder(1000, seed=1, stream=stream)(np.arange(1000)) for stream in (0, 1))
    assert np.mean(a == b) < 0.01
