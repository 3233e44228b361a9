"""Files are replaced whole, and nobody's files beside them are touched."""

import pytest

from mbv3_jax.core.files import open_atomically


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


def test_new_files_have_the_rights_that_the_umask_gives(tmp_path):
    with open_atomically(tmp_path / "out"):
        pass
    (tmp_path / "plain").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("out", "plain")}
    assert len(modes) == 1
