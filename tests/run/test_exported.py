"""Files of jax.export say until when JAX promises to read them, and are opened all the same."""

import datetime
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.run import exported

pytest.importorskip("flatbuffers", reason="jax.export needs the extra export")


@pytest.fixture
def file(tmp_path):
    """file(**promise) -> a file that doubles its input, with this of its metadata changed."""

    def write(**changes):
        path = tmp_path / "double.stablehlo"
        shape = jax.ShapeDtypeStruct((2,), "float32")
        path.write_bytes(jax.export.export(jax.jit(lambda x: 2 * x))(shape).serialize())
        with zipfile.ZipFile(path, "a") as archive:
            made = exported.promise() | changes
            archive.writestr("metadata.json", json.dumps({"jax_export": made}))
        return path

    return write


def double(path):
    opened = exported.open_exported(path, path.read_bytes())
    np.testing.assert_array_equal(opened.call(jnp.ones(2)), [2, 2])


@pytest.mark.parametrize(
    ("version", "exported_on", "until"),
    [
        ("0.10.2", "2026-11-30", "2026-12-16"),  # built on 17 June
        ("99.0", "2026-11-30", "2027-05-31"),  # of which only the day of the export is known
    ],
)
def test_the_promise_counts_from_the_day_jaxlib_was_built(monkeypatch, version, exported_on, until):
    seconds = datetime.datetime(2026, 11, 30, 23, tzinfo=datetime.UTC).timestamp()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(seconds)))
    monkeypatch.setattr(exported.metadata, "version", {"jaxlib": version}.__getitem__)
    assert exported.promise() == {
        "jax": jax.__version__,
        "jaxlib": version,
        "exported": exported_on,
        "readable_until": until,
    }


def test_a_file_past_its_day_is_read_with_a_note(file, capsys):
    path = file(jaxlib="0.4.0", exported="2024-01-02", readable_until="2024-07-02")
    double(path)
    assert capsys.readouterr().err == (
        f"note: {path}: jaxlib 0.4.0 exported it on 2024-01-02, and JAX promised to read it until "
        f"2024-07-02; this is jaxlib {exported.metadata.version('jaxlib')}\n"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"readable_until": "2024-07-02"},  # this jaxlib wrote it, and reads it for ever
        {"jaxlib": "0.4.0", "readable_until": "9999-01-01"},
    ],
)
def test_other_files_are_read_without(file, capsys, changes):
    double(file(**changes))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("changes", [{"readable_until": "soon"}, {"jaxlib": 3}])
def test_damaged_metadata_is_named(file, changes):
    with pytest.raises(ValueError, match=r"double.stablehlo: its metadata: .*(soon|jaxlib)"):
        double(file(**changes))
