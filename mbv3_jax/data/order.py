"""The order of the training examples, which depends only on the seed and the position."""

import functools
from collections.abc import Callable

import numpy as np

# Up to this length a table of the order costs less than computing it; half a megabyte.
_TABLE = 1 << 16
_ROUNDS = 8


class EpochOrder:
    """A permutation of the examples that depends only on the seed and the epoch.

    Small data sets are sorted by random 64-bit keys, so that every order is equally likely. Larger
    ones use a Feistel network over the index, which takes 1.5 microseconds per example and no
    memory, where a table of ImageNet's order would take 20 MB in each worker process. (Grain's
    index shuffle, the same idea, takes 24.) Both use only the raw stream of Philox, which NumPy
    keeps the same from version to version (NEP 19); it does not promise that of its own shuffles.

    Args:
      length: the number of examples.
      seed: of the order.
      stream: a number that makes several orders of one seed independent.
    """

    def __init__(self, length: int, seed: int, stream: int = 0):
        self._length, self._seed, self._stream = length, seed, stream
        self._table = functools.lru_cache(maxsize=2)(self._make_table)

    def __reduce__(self):  # a worker process makes its own tables
        return EpochOrder, (self._length, self._seed, self._stream)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Returns the example indices [batch] at `positions` [batch]."""
        epochs, offsets = np.divmod(positions, self._length)
        indices = np.empty(len(positions), np.int64)
        for epoch in map(int, np.unique(epochs)):
            inside = epochs == epoch
            if self._length <= _TABLE:
                indices[inside] = self._table(epoch)[offsets[inside]]
            else:
                keys = self._random(epoch, _ROUNDS)
                indices[inside] = feistel(offsets[inside].astype(np.uint64), self._length, keys)
        return indices

    def _random(self, epoch: int, count: int) -> np.ndarray:
        # The counter's last word is 0 here and 1 in `loader.view_generator`.
        counter = [0, 0, self._stream, 0]
        return np.random.Philox(key=[self._seed, epoch], counter=counter).random_raw(count)

    def _make_table(self, epoch: int) -> np.ndarray:
        return np.argsort(self._random(epoch, self._length), kind="stable")


class BalancedOrder:
    """An order in which all classes have the same number of places in each epoch, give or take one.

    An epoch is still as long as the data. Its places are shuffled as by `EpochOrder` and dealt to
    the classes in turn; each class fills its places with its own examples, all of them once before
    any is repeated, in an order that changes from round to round. So the examples of a rare class
    come several times per epoch, and those of a frequent class only in some epochs, each equally
    often over a run. It depends only on the labels, the seed and the position.

    Args:
      labels: [examples] class numbers; classes without examples get no places.
      seed: of the order.
    """

    def __init__(self, labels: np.ndarray, seed: int):
        present, counts = np.unique(labels, return_counts=True)
        by_class = np.argsort(labels, kind="stable")
        self._members = np.split(by_class, np.cumsum(counts)[:-1])
        self._length, self._places = len(labels), EpochOrder(len(labels), seed)
        self._rounds = [
            EpochOrder(int(count), seed, stream=1 + int(label))
            for label, count in zip(present, counts, strict=True)
        ]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Returns the example indices [batch] at `positions` [batch]."""
        classes = len(self._members)
        turns, of_class = np.divmod(self._places(positions), classes)
        epochs = positions // self._length
        indices = np.empty(len(positions), np.int64)
        for number in map(int, np.unique(of_class)):
            inside = of_class == number
            per_epoch = -(-(self._length - number) // classes)
            order = self._rounds[number](epochs[inside] * per_epoch + turns[inside])
            indices[inside] = self._members[number][order]
        return indices


class RepeatedOrder:
    """An order in which every image of a batch is repeated, to be seen in several views.

    Repeated augmentation (Hoffer et al. 2020, arXiv 1901.09335; Berman et al. 2019, arXiv
    1902.05509). A batch has batch_size / repeats different images, rounded up: the next ones of
    `order`, all of them once and then all of them again, so that neighbours, which mixup blends,
    are different images. An epoch still has as many places as the data has images, and `repeats`
    epochs go through all images once. It depends only on `order` and the position.

    Args:
      order: of the different images: positions -> example indices.
      batch_size: over all processes.
      repeats: how often each image comes, 1 or more.
    """

    def __init__(self, order: Callable[[np.ndarray], np.ndarray], batch_size: int, repeats: int):
        self._order, self._batch_size = order, batch_size
        self._images = -(-batch_size // repeats)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Returns the example indices [batch] at `positions` [batch]."""
        batches, places = np.divmod(positions, self._batch_size)
        return self._order(batches * self._images + places % self._images)


def feistel(index: np.ndarray, length: int, keys: np.ndarray) -> np.ndarray:
    """Permutes 0 to `length` - 1 by a keyed bijection (Luby and Rackoff 1988).

    The network permutes the numbers below the next power of two. An index that leaves the range
    passes through it again until it is back inside, twice on average at most.

    Args:
      index: uint64 [batch], below `length`.
      length: at least 2.
      keys: uint64 [rounds], an even number of rounds.

    Returns:
      int64 [batch].
    """
    bits = (length - 1).bit_length()
    low_bits = np.uint64(bits - bits // 2)
    high_mask, low_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << int(low_bits)) - 1)

    def permute(x: np.ndarray) -> np.ndarray:
        high, low = x >> low_bits, x & low_mask
        for even, odd in keys.reshape(-1, 2):
            high = high ^ (_mix(low + even) & high_mask)
            low = low ^ (_mix(high + odd) & low_mask)
        return high << low_bits | low

    index = permute(index)
    while (outside := np.flatnonzero(index >= length)).size:
        index[outside] = permute(index[outside])
    return index.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection of uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
