"""Batches from a source: shuffled, sharded, read ahead by Grain, resumable at any step.

The position of training is one integer, the step. Batch `step` holds the examples at the positions
`step * batch_size` to `(step + 1) * batch_size - 1` of an endless sequence: the data set in the
order of epoch 0, then in that of epoch 1, and so on. Batches run across the border of two epochs,
so that every example is seen exactly once per epoch, unless the classes are balanced or images are
repeated. All of this depends only on the seed and the position (`order.py`); the number of workers
or processes and restarts do not change what is seen.

An example that cannot be used ends the run (`on_error="raise"`), or is left out and reported
(`"skip"`). In training the next usable example replaces it. In evaluation its mask is 0 and its
"unreadable" is 1, so that the caller can report how many examples are missing.
"""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from mbv3_jax.core.checks import check_whole, choose
from mbv3_jax.data.order import BalancedOrder, EpochOrder, RepeatedOrder
from mbv3_jax.data.source import ON_ERROR, BadExample, Batch, Source

# Worker processes deliver this many examples at a time, so that all workers share the next batch
# and what they hold ready does not grow with the batch.
_CHUNK = 64
_REPLACEMENTS = 100  # this many unusable examples in a row are not an accident
_warn = logging.getLogger(__name__).warning
Order = EpochOrder | BalancedOrder | RepeatedOrder


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    balanced: bool = False,
    repeats: int = 1,
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
    """Returns an iterator over training batches, beginning with batch `start_step`.

    Args:
      source: what to read.
      batch_size: examples per step over all processes.
      seed: of the order and of the random views; 0 to 2**32 - 1.
      balanced: whether every class is seen equally often, see `order.BalancedOrder`; an epoch is as
        long either way.
      repeats: how often each image comes in a batch, see `order.RepeatedOrder`.
      start_step: the number of steps already trained.
      stop_step: the number of steps to train, after which nothing is read ahead; None for endless.
      num_workers: worker processes that read ahead. 0 reads ahead in threads of this process,
        which is faster for a source in memory. None starts one per core if images must be decoded,
        else none.
      num_threads: threads that read ahead, in each worker process or, without any, in this one.
      prefetch_batches: about how many batches are held ready in total.
      process_index: which part of each batch this process loads; `jax.process_index()`.
      process_count: into how many parts each batch is split; `jax.process_count()`.
      on_error: "raise" or "skip", for examples that cannot be used.
      on_skip: called with a message, once for each example that is skipped.

    Returns:
      An iterator over {"image": uint8 [batch, height, width, 3], "label": int32 [batch]},
      where the batch has `batch_size / process_count` examples.

    Raises:
      ValueError: a size is out of range, the batch cannot be divided among the processes, or the
        source does not know its labels, which `balanced` needs.
      BadExample: raised by the iterator for an example that cannot be used.
    """
    _check(source, batch_size, process_index, process_count)
    check_seed("seed", seed)
    order: Order = _balanced_order(source, seed) if balanced else EpochOrder(len(source), seed)
    if check_whole("data.repeats", repeats, at_least=1) > 1:
        order = RepeatedOrder(order, batch_size, repeats)
    if start_step < 0:
        raise ValueError(f"start_step: got {start_step!r}, expected 0 or more")
    skip = choose("data.on_error", on_error, ON_ERROR) == "skip"
    num_workers = _count_workers(source, num_workers)
    parts = _parts(batch_size, process_index, process_count, num_workers)
    endless = sys.maxsize // batch_size  # no position overflows
    steps = (start_step, endless if stop_step is None else stop_step)
    chunks = _TrainChunks(source, batch_size, parts, skip, seed, order, steps)
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
    """Returns an iterator over every example exactly once, in the order of the source.

    Arguments and errors are those of `train_batches`. Every process gets the same number of
    batches, `ceil(len(source) / batch_size)`.

    Returns:
      An iterator over {"image": uint8 [batch, height, width, 3], "label": int32 [batch],
      "mask": float32 [batch]}, where the batch has `batch_size / process_count` examples. The last
      batch is padded with a repeated example; "mask" is 1 for examples that count and 0 for
      padding. With `on_error="skip"` there is also "unreadable", float32 [batch]: 1 for examples
      that would count if they could be read.
    """
    _check(source, batch_size, process_index, process_count)
    skip = choose("data.on_error", on_error, ON_ERROR) == "skip"
    num_workers = _count_workers(source, num_workers)
    parts = _parts(batch_size, process_index, process_count, num_workers)
    chunks = _EvalChunks(source, batch_size, parts, skip)
    return Batches(chunks, len(parts), on_skip, num_workers, num_threads, prefetch_batches)


class Batches(Iterator[Batch]):
    """Iterates over batches, assembled from chunks that are read ahead.

    Attributes:
      skipped: message -> number of times, for the examples that could not be used so far.
    """

    def __init__(
        self,
        chunks: "_Chunks",
        per_batch: int,
        on_skip: Callable[[str], None],
        num_workers: int,
        num_threads: int,
        prefetch_batches: int,
    ):
        self.skipped: dict[str, int] = {}
        self._per_batch, self._on_skip = per_batch, on_skip
        self._has_workers = num_workers > 0
        self._chunks = _read_ahead(chunks, per_batch, num_workers, num_threads, prefetch_batches)

    def __next__(self) -> Batch:
        chunks = [self._next_chunk() for _ in range(self._per_batch)]
        # Copies even a single chunk: what another process delivers lies in shared memory.
        return {k: np.concatenate([np.asarray(c[k]) for c in chunks]) for k in chunks[0]}

    def _next_chunk(self) -> dict[str, Any]:
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
            # Grain ends with an exception whose frames hold the last chunks and, in a cycle, each
            # other. Shared memory that is still held at exit is reported as leaked.
            gc.collect()


def check_seed(field: str, seed: object) -> None:
    """Checks that a seed is a whole number from 0 to 2**32 - 1.

    Raises:
      ValueError: it is not; the message names `field`.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"{field}: got {seed!r}, expected a whole number from 0 to {2**32 - 1}")


def view_generator(seed: int, position: int) -> np.random.Generator:
    """Returns the generator of the random view at one position of training.

    Its Philox counter starts beyond those that the order of an epoch uses with the same seed.
    """
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, position, 0, 1]))


def _balanced_order(source: Source, seed: int) -> BalancedOrder:
    labels = source.labels()
    if labels is None:
        raise ValueError(
            f"data.balanced: got True, but {source.name} does not know the label of an image until "
            "it is read; loss.class_weights, with a number for each class, needs none"
        )
    return BalancedOrder(labels, seed)


class _Chunks:
    """Random access to pieces of batches, in the form that Grain takes as a data source.

    A piece has two more entries: "problems", a list of messages, and "fatal", whether the last of
    them ends the run. They travel as data because an exception from another process would lose its
    type.

    Args:
      source: what to read.
      batch_size: examples per step over all processes.
      parts: the places in a batch that each chunk fills.
      skip: whether examples that cannot be used are left out.
    """

    def __init__(self, source: Source, batch_size: int, parts: list[np.ndarray], skip: bool):
        self._source, self._batch_size, self._parts, self._skip = source, batch_size, parts, skip

    def _positions(self, number: int) -> np.ndarray:
        step, part = divmod(number, len(self._parts))
        return step * self._batch_size + self._parts[part]


class _TrainChunks(_Chunks):
    """The chunks of the steps `steps[0]` to `steps[1] - 1`."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        parts: list[np.ndarray],
        skip: bool,
        seed: int,
        order: Order,
        steps: tuple[int, int],
    ):
        super().__init__(source, batch_size, parts, skip)
        self._seed = seed
        self._first, self._stop = (step * len(parts) for step in steps)
        self._order = order

    def __len__(self) -> int:
        return self._stop - self._first

    def __getitem__(self, number: int) -> dict[str, Any]:
        positions = self._positions(self._first + int(number))
        indices = self._order(positions)
        views = (view_generator(self._seed, int(p)) for p in positions)
        batch, problems = self._source.load(indices, views)
        messages, fatal = list(problems.values()), bool(problems) and not self._skip
        if self._skip:
            for row in problems:
                failures = self._replace(batch, row, int(indices[row]), int(positions[row]))
                if len(failures) == _REPLACEMENTS:
                    messages, fatal = failures, True
        return {**batch, "problems": messages, "fatal": fatal}

    def _replace(self, batch: Batch, row: int, index: int, position: int) -> list[str]:
        """Fills a row with the next usable example; returns what is wrong with those in between."""
        failures: list[str] = []
        for offset in range(1, _REPLACEMENTS + 1):
            views = [view_generator(self._seed, position)]
            example, problems = self._source.load([(index + offset) % len(self._source)], views)
            if not problems:
                for name, values in example.items():
                    batch[name][row] = values[0]
                break
            failures += problems.values()
        return failures


class _EvalChunks(_Chunks):
    """The chunks of one pass over the source."""

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size) * len(self._parts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        positions = self._positions(int(number))
        batch, problems = self._source.load(np.minimum(positions, len(self._source) - 1))
        counts = (positions < len(self._source)).astype(np.float32)
        unreadable = np.zeros_like(counts)
        unreadable[list(problems)] = 1
        batch["mask"] = counts * (1 - unreadable)
        if self._skip:
            batch["unreadable"] = counts * unreadable
        messages = [message for row, message in problems.items() if counts[row]]
        return {**batch, "problems": messages, "fatal": bool(messages) and not self._skip}


def _parts(
    batch_size: int, process_index: int, process_count: int, num_workers: int
) -> list[np.ndarray]:
    """The places in a batch that belong to this process, split into the chunks to read."""
    share = batch_size // process_count
    places = np.arange(process_index * share, (process_index + 1) * share)
    return np.array_split(places, -(-share // _CHUNK) if num_workers else 1)


def _check(source: Source, batch_size: int, process_index: int, process_count: int) -> None:
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


def _count_workers(source: Source, num_workers: int | None) -> int:
    """The number of worker processes; None starts one per core if images must be decoded."""
    if num_workers is not None:
        return num_workers
    if not source.encoded:
        return 0
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_ahead(
    chunks: _Chunks, per_batch: int, num_workers: int, num_threads: int, prefetch_batches: int
) -> grain.DatasetIterator:
    """Reads chunks in order, in threads of this process or in worker processes.

    Args:
      chunks: what to read.
      per_batch: the number of chunks in a batch.
      num_workers, num_threads, prefetch_batches: see `train_batches`.
    """
    for name, value, least in (
        ("data.num_workers", num_workers, 0),
        ("data.num_threads", num_threads, 1),
        ("data.prefetch_batches", prefetch_batches, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value!r}, expected {least} or more")
    # One Grain element is one chunk: its workers and threads then take turns by chunk and deliver
    # in order, so that their number cannot change what a batch holds.
    ahead = max(1, -(-prefetch_batches * per_batch // max(1, num_workers)))  # chunks per worker
    threads = grain.ReadOptions(
        num_threads=num_threads,
        prefetch_buffer_size=num_threads if num_workers else max(ahead, num_threads),
    )
    dataset = grain.MapDataset.source(chunks).to_iter_dataset(threads)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads some; a test or notebook does not parse them
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=ahead),
            worker_init_fn=_end_with_parent,
        )
    return iter(dataset)


def _end_with_parent(*_: Any) -> None:
    """Makes a worker process end when its parent process ends, and not before.

    A scheduler sends its signals to all processes, but the parent still has to save when it gets
    one.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
