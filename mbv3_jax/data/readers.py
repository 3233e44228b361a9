"""Reading ahead by Grain: threads, worker processes."""

import multiprocessing
import os
import signal
import threading

import grain
from absl import flags

from mbv3_jax.data.source import Source


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
