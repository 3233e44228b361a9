"""Limits are checked before anything is made, are named, and can be raised."""

import io
import zipfile
from pathlib import Path

import pytest

from mbv3_jax.core.files import read_bytes
from mbv3_jax.core.limits import LIMITS, OverLimit, Total, check_archive, check_limit, limit


def test_the_message_says_how_to_raise_it(monkeypatch):
    check_limit("MBV3_MAX_BLOCKS", 256, "there are")
    message = (
        "there are 5,000 blocks, more than the limit of 256; the environment variable "
        "MBV3_MAX_BLOCKS raises it"
    )
    with pytest.raises(OverLimit, match=f"^{message}$"):
        check_limit("MBV3_MAX_BLOCKS", 5000, "there are")
    with pytest.raises(OverLimit, match=r"there are over 10\^18 blocks"):
        check_limit("MBV3_MAX_BLOCKS", 10**5000, "there are")
    monkeypatch.setenv("MBV3_MAX_BLOCKS", "5000")
    check_limit("MBV3_MAX_BLOCKS", 5000, "there are")


@pytest.mark.parametrize("text", ["many", "0", "-1", "1e9"])
def test_a_limit_that_is_no_number(monkeypatch, text):
    monkeypatch.setenv("MBV3_MAX_BLOCKS", text)
    with pytest.raises(OverLimit, match=f"MBV3_MAX_BLOCKS: got '{text}' in the environment"):
        limit("MBV3_MAX_BLOCKS")


def test_the_documents_list_all_limits():
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    for name, entry in LIMITS.items():
        assert f"| `{name}` | {entry.default:,} |" in text


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("MBV3_MAX_BLOCKS", "")
    assert limit("MBV3_MAX_BLOCKS") == LIMITS["MBV3_MAX_BLOCKS"].default


def test_a_sum(monkeypatch):
    monkeypatch.setenv("MBV3_MAX_UNPACKED_BYTES", "10")
    total = Total("MBV3_MAX_UNPACKED_BYTES", "it has")
    total.add(6)
    total.add(4)
    with pytest.raises(OverLimit, match="it has 11 bytes"):
        total.add(1)


def test_archives_are_judged_by_what_they_hold(monkeypatch):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            archive.writestr(name, bytes(100_000))
    assert len(stream.getvalue()) < 1000
    monkeypatch.setenv("MBV3_MAX_UNPACKED_BYTES", "200000")
    with zipfile.ZipFile(stream) as archive:
        check_archive(archive)
        monkeypatch.setenv("MBV3_MAX_UNPACKED_BYTES", "199999")
        with pytest.raises(OverLimit, match="unpacked, it has 200,000 bytes"):
            check_archive(archive)


def test_large_files_are_not_read(tmp_path, monkeypatch):
    with (tmp_path / "z.jpg").open("wb") as file:
        file.truncate(10**12)  # takes no space
    with pytest.raises(OSError) as caught:
        read_bytes(tmp_path / "z.jpg")
    assert caught.value.strerror.startswith("it has 1,000,000,000,000 bytes, more than the limit")
    (tmp_path / "small").write_bytes(bytes(11))
    monkeypatch.setenv("MBV3_MAX_FILE_BYTES", "11")
    assert len(read_bytes(tmp_path / "small")) == 11
    monkeypatch.setenv("MBV3_MAX_FILE_BYTES", "10")
    with pytest.raises(OSError):
        read_bytes(tmp_path / "small")
