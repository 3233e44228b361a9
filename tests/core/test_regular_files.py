"""Only regular files are read: nothing waits for a FIFO, or reads a device without an end."""

import os
import socket
from pathlib import Path

import pytest
from time_limit import time_limit

from mbv3_jax.core.errors import RunError
from mbv3_jax.core.files import expand_user, open_regular, read_bytes, read_text
from mbv3_jax.core.json_values import read_json


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))  # an absolute path may be too long for a socket


MAKERS = {
    "a FIFO, not a regular file": _fifo,
    "a device, not a regular file": lambda path: path.symlink_to("/dev/zero"),
    "not a regular file": _socket,
    "a folder, not a regular file": Path.mkdir,
    "Too many levels of symbolic links": lambda path: path.symlink_to(path.name),
    "a link to gone, which does not exist": lambda path: path.symlink_to("gone"),
    "No such file or directory": lambda path: None,
}


@pytest.mark.parametrize("reason", MAKERS)
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path, reason):
    path = tmp_path / "z"
    MAKERS[reason](path)
    for named in (path, str(path)):
        with pytest.raises(OSError) as caught, time_limit(2):
            read_bytes(named)
        assert caught.value.strerror == reason
        assert os.fspath(caught.value.filename) == str(path)
    with pytest.raises(RunError, match=f"^{path} is damaged: {reason}$"):
        read_json(path, dict)


def test_a_link_to_a_regular_file_is_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"one\r\ntwo\rthree\n")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read(4) == b"one\r"
    assert read_bytes(tmp_path / "link") == b"one\r\ntwo\rthree\n"
    assert read_text(tmp_path / "link") == "one\ntwo\nthree\n"


def test_no_descriptor_is_left_open(tmp_path):
    _fifo(tmp_path / "z")
    with open_regular(__file__) as file:
        following = file.fileno()
    for _ in range(10):
        with pytest.raises(OSError), time_limit(2):
            read_bytes(tmp_path / "z")
    with open_regular(__file__) as file:
        assert file.fileno() == following


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/a", "data.name") == tmp_path / "a"
    assert expand_user("a/~", "data.name") == Path("a/~")
    message = r"data.name: got ~no_such_user/a, but there is no home folder ~no_such_user; .*\./~no"
    with pytest.raises(ValueError, match=message):
        expand_user("~no_such_user/a", "data.name")
