"""Batches from a source: shuffled, sharded, resumable at any step; read ahead by Grain.

The position of training is one integer, the step. Batch `step` holds the examples at positions
`step * batch_size` to `(step + 1) * batch_size - 1` of an endless sequence: the data set in the
order of epoch 0, then of epoch 1, and so on. Batches run across the border of two epochs, so that
every example is seen exactly once an epoch. All of it follows from (seed, position), hence
neither workers, nor processes, nor a restart change what is seen.
"""

import functools
import sys

import grain
import numpy as np
from absl import flags

from mbv3_jax.data.sources import Source


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
    num_threads: int = 1,
    prefetch_batches: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns an endless iterator of training batches, beginning with batch `start_step`.

    Args:
      source: what to read.
      batch_size: examples per step over all processes.
      seed: of the order and of the random views; 0 to 2**32 - 1.
      start_step: the number of steps already trained.
      num_workers: worker processes that read ahead; 0 reads ahead by threads of this process.
        For sources whose images must be decoded; a source in memory is faster without.
      num_threads: threads that read ahead, in each worker process, or here when there is none.
      prefetch_batches: at most so many batches wait ready (in each worker, if there are any).
      process_index: which part of each batch this process loads; `jax.process_index()`.
      process_count: into how many parts each batch is cut; `jax.process_count()`.

    Returns:
      An iterator of {"image": uint8 [B, R, R, 3], "label": int32 [B]}, where B is
      `batch_size / process_count`. Its `close()` ends its threads and worker processes.

    Raises:
      ValueError: a size out of range, or a batch that the processes do not divide.
    """
    _check(source, batch_size, process_index, process_count)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed!r}, expected a whole number from 0 to {2**32 - 1}")
    if start_step < 0:
        raise ValueError(f"start_step: got {start_step!r}, expected 0 or more")
    batches = _TrainBatches(source, batch_size, seed, start_step, process_index, process_count)
    return _iterate(batches, num_workers, num_threads, prefetch_batches)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    num_workers: int = 0,
    num_threads: int = 1,
    prefetch_batches: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns an iterator over every example exactly once, in the source's order.

    Arguments and errors are those of `train_batches`. Every process gets the same number of
    batches, `ceil(len(source) / batch_size)`.

    Returns:
      An iterator of {"image": uint8 [B, R, R, 3], "label": int32 [B], "mask": float32 [B]}, where
      B is `batch_size / process_count`. The last batch is padded with a repeated example; "mask"
      is 1 for examples that count and 0 for padding.
    """
    _check(source, batch_size, process_index, process_count)
    batches = _EvalBatches(source, batch_size, process_index, process_count)
    return _iterate(batches, num_workers, num_threads, prefetch_batches)


class EpochOrder:
    """The order of the examples in each epoch: a permutation that (seed, epoch) alone decide.

    Sorts by random 64-bit keys. NumPy keeps the raw stream of Philox the same from version to
    version (NEP 19), which it does not promise of its own shuffles; and Grain's index shuffle
    costs 24 microseconds an example, a hundred times as much. Memory: 8 bytes an example for each
    of the last two epochs, 20 MB for ImageNet.
    """

    def __init__(self, length: int, seed: int):
        self._length, self._seed = length, seed
        self._permutation = functools.lru_cache(maxsize=2)(self._compute)

    def __reduce__(self):  # a worker process computes its own
        return EpochOrder, (self._length, self._seed)

    def _compute(self, epoch: int) -> np.ndarray:
        keys = np.random.Philox(key=[self._seed, epoch]).random_raw(self._length)
        return np.argsort(keys, kind="stable")

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Returns the example indices [B] at consecutive ascending `positions` [B]."""
        epochs, offsets = np.divmod(positions, self._length)
        out = np.empty(len(positions), np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            out[here] = self._permutation(epoch)[offsets[here]]
        return out


class _TrainBatches:
    """Random access to training batches, as Grain wants its sources; 0 is batch `start_step`."""

    def __init__(self, source, batch_size, seed, start_step, process_index, process_count):
        self._source, self._seed, self._start_step = source, seed, start_step
        self._batch_size = batch_size
        self._own = _own_part(batch_size, process_index, process_count)
        self._order = EpochOrder(len(source), seed)

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size - self._start_step  # no position overflows

    def __getitem__(self, number):
        positions = (self._start_step + int(number)) * self._batch_size + self._own
        views = (view_generator(self._seed, int(p)) for p in positions)
        return self._source.batch(self._order(positions), views)


class _EvalBatches:
    """Random access to evaluation batches."""

    def __init__(self, source, batch_size, process_index, process_count):
        self._source, self._batch_size = source, batch_size
        self._own = _own_part(batch_size, process_index, process_count)

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size)

    def __getitem__(self, number):
        positions = int(number) * self._batch_size + self._own
        batch = self._source.batch(np.minimum(positions, len(self._source) - 1))
        return batch | {"mask": (positions < len(self._source)).astype(np.float32)}


def view_generator(seed: int, position: int) -> np.random.Generator:
    """Returns the generator of the random view at one position of training.

    Its Philox counter starts past any that an epoch's order uses: the two share the seed.
    """
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, position, 0, 1]))


def _own_part(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    own = batch_size // process_count
    return np.arange(process_index * own, (process_index + 1) * own)


def _check(source, batch_size, process_index, process_count):
    if len(source) == 0:
        raise ValueError(f"data {source.name}/{source.split}: no examples")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size!r}, expected a whole number of at least 1")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: got {process_index!r} of {process_count!r} processes")
    if batch_size % process_count:
        raise ValueError(
            f"batch_size: got {batch_size}, expected a multiple of the {process_count} processes"
        )


def _iterate(batches, num_workers, num_threads, prefetch_batches) -> grain.DatasetIterator:
    for name, value, least in (
        ("num_workers", num_workers, 0),
        ("num_threads", num_threads, 1),
        ("prefetch_batches", prefetch_batches, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value!r}, expected {least} or more")
    # A Grain element is a whole batch: its workers and threads then take turns by batch and
    # deliver in order, so that their number cannot change what a batch holds.
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(prefetch_batches, num_threads)
    )
    dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # no absl main here (a test, a notebook); Grain reads some
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=prefetch_batches
            )
        )
    return iter(dataset)
