"""WebDataset tars: samples, labels, splits, and tars that are damaged or hold something else."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from mbv3_jax.data.source import NotFound, open_pair
from mbv3_jax.data.sources.webdataset import _expanded


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def add(tar, name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def write(path, count=6, first=0, labels="cls", mode="w", more=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for i in range(count):
            add(tar, f"a/{i:03d}.png", png(first + i))
            if labels == "cls":
                add(tar, f"a/{i:03d}.cls", str(i % 2).encode())
            elif labels == "json":
                fields = {"label": ["cat", "dog"][i % 2], "id": 10 + i % 2}
                add(tar, f"a/{i:03d}.json", json.dumps(fields).encode())
        for name, content, fields in more:
            add(tar, name, content, **fields)
    return path


def opened(path, **options):
    return open_pair(f"webdataset:{path}", resolution=8, **options)


def levels(source) -> list[int]:
    return [int(image[0, 0, 0]) for image in source.batch(range(len(source)))["image"]]


def test_shards_of_two_splits(tmp_path):
    for i in range(3):
        write(tmp_path / f"train-{i:03d}.tar", first=10 * i)
    write(tmp_path / "val-000.tar", 4, first=100)
    for path in (tmp_path, tmp_path / "{train-{000..002},val-000}.tar"):
        train, held_out = opened(path)
        assert (train.split, held_out.split) == ("train", "val")
        assert levels(train) == [*range(6), *range(10, 16), *range(20, 26)]
        assert levels(held_out) == [100, 101, 102, 103]
        assert train.class_names == ("0", "1") and train.labels().tolist() == [0, 1] * 9
        assert train.where(7) == f"{tmp_path}/train-001.tar: a/001.png"
    train, held_out = opened(tmp_path / "train-{000..001}.tar", split_fraction=0.25)
    assert (len(train), len(held_out)) == (8, 4)
    assert sorted(levels(train) + levels(held_out)) == [*range(6), *range(10, 16)]


def test_without_splits_a_part_is_held_out_and_labels_may_be_in_json(tmp_path):
    write(tmp_path / "0.tar", 10, labels="json")
    train, held_out = opened(tmp_path)
    assert train.class_names == ("cat", "dog")
    assert (held_out.split, np.bincount(held_out.labels()).tolist()) == ("held_out", [1, 1])
    assert opened(tmp_path / "0.tar", label_column="id")[0].class_names == ("10", "11")


SAMPLES = [
    ([("x.cls", b"0", {})], "without an image: 0.tar: x (cls)"),
    ([("x.png", png(9), {})], "without a label: 0.tar: x"),
    ([("x.png", png(9), {}), ("x.jpg", png(9), {}), ("x.cls", b"0", {})], "with several images"),
    ([("x.png", png(9), {}), ("x.cls", b"\xff", {})], "with a label that cannot be read"),
    ([("x.png", png(9), {}), ("x.json", b"{", {})], "with a label that cannot be read: 0.tar: x"),
    (
        [("x.png", png(9), {}), ("x.json", b'{"label": 1.5}', {})],
        "with a label that is neither a name nor a whole number",
    ),
    (
        [("a/000.png", png(9), {}), ("a/000.cls", b"0", {})],
        "with a key that another sample of its tar has: 0.tar: a/000",
    ),
]


@pytest.mark.parametrize(("more", "reason"), SAMPLES, ids=[reason[:30] for _, reason in SAMPLES])
def test_a_sample_that_cannot_be_used(tmp_path, more, reason):
    write(tmp_path / "0.tar", 4, more=more)
    with pytest.raises(ValueError) as caught:
        opened(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: 1 sample cannot be used, {reason}")
    train, held_out = opened(tmp_path, on_error="skip")
    assert sorted(levels(train) + levels(held_out)) == [0, 1, 2, 3]
    assert any(note.startswith(f"1 sample left out, {reason}") for note in train.notes)


def test_other_entries_are_said(tmp_path):
    more = [
        ("a", b"", {"type": tarfile.DIRTYPE}),
        ("x.png", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("a/._000.png", b"mac", {}),
        ("../../out.png", png(50), {}),
        ("../../out.cls", b"1", {}),
    ]
    file = write(tmp_path / "0.tar", 4, more=more)
    train, held_out = opened(tmp_path)
    assert sorted(levels(train) + levels(held_out)) == [0, 1, 2, 3, 50]
    assert set(train.notes) == {
        f"{file}: 1 links and other entries that hold no file",
        f"{file}: 1 hidden files",
        f"{file}: 2 names that lead out of the tar, which are read where they lie",
    }


@pytest.mark.parametrize("cut", ["in an image", "in a header", "after a member"])
def test_a_tar_that_is_cut_off(tmp_path, cut):
    file = write(tmp_path / "0.tar", 6)
    with tarfile.open(file) as tar:
        last = next(member for member in tar if member.name == "a/005.png")
    at = {
        "in an image": last.offset_data + 20,
        "in a header": last.offset + 100,
        "after a member": last.offset,
    }[cut]
    file.write_bytes(file.read_bytes()[:at])
    reason = {"in an image": "cut off in the middle of a/005.png"}.get(cut, "cut off after byte")
    with pytest.raises(ValueError, match=f"{tmp_path}: {file}: {reason}"):
        opened(tmp_path)
    train, held_out = opened(tmp_path, on_error="skip")
    assert sorted(levels(train) + levels(held_out)) == [0, 1, 2, 3, 4]
    assert any(note.startswith(f"{file}: {reason}") for note in train.notes)


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path):
    file = write(tmp_path / "0.tar", 6)
    with tarfile.open(file) as tar:
        member = next(member for member in tar if member.name == "a/003.png")
    content = bytearray(file.read_bytes())
    content[member.offset + 150] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged at byte {member.offset:,}; samples may be miss"):
        opened(tmp_path)


def test_files_that_are_no_such_tars(tmp_path):
    with pytest.raises(NotFound, match=r"no .tar in this folder"):
        opened(tmp_path)
    write(tmp_path / "0.tar.gz", mode="w:gz")
    with pytest.raises(NotFound, match=r"0.tar.gz is compressed, unpack it to a plain .tar"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"compressed; unpack it to a plain .tar"):
        opened(tmp_path / "0.tar.gz")
    (tmp_path / "1.tar").write_bytes(b"nothing like it" * 100)
    with pytest.raises(ValueError, match=r"1.tar: damaged after byte 0: "):
        opened(tmp_path / "1.tar")
    with pytest.raises(NotFound, match=r"2.tar: no such file \(2 tars of 3 missing\)"):
        opened(tmp_path / "{1..3}.tar")
    write(tmp_path / "both" / "train-0.tar")
    write(tmp_path / "both" / "other.tar")
    with pytest.raises(ValueError, match=r"other.tar: neither its name nor its folder's says"):
        opened(tmp_path / "both")


def test_patterns():
    assert sorted(_expanded("a-{008..010}.tar")) == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert sorted(_expanded("{8..10}")) == ["10", "8", "9"]
    assert sorted(_expanded("{10..11}{a,b}")) == ["10a", "10b", "11a", "11b"]
    assert _expanded("plain.tar") == ["plain.tar"]
    for pattern in ("{0..999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(ValueError, match="stands for more than 100,000 tars"):
            _expanded(pattern)
