"""Files are replaced whole, and neighbours are not touched."""

import contextlib
import itertools
import json
import threading
import time

import pytest

from mbv3_jax.core.files import (
    is_temporary,
    open_atomically,
    remove_temporaries,
    replacing,
    write_atomically,
)


def test_the_file_appears_whole_and_neighbours_stay(tmp_path):
    out = tmp_path / "out.npz"
    neighbours = [tmp_path / name for name in ("out.tmp", "out.npz.tmp", ".out.npz.tmp")]
    for path in (out, *neighbours):
        path.write_text("of the user")
    with open_atomically(out) as file:
        file.write(b"new")
        file.flush()
        assert out.read_text() == "of the user"
    assert out.read_bytes() == b"new"
    assert {path.read_text() for path in neighbours} == {"of the user"}
    assert len(list(tmp_path.iterdir())) == 4


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(FileNotFoundError) as caught, replacing(target) as folder:
        folder.mkdir()
        (folder / "file").write_text("half")
        (folder / "none" / "file").write_text("")
    assert caught.value.filename == str(target / "none" / "file")  # the name that the user knows
    assert list(tmp_path.iterdir()) == []
    with replacing(target) as folder:
        folder.mkdir()
        (folder / "file").write_text("whole")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "file").read_text() == "whole"


def test_what_a_killed_process_left_is_removed_and_nothing_of_the_user(tmp_path):
    (tmp_path / ".model.0a1b2c3d.tmp").mkdir()
    for name in (".model.0a1b2c3d.tmp/spec.json", ".spec.json.0a1b2c3d.tmp", "spec.tmp", "a.tmp"):
        (tmp_path / name).write_text("{")
    remove_temporaries(tmp_path, ("model", "spec.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tmp", "spec.tmp"]
    remove_temporaries(tmp_path, ("spec.json",), older=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tmp"]


def test_two_writers_do_not_disturb_each_other(tmp_path):
    out = tmp_path / "out"
    with open_atomically(out) as first, open_atomically(out) as second:
        first.write(b"first")
        second.write(b"second")
    assert out.read_bytes() == b"first"  # its block ended last
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_earlier_file(tmp_path, error):
    out = tmp_path / "out"
    out.write_text("earlier")
    with pytest.raises(error), open_atomically(out) as file:
        file.write(b"half of the n")
        raise error
    assert out.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "no folder" / "out"
    with pytest.raises(FileNotFoundError) as caught, open_atomically(path):
        pass
    assert caught.value.filename == str(path)
    assert ".tmp" not in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught, open_atomically(tmp_path / "folder"):
        pass
    assert ".tmp" not in str(caught.value)


def test_new_files_have_the_rights_that_the_umask_gives(tmp_path):
    with open_atomically(tmp_path / "out"):
        pass
    (tmp_path / "plain").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("out", "plain")}
    assert len(modes) == 1


def test_writing_replaces_the_whole_text(tmp_path):
    path = tmp_path / "summary.json"
    for text in (json.dumps({"long": "text"}), "{}"):
        write_atomically(path, text)
        assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
        assert path.read_text() == text


def test_no_file_of_the_user_is_touched(tmp_path):
    for name in ("results.tmp", "results.json.tmp", ".results.json.tmp"):
        (tmp_path / name).write_text("mine")
    write_atomically(tmp_path / "results.json", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "results.tmp": "mine",
        "results.json.tmp": "mine",
        ".results.json.tmp": "mine",
        "results.json": "new",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".spec.json.0a1b2c3d.tmp", True),
        ("spec.tmp", True),  # of an older version
        (".thesis.tex.0a1b2c3d.tmp", False),
        (".spec.json.tmp", False),
        ("spec.json", False),
        ("thesis.tmp", False),
    ],
)
def test_whose_temporary_file(name, expected):
    assert is_temporary(name, ("spec.json", "config.json")) == expected


def test_nothing_is_left_of_a_folder_into_which_threads_still_write(tmp_path):
    made, ended = threading.Event(), threading.Event()

    def write(folder):
        until = time.monotonic() + 0.3
        for i in itertools.count():
            with contextlib.suppress(FileNotFoundError):  # once the folder is gone
                (folder / str(i)).write_text("")
            if i == 100:
                made.set()
            if time.monotonic() > until:
                break
        ended.set()

    with pytest.raises(OSError, match="full"), replacing(tmp_path / "model") as folder:
        folder.mkdir()
        threading.Thread(target=write, args=(folder,)).start()
        made.wait()
        raise OSError("the disk is full")
    ended.wait()
    assert list(tmp_path.iterdir()) == []
