"""How numbers stand in messages, and what is said about files that cannot be written."""

from pathlib import Path

import pytest

from mbv3_jax.core.errors import UsageError, counted, plain
from mbv3_jax.core.files import check_can_be_written


def test_numbers_and_what_they_count():
    assert [counted(n, "image") for n in (0, 1, 2, 4096)] == [
        *("0 images", "1 image", "2 images", "4,096 images"),
    ]
    assert [counted(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1e6, 4, "1,000,000"),
        (56.5154, 4, "56.52"),
        (9999.4, 4, "9999"),
        (10_000, 4, "10,000"),
        (-12_345.6, 4, "-12,346"),
        (1234.5, 3, "1,234"),
        (0.01234567, 4, "0.01235"),
    ],
)
def test_large_numbers_have_no_exponent(value, digits, text):
    assert plain(value, digits) == text


def test_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    check_can_be_written("--out", tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path / "none" / "x", f"{tmp_path}/none: no such folder"),
        (tmp_path / "file" / "x", f"{tmp_path}/file: no such folder"),
        (tmp_path, f"{tmp_path} is a folder"),
        (tmp_path / ("x" * 300), f"cannot write {tmp_path}/{'x' * 300}: File name too long"),
    ):
        with pytest.raises(UsageError) as caught:
            check_can_be_written("--out", path)
        assert str(caught.value) == f"--out: {message}"

    def refuse(self, mode):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"^--out: cannot write .*/x: Permission denied$"):
        check_can_be_written("--out", tmp_path / "x")
