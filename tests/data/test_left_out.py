"""Images behind links and with unusual endings are read; what is left out is counted."""

import os

import numpy as np
import pytest
from PIL import Image, features
from time_limit import time_limit

from mbv3_jax.core.files import read_text
from mbv3_jax.data import files
from mbv3_jax.data.prepare import check
from mbv3_jax.data.source import NotFound, open_pair


def save(path, value=7, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, **options)


@pytest.fixture
def classes(tmp_path):
    """Two images in each of two classes."""
    for name in ("cat", "dog"):
        for i in range(2):
            save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def found(root, **options):
    """The paths of all images, and what is said about the others."""
    pair = open_pair(f"folder:{root}", resolution=8, **options)
    paths = [os.path.relpath(s.where(i), root) for s in pair for i in range(len(s))]
    return sorted(paths), pair[0].notes


def test_linked_folders_in_a_class_are_read(classes, tmp_path):
    save(tmp_path / "more" / "deep" / "9.png")
    (classes / "dog" / "linked").symlink_to(tmp_path / "more")
    paths, notes = found(classes)
    assert "dog/linked/deep/9.png" in paths and len(paths) == 5
    assert notes == ()
    assert files.find_files([f"{classes}/dog"])[-1] == f"{classes}/dog/linked/deep/9.png"


def test_links_that_lead_back_or_twice_are_left_out_and_counted(classes, tmp_path):
    save(tmp_path / "more" / "9.png")
    (tmp_path / "more" / "back").symlink_to(classes / "dog")  # dog/linked/back is dog
    (tmp_path / "more" / "self").symlink_to(tmp_path / "more")
    (classes / "dog" / "linked").symlink_to(tmp_path / "more")
    (classes / "dog" / "twice").symlink_to(tmp_path / "more")
    (classes / "dog" / "up").symlink_to("..")
    (classes / "cat" / "sub").mkdir()
    (classes / "cat" / "sub" / "here").symlink_to(".")
    paths, notes = found(classes)
    assert paths == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/linked/9.png"]
    assert notes == (
        "5 links to folders not followed, which are read anyway or hold the link: "
        f"{classes}/cat/sub/here, {classes}/dog/linked/back, {classes}/dog/linked/self, ...",
    )
    lines = []
    check(open_pair(f"folder:{classes}", resolution=8)[0], 1, lines.append)
    assert f"  note: {notes[0]}" in lines


def test_many_links_to_each_other_end(classes, tmp_path):
    """Each of 30 folders has two links to the next: 2**30 paths, if all were followed."""
    for i in range(30):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).symlink_to(tmp_path / str(i + 1))
    save(tmp_path / "30" / "last.png")
    (classes / "dog" / "links").symlink_to(tmp_path / "0")
    with time_limit(30):
        paths, _ = found(classes)
    assert sum(path.endswith("last.png") for path in paths) == 1


def test_a_link_to_what_is_hidden_is_followed(classes):
    save(classes / "dog" / ".store" / "9.png")
    (classes / "dog" / "shown").symlink_to(classes / "dog" / ".store")
    assert found(classes)[0][-1] == "dog/shown/9.png"


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JFIF", ".mpo", ".jp2", ".pnm", ".avif"])
def test_unusual_endings_are_images(classes, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    kinds = {".jp2": "JPEG2000", ".pnm": "PPM", ".avif": "AVIF"}
    save(classes / "dog" / f"odd{suffix}", 90, format=kinds.get(suffix, "JPEG"))
    assert f"dog/odd{suffix}" in found(classes)[0]
    named = files.find_files([f"{classes}/dog"])
    assert named[-1] == f"{classes}/dog/odd{suffix}"
    image = files.Files(named[-1:], 8, {})[0]["image"]
    assert abs(int(image[0, 0, 0]) - 90) <= 3


def test_heic_is_read_where_pillow_reads_it(classes, monkeypatch):
    (classes / "dog" / "phone.HEIC").write_bytes(b"...")
    files.suffixes.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Image, "registered_extensions", lambda: {".heic": "HEIF"})
            assert files.find_files([f"{classes}/dog"])[-1].endswith("phone.HEIC")
        files.suffixes.cache_clear()
        monkeypatch.setattr(Image, "registered_extensions", dict)
        said = []
        assert len(files.find_files([f"{classes}/dog"], report=said.append)) == 2
        assert said == [
            f"{classes}/dog: 1 file left out, without the name of an image (.heic 1; .heic is read "
            "with the package pillow-heif)"
        ]
        with pytest.raises(ValueError, match=r"phone.HEIC: not an image .* read with the package"):
            found(classes)
    finally:
        files.suffixes.cache_clear()


def test_what_is_left_out_of_a_folder_is_counted(classes):
    for name in ("a.txt", "b.txt", "c.cr2", "README"):
        (classes / "dog" / name).write_text("x")
    (classes / "dog" / "up").symlink_to("..")
    said = []
    assert len(files.find_files([f"{classes}/dog"], report=said.append)) == 2
    assert said == [
        f"{classes}/dog: 4 files left out, without the name of an image (.txt 2, no ending 1, "
        ".cr2 1)",
        f"1 link to folders not followed, which are read anyway or hold the link: {classes}/dog/up",
    ]
    (classes / "none").mkdir()
    (classes / "none" / "a.nef").write_text("x")
    with pytest.raises(NotFound, match=r"no image in this folder; 1 file left out.*\.nef 1"):
        files.find_files([f"{classes}/none"])
    with pytest.raises(ValueError, match=r"In this class: \.txt 2, no ending 1, \.cr2 1"):
        found(classes / "..", train_split="data", split_fraction=0.5)


def test_a_byte_order_mark_is_no_part_of_a_list(classes, tmp_path):
    (tmp_path / "list.txt").write_bytes(f"\ufeff{classes}/dog/0.png\r\n".encode())
    assert files.find_files([f"@{tmp_path}/list.txt"]) == [f"{classes}/dog/0.png"]
    assert read_text(tmp_path / "list.txt") == f"{classes}/dog/0.png\n"


def test_hidden_images_are_counted(classes):
    for name in ("._0.png", ".1.JPG", ".DS_Store"):
        (classes / "cat" / name).write_bytes(b"x")
    (classes / "dog" / ".thumbnails").mkdir()
    (classes / "dog" / ".thumbnails" / "0.png").write_bytes(b"x")
    expected = (
        f"2 hidden files with the name of an image not read: {classes}/cat/.1.JPG, "
        f"{classes}/cat/._0.png",
        f"1 hidden folder not read: {classes}/dog/.thumbnails",
    )
    paths, notes = found(classes)
    assert len(paths) == 4 and notes == expected
    said = []
    assert len(files.find_files([str(classes)], report=said.append)) == 4
    assert said == list(expected)
    (classes / "Cat").mkdir()
    (classes / "Cat" / ".a.png").write_bytes(b"x")
    reason = r"Cat: an empty class folder; .*; 1 hidden file with the name of an image not read: "
    with pytest.raises(ValueError, match=reason):
        found(classes)
    save(classes / "Cat" / "a.png")
    assert "Cat and cat are taken for two classes" in found(classes)[1]
    only = classes / "only"
    only.mkdir()
    (only / ".a.png").write_bytes(b"x")
    with pytest.raises(NotFound, match=r"no image in this folder; 1 hidden file with the name"):
        files.find_files([str(only)])
