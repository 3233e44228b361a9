"""Batches: each example once per epoch, whoever reads it, and no example lost silently."""

import gc
import io
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray
from PIL import Image

from mbv3_jax.data import loader
from mbv3_jax.data.decode import Encoded
from mbv3_jax.data.source import BadExample
from mbv3_jax.data.sources.synthetic import Synthetic

ROOT = Path(__file__).resolve().parents[2]
BATCH, EPOCH = 8, 50  # 6.25 batches an epoch


@pytest.fixture(scope="module")
def source():
    return Synthetic("train", 8, num_examples=EPOCH)


class Album(Encoded):
    """Grey images of 9x7, whose value is their index; those in `broken` are no images."""

    name, split, resolution = "album", "train", 4
    class_names = ("even", "odd")
    fingerprint = "album"

    def __init__(self, length: int, broken=(), unknown=()):
        super().__init__({})
        self._length, self._broken, self._unknown = length, set(broken), set(unknown)

    def __len__(self):
        return self._length

    def where(self, index):
        return f"/album/{index}.png"

    def read(self, index):
        if index in self._broken:
            return b"not an image", 0
        file = io.BytesIO()
        Image.new("L", (9, 7), index).save(file, "png")
        return file.getvalue(), -1 if index in self._unknown else index % 2


def take(batches, count: int) -> list[dict]:
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def train(source, count: int, batch_size=BATCH, seed=0, **options) -> list[dict]:
    return take(loader.train_batches(source, batch_size=batch_size, seed=seed, **options), count)


def assert_same(ours: list[dict], theirs: list[dict]):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def values(batches: list[dict]) -> np.ndarray:
    """The indices of album images, in the order in which they came."""
    return np.concatenate([b["image"][:, 0, 0, 0] for b in batches])


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_each_epoch_has_every_example_once(batch_size):
    epochs = 3
    batches = train(Album(EPOCH), -(-epochs * EPOCH // batch_size), batch_size)
    seen = values(batches)[: epochs * EPOCH].reshape(epochs, EPOCH)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(EPOCH))
    assert np.mean(seen[0] == seen[1]) < 0.2  # in another order


class Slopes(Album):
    """An album of slopes, of which every crop is another image; the label is the index."""

    class_names = tuple(map(str, range(EPOCH)))

    def read(self, index):
        file = io.BytesIO()
        Image.linear_gradient("L").save(file, "png")
        return file.getvalue(), index


def test_repeated_images_have_views_of_their_own_whoever_reads_them():
    album = Slopes(EPOCH)
    whole = train(album, 12, repeats=4)
    for batch in whole:
        views = batch["image"].reshape(4, 2, -1)
        labels = batch["label"].reshape(4, 2)
        assert (labels == labels[0]).all() and labels[0, 0] != labels[0, 1]
        assert len(np.unique(views[:, 0], axis=0)) > 1 < len(np.unique(views[:, 1], axis=0))
    assert_same(whole[7:], train(album, 5, repeats=4, start_step=7))
    halves = [train(album, 12, repeats=4, process_index=i, process_count=2) for i in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(np.concatenate([p["image"] for p in parts]), batch["image"])
    with pytest.raises(ValueError, match=r"^data.repeats: got 0"):
        train(album, 1, repeats=0)


@pytest.mark.parametrize("start", [1, 6, 7, 20])
def test_resuming_continues_where_it_stopped(source, start):
    whole = train(source, start + 4)
    assert_same(whole[start:], train(source, 4, start_step=start))


def test_views_are_resumed_too():
    whole = train(Album(EPOCH), 9)
    assert_same(whole[5:], train(Album(EPOCH), 4, start_step=5))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_batch(source, count):
    whole = train(source, 9)
    parts = [train(source, 9, process_index=i, process_count=count) for i in range(count)]
    joined = [
        {k: np.concatenate([p[k] for p in step]) for k in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


class Uneven(Album):
    """An album of which every tenth image is of the second class."""

    def labels(self):
        return (np.arange(len(self)) % 10 == 0).astype(np.int32)

    def read(self, index):
        return super().read(index)[0], int(self.labels()[index])


def test_balanced_batches_are_the_same_whoever_reads_them():
    album = Uneven(EPOCH)
    whole = train(album, 26, balanced=True)
    labels = np.concatenate([batch["label"] for batch in whole])[: 4 * EPOCH]
    assert labels.reshape(4, EPOCH).sum(1).tolist() == [25] * 4
    assert_same(whole[7:], train(album, 19, balanced=True, start_step=7, num_workers=2))
    halves = [
        train(album, 26, balanced=True, process_index=i, process_count=2, num_threads=2)
        for i in range(2)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        for name, wanted in batch.items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), wanted)
    with pytest.raises(
        ValueError, match=r"^data.balanced: got True, but album does not know the l"
    ):
        train(Album(EPOCH), 1, balanced=True)


def test_threads_change_nothing(source):
    assert_same(train(source, 20), train(source, 20, num_threads=3, prefetch_batches=1))


def test_workers_change_nothing():
    album = Album(200)
    whole = train(album, 4, batch_size=150)  # three chunks a batch
    assert_same(whole, train(album, 4, batch_size=150, num_workers=2))
    assert_same(
        whole[3:], train(album, 1, batch_size=150, start_step=3, num_workers=1, num_threads=2)
    )


def test_seeds_change_order_and_views():
    a, b = (train(Album(EPOCH), 5, seed=seed) for seed in (0, 1))
    assert np.mean(values(a) == values(b)) < 0.3
    assert_same(a, train(Album(EPOCH), 5, seed=0))


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_has_every_example_once(batch_size, count):
    batch_size *= count
    parts = [
        take(
            loader.eval_batches(
                Album(EPOCH), batch_size=batch_size, process_index=i, process_count=count
            ),
            1000,
        )
        for i in range(count)
    ]
    assert {len(p) for p in parts} == {-(-EPOCH // batch_size)}
    for batch in itertools.chain(*parts):
        assert batch["image"].shape == (batch_size // count, 4, 4, 3)
        assert batch["mask"].dtype == np.float32
    counted = [
        v
        for part in parts
        for b in part
        for v, m in zip(b["image"][:, 0, 0, 0], b["mask"], strict=True)
        if m
    ]
    assert sorted(counted) == list(range(EPOCH))


def test_evaluation_is_the_same_with_workers():
    album = Album(EPOCH)
    assert_same(
        take(loader.eval_batches(album, batch_size=16), 9),
        take(loader.eval_batches(album, batch_size=16, num_workers=2), 9),
    )


@pytest.mark.parametrize("count", [2, 9])
def test_no_shared_memory_of_workers_is_kept(count):
    gc.disable()  # else it may come by chance
    try:
        batches = loader.eval_batches(Album(EPOCH), batch_size=16, num_workers=2)
        take(batches, count)
        kept = [x for x in gc.get_objects() if isinstance(x, SharedMemoryArray)]
    finally:
        gc.enable()
    assert not kept


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("album", "message"),
    [
        (Album(EPOCH, broken=[17]), "/album/17.png: cannot decode 12 bytes as an image"),
        (Album(EPOCH, unknown=[17]), "/album/17.png: label -1, expected 0 to 1"),
    ],
    ids=["broken", "label"],
)
def test_an_unusable_example_is_named(album, message, workers):
    with pytest.raises(BadExample, match=message):
        train(album, 7, num_workers=workers)
    with pytest.raises(BadExample, match=message):
        take(loader.eval_batches(album, batch_size=BATCH, num_workers=workers), 7)


def test_skipped_in_training_the_next_one_stands_in():
    said, broken = [], [17, 18, 30]
    album = Album(EPOCH, broken)
    good = train(Album(EPOCH), 25)  # four epochs
    batches = loader.train_batches(
        album, batch_size=BATCH, seed=0, on_error="skip", on_skip=said.append
    )
    ours = values(take(batches, 25))
    expected = values(good)
    for bad, stand_in in ((17, 19), (18, 19), (30, 31)):
        expected[expected == bad] = stand_in
    np.testing.assert_array_equal(ours, expected)
    assert {k.partition(":")[0]: n for k, n in batches.skipped.items()} == {
        "/album/17.png": 4,
        "/album/18.png": 4,
        "/album/30.png": 4,
    }
    assert sorted(m.partition(":")[0] for m in said) == [
        "skipped /album/17.png",
        "skipped /album/18.png",
        "skipped /album/30.png",
    ]


def test_skipped_in_evaluation_is_masked_and_counted():
    album = Album(EPOCH, broken=[0, 30, EPOCH - 1])
    batches = loader.eval_batches(album, batch_size=16, on_error="skip", on_skip=lambda _: None)
    read = take(batches, 9)
    assert sum(b["mask"].sum() for b in read) == EPOCH - 3
    assert sum(b["unreadable"].sum() for b in read) == 3  # the padding repeats one, uncounted
    assert list(batches.skipped.values()) == [1, 1, 1]


def test_too_many_in_a_row_end_the_run_all_the_same():
    album = Album(200, broken=range(200))
    with pytest.raises(BadExample, match="cannot decode"):
        train(album, 1, on_error="skip", on_skip=lambda _: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, expected a whole number of at least 1"),
        ({"process_count": 3}, "batch_size: got 8, expected a multiple of the 3 processes"),
        ({"process_index": 1}, "process_index: got 1 of 1 processes"),
        ({"seed": -1}, "seed: got -1, expected a whole number from 0"),
        ({"seed": 2**32}, "seed: got 4294967296, expected"),
        ({"start_step": -1}, "start_step: got -1, expected 0 or more"),
        ({"num_workers": -1}, "num_workers: got -1, expected 0 or more"),
        ({"num_threads": 0}, "num_threads: got 0, expected 1 or more"),
        ({"prefetch_batches": 0}, "prefetch_batches: got 0, expected 1 or more"),
        ({"on_error": "ignore"}, "data.on_error: got 'ignore', expected one of 'raise', 'skip'"),
    ],
)
def test_what_is_out_of_range(source, options, message):
    with pytest.raises(ValueError, match=message):
        loader.train_batches(source, **{"batch_size": BATCH, "seed": 0, **options})


def test_no_examples():
    with pytest.raises(ValueError, match="data album/train: no examples"):
        loader.eval_batches(Album(0), batch_size=1)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_workers_end_with_a_killed_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from mbv3_jax.data import loader\n"
        "from mbv3_jax.data.sources.synthetic import Synthetic\n"
        "if __name__ == '__main__':\n"
        "    source = Synthetic('train', 8)\n"
        "    batches = loader.train_batches(source, batch_size=8, seed=0, num_workers=1)\n"
        "    next(batches)\n"
        "    print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(100)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        workers = [int(pid) for pid in run.stdout.readline().split()]
        run.kill()
    assert workers
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            return
        time.sleep(0.1)
    pytest.fail(f"workers {workers} are still there")
