"""The order of the examples in each epoch."""

import functools
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags

from mbv3_jax.core.checks import choose
from mbv3_jax.data.source import ON_ERROR, BadExample, Source

# Up to here a table of the order costs less than computing it; half a megabyte.
_TABLE = 1 << 16
_ROUNDS = 8


class EpochOrder:
    """A permutation of the examples that (seed, epoch) alone decide.

    Small data sets: a sort by random 64-bit keys, so that every order is equally likely. Larger
    ones: a Feistel network over the index, 1.5 microseconds an example and no memory, where a
    table of ImageNet's order would take 20 MB in each worker process. (Grain's index shuffle, the
    same idea, takes 24.) Both rest on the raw stream of Philox alone, which NumPy keeps the same
    from version to version (NEP 19), as it does not promise of its own shuffles.
    """

    def __init__(self, length: int, seed: int):
        self._length, self._seed = length, seed
        self._table = functools.lru_cache(maxsize=2)(self._make_table)

    def __reduce__(self):  # a worker process makes its own tables
        return EpochOrder, (self._length, self._seed)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Returns the example indices [B] at consecutive ascending `positions` [B]."""
        epochs, offsets = np.divmod(positions, self._length)
        out = np.empty(len(positions), np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            if self._length <= _TABLE:
                out[here] = self._table(epoch)[offsets[here]]
            else:
                keys = self._random(epoch, _ROUNDS)
                out[here] = feistel(offsets[here].astype(np.uint64), self._length, keys)
        return out

    def _random(self, epoch: int, count: int) -> np.ndarray:
        return np.random.Philox(key=[self._seed, epoch]).random_raw(count)

    def _make_table(self, epoch: int) -> np.ndarray:
        return np.argsort(self._random(epoch, self._length), kind="stable")


def feistel(index: np.ndarray, length: int, keys: np.ndarray) -> np.ndarray:
    """Permutes 0 to `length` - 1 by a keyed bijection (Luby and Rackoff 1988).

    The network permutes the next power of two; an index that leaves the range goes through it
    again until it is back, at most twice in the mean.

    Args:
      index: uint64 [B], below `length`.
      length: at least 2.
      keys: uint64 [rounds], an even number of rounds.

    Returns:
      int64 [B].
    """
    bits = (length - 1).bit_length()
    low_bits = np.uint64(bits - bits // 2)
    high_mask, low_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << int(low_bits)) - 1)

    def once(x):
        high, low = x >> low_bits, x & low_mask
        for even, odd in keys.reshape(-1, 2):
            high = high ^ (_mix(low + even) & high_mask)
            low = low ^ (_mix(high + odd) & low_mask)
        return high << low_bits | low

    index = once(index)
    while (outside := np.flatnonzero(index >= length)).size:
        index[outside] = once(index[outside])
    return index.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), uint64 to uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# Reading ahead by Grain: threads, worker processes.


def workers(source: Source, num_workers: int | None) -> int:
    """The number of worker processes; where None is given, one a core if images are decoded."""
    if num_workers is None:
        return _cores() if source.encoded else 0
    return num_workers


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_ahead(chunks, per_batch, num_workers, num_threads, prefetch) -> grain.DatasetIterator:
    """Reads `chunks`, a sequence, in order by threads here or in worker processes.

    `per_batch` of them make a batch; about `prefetch` batches wait ready. Other arguments are
    those of `loader.train_batches`.
    """
    for name, value, least in (
        ("num_workers", num_workers, 0),
        ("num_threads", num_threads, 1),
        ("prefetch_batches", prefetch, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value!r}, expected {least} or more")
    # A Grain element is a chunk: its workers and threads then take turns by chunk and deliver in
    # order, so that their number cannot change what a batch holds.
    ahead = max(1, -(-prefetch * per_batch // max(1, num_workers)))  # chunks, for each worker
    threads = grain.ReadOptions(
        num_threads=num_threads,
        prefetch_buffer_size=num_threads if num_workers else max(ahead, num_threads),
    )
    dataset = grain.MapDataset.source(chunks).to_iter_dataset(threads)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # no absl main here (a test, a notebook); Grain reads some
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=ahead),
            worker_init_fn=_end_with_parent,
        )
    return iter(dataset)


def _end_with_parent(*_) -> None:
    """Makes a worker process end with the one that it reads for, and not before.

    A scheduler sends its signals to all processes; the one that trains has still to save.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Batches from a source: shuffled, sharded, resumable at any step; read ahead by Grain.
#
# The position of training is one integer, the step. Batch `step` holds the examples at positions
# `step * batch_size` to `(step + 1) * batch_size - 1` of an endless sequence: the data set in the
# order of epoch 0, then of epoch 1, and so on. Batches run across the border of two epochs, so that
# every example is seen exactly once an epoch. All of it follows from (seed, position), hence
# neither workers, nor processes, nor a restart change what is seen.
#
# An example that cannot be used ends the run (`on_error="raise"`), or is left out and reported
# (`"skip"`): in training the next one that can be used stands in for it; in evaluation its mask is
# 0 and "unreadable" is 1, so that whoever counts can say what is missing.

# A worker process hands over so many examples at a time: all workers then share the next batch,
# and what they hold ready does not grow with the batch.
_CHUNK = 64
_warn = logging.getLogger(__name__).warning
_STAND_INS = 100  # so many unusable examples in a row are no accident


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    stop_step: int | None = None,
    num_workers: int | None = 0,
    num_threads: int = 1,
    prefetch_batches: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    on_error: str = "raise",
    on_skip: Callable[[str], None] = _warn,
) -> "Batches":
    """Returns an iterator of training batches, beginning with batch `start_step`.

    Args:
      source: what to read.
      batch_size: examples per step over all processes.
      seed: of the order and of the random views; 0 to 2**32 - 1.
      start_step: the number of steps already trained.
      stop_step: the number of steps to train, after which nothing is read ahead; None is endless.
      num_workers: worker processes that read ahead; 0 reads ahead by threads of this process, as
        is faster for a source in memory. None: one a core if images must be decoded, else 0.
      num_threads: threads that read ahead, in each worker process, or here when there is none.
      prefetch_batches: about so many batches wait ready, in all.
      process_index: which part of each batch this process loads; `jax.process_index()`.
      process_count: into how many parts each batch is cut; `jax.process_count()`.
      on_error: "raise" or "skip"; what to do about an example that cannot be used.
      on_skip: called with a message for each that is skipped, once.

    Returns:
      An iterator of {"image": uint8 [B, R, R, 3], "label": int32 [B]}, where B is
      `batch_size / process_count`.

    Raises:
      ValueError: a size out of range, or a batch that the processes do not divide. The iterator
        raises `BadExample`.
    """
    _check(source, batch_size, process_index, process_count)
    check_seed("seed", seed)
    if start_step < 0:
        raise ValueError(f"start_step: got {start_step!r}, expected 0 or more")
    skip = choose("data.on_error", on_error, ON_ERROR) == "skip"
    num_workers = workers(source, num_workers)
    parts = _parts(batch_size, process_index, process_count, num_workers)
    endless = sys.maxsize // batch_size  # no position overflows
    steps = (start_step, endless if stop_step is None else stop_step)
    chunks = _TrainChunks(source, batch_size, parts, skip, seed, steps)
    return Batches(chunks, len(parts), on_skip, num_workers, num_threads, prefetch_batches)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    num_workers: int | None = 0,
    num_threads: int = 1,
    prefetch_batches: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    on_error: str = "raise",
    on_skip: Callable[[str], None] = _warn,
) -> "Batches":
    """Returns an iterator over every example exactly once, in the source's order.

    Arguments and errors are those of `train_batches`. Every process gets the same number of
    batches, `ceil(len(source) / batch_size)`.

    Returns:
      An iterator of {"image": uint8 [B, R, R, 3], "label": int32 [B], "mask": float32 [B]}, where
      B is `batch_size / process_count`. The last batch is padded with a repeated example; "mask"
      is 1 for examples that count and 0 for padding. With `on_error="skip"` there is "unreadable",
      float32 [B], too: 1 for examples that would count if they could be read.
    """
    _check(source, batch_size, process_index, process_count)
    skip = choose("data.on_error", on_error, ON_ERROR) == "skip"
    num_workers = workers(source, num_workers)
    parts = _parts(batch_size, process_index, process_count, num_workers)
    chunks = _EvalChunks(source, batch_size, parts, skip)
    return Batches(chunks, len(parts), on_skip, num_workers, num_threads, prefetch_batches)


class Batches(Iterator):
    """Iterates over batches, put together from chunks that are read ahead.

    Attributes:
      skipped: message -> how often; the examples that could not be used up to here.
    """

    def __init__(self, chunks, per_batch, on_skip, num_workers, num_threads, prefetch_batches):
        self.skipped: dict[str, int] = {}
        self._per_batch, self._on_skip = per_batch, on_skip
        self._has_workers = num_workers > 0
        self._chunks = read_ahead(chunks, per_batch, num_workers, num_threads, prefetch_batches)

    def __next__(self) -> dict[str, np.ndarray]:
        chunks = [self._next_chunk() for _ in range(self._per_batch)]
        # A copy even of one: what comes from another process lies in memory shared with it.
        return {k: np.concatenate([np.asarray(c[k]) for c in chunks]) for k in chunks[0]}

    def _next_chunk(self):
        chunk = dict(next(self._chunks))
        problems, fatal = chunk.pop("problems"), chunk.pop("fatal")
        if fatal:
            raise BadExample(problems[-1])
        for problem in problems:
            if problem not in self.skipped:
                self._on_skip(f"skipped {problem}")
            self.skipped[problem] = self.skipped.get(problem, 0) + 1
        return chunk

    def close(self) -> None:
        """Ends the threads and worker processes."""
        self._chunks.close()
        if self._has_workers:
            # Grain ends by an exception whose frames hold the last chunks and, in a circle, each
            # other; shared memory that is still held at exit is reported as leaked.
            gc.collect()


class _Chunks:
    """Random access to pieces of batches, as Grain wants its sources.

    A piece carries "problems", messages, and "fatal": whether the last of them ends the run. They
    travel as data, because an exception from another process would lose its type.
    """

    def __init__(self, source: Source, batch_size: int, parts: list[np.ndarray], skip: bool):
        self._source, self._batch_size, self._parts, self._skip = source, batch_size, parts, skip

    def _positions(self, number: int) -> np.ndarray:
        step, part = divmod(number, len(self._parts))
        return step * self._batch_size + self._parts[part]


class _TrainChunks(_Chunks):
    def __init__(self, source, batch_size, parts, skip, seed, steps: tuple[int, int]):
        super().__init__(source, batch_size, parts, skip)
        self._seed = seed
        self._first, self._stop = (step * len(parts) for step in steps)
        self._order = EpochOrder(len(source), seed)

    def __len__(self) -> int:
        return self._stop - self._first

    def __getitem__(self, number):
        positions = self._positions(self._first + int(number))
        indices = self._order(positions)
        views = (view_generator(self._seed, int(p)) for p in positions)
        batch, problems = self._source.load(indices, views)
        messages, fatal = list(problems.values()), bool(problems) and not self._skip
        if self._skip:
            for row in problems:
                tried = self._stand_in(batch, row, int(indices[row]), int(positions[row]))
                if len(tried) == _STAND_INS:
                    messages, fatal = tried, True
        return batch | {"problems": messages, "fatal": fatal}

    def _stand_in(self, batch, row: int, index: int, position: int) -> list[str]:
        """Fills a row with the next example that can be used; returns what was wrong on the way."""
        tried = []
        for step in range(1, _STAND_INS + 1):
            views = [view_generator(self._seed, position)]
            other, problems = self._source.load([(index + step) % len(self._source)], views)
            if not problems:
                for name, values in other.items():
                    batch[name][row] = values[0]
                break
            tried += problems.values()
        return tried


class _EvalChunks(_Chunks):
    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size) * len(self._parts)

    def __getitem__(self, number):
        positions = self._positions(int(number))
        batch, problems = self._source.load(np.minimum(positions, len(self._source) - 1))
        counts = (positions < len(self._source)).astype(np.float32)
        bad = np.zeros_like(counts)
        bad[list(problems)] = 1
        batch["mask"] = counts * (1 - bad)
        if self._skip:
            batch["unreadable"] = counts * bad
        messages = [message for row, message in problems.items() if counts[row]]
        return batch | {"problems": messages, "fatal": bool(messages) and not self._skip}


def check_seed(path: str, seed) -> None:
    """Holds a seed to its range.

    Raises:
      ValueError: it is none; `path` says of which field.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"{path}: got {seed!r}, expected a whole number from 0 to {2**32 - 1}")


def view_generator(seed: int, position: int) -> np.random.Generator:
    """Returns the generator of the random view at one position of training.

    Its Philox counter starts past any that an epoch's order uses: the two share the seed.
    """
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, position, 0, 1]))


def _parts(batch_size, process_index, process_count, num_workers) -> list[np.ndarray]:
    """The places in a batch that are this process's, in the chunks in which they are read."""
    own = batch_size // process_count
    places = np.arange(process_index * own, (process_index + 1) * own)
    return np.array_split(places, -(-own // _CHUNK) if num_workers else 1)


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
