"""Small files of weights that hold much are refused before it is unpacked."""

import io
import zipfile
import zlib

import numpy as np
import pytest
from peer_compare import import_peer

from mbv3_jax.core.errors import UsageError
from mbv3_jax.interop import weight_files

LIMIT = "MBV3_MAX_UNPACKED_BYTES"


def _refused(library, path, size):
    with pytest.raises(UsageError) as caught:
        weight_files.read(library, path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert f"{size:,} bytes, more than the limit of" in said and f"{LIMIT} raises it" in said
    return said


def test_expanded_tensors(tmp_path, monkeypatch):
    torch = import_peer("torch", "files of weights")
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path)
    assert path.stat().st_size < 5000
    _refused("timm", path, 4 * 10**12)
    for kind in (torch.float32, torch.bfloat16):
        torch.save({name: torch.ones(1, dtype=kind).expand(10, 10) for name in "ab"}, path)
        monkeypatch.setenv(LIMIT, "799")
        _refused("timm", path, 800)
        monkeypatch.setenv(LIMIT, "100000")
        assert weight_files.read("timm", path).tensors["b"].shape == (10, 10)


def test_packed_pth(tmp_path, monkeypatch):
    torch = import_peer("torch", "files of weights")
    stream, path = io.BytesIO(), tmp_path / "x.pth"
    torch.save({"a": torch.zeros(100_000)}, stream)
    with (
        zipfile.ZipFile(stream) as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
        total = sum(member.file_size for member in packed.infolist())
    assert path.stat().st_size < 10_000
    monkeypatch.setenv(LIMIT, "399999")
    assert "unpacked, it has" in _refused("timm", path, total)


@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle_that_asks_for_memory(tmp_path, packed):
    torch = import_peer("torch", "files of weights")

    class Bytes:
        def __reduce__(self):
            return bytearray, (1000,)

    path = tmp_path / "x.pth"
    torch.save({"a": Bytes()}, path, _use_new_zipfile_serialization=packed)
    with pytest.raises(UsageError, match="it holds a bytearray, expected tensors only"):
        weight_files.read("timm", path)


def _keras(path, *, shape, chunks=None, count=1, maxshape=None):
    h5py = import_peer("h5py", "files of weights")
    with h5py.File(path, "w") as file:
        for i in range(count):
            name = f"layers/dense_{i}/vars/0"
            file.create_dataset(
                name, shape, np.float32, chunks=chunks, maxshape=maxshape, compression="gzip"
            )


def test_declared_datasets(tmp_path, monkeypatch):
    path = tmp_path / "x.weights.h5"
    _keras(path, shape=(30_000, 100_000), chunks=(1000, 1000))
    assert path.stat().st_size < 10_000
    _refused("keras", path, 12 * 10**9)
    _keras(path, shape=(10, 10), count=2)
    monkeypatch.setenv(LIMIT, "799")
    _refused("keras", path, 800)
    monkeypatch.setenv(LIMIT, "800")
    assert len(weight_files.read("keras", path).tensors) == 2


def test_chunks_that_are_larger_than_their_dataset(tmp_path):
    path = tmp_path / "x.weights.h5"
    _keras(path, shape=(2, 2), chunks=(30_000, 10_000), maxshape=(None, None))
    _refused("keras", path, 12 * 10**8)


def test_chunks_that_hold_more_than_they_declare(tmp_path):
    h5py = import_peer("h5py", "files of weights")
    path, name = tmp_path / "x.weights.h5", "layers/dense/vars/0"
    packed = zlib.compress(bytes(10**7), 9)
    with h5py.File(path, "w") as file:
        made = file.create_dataset(name, (100,), np.float32, chunks=(50,), compression="gzip")
        made.id.write_direct_chunk((0,), packed)
    assert path.stat().st_size < 20_000
    with pytest.raises(UsageError, match=rf"/{name}: a part of it holds more than 200 bytes"):
        weight_files.read("keras", path)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, (100,), np.float32, chunks=(50,), compression="lzf")
        file[name][:] = 1
    with pytest.raises(UsageError, match=rf"/{name} is packed by another method than gzip"):
        weight_files.read("keras", path)


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"fletcher32": True}])
@pytest.mark.parametrize("is_random", [True, False])
def test_packed_datasets_are_read(tmp_path, options, is_random):
    h5py = import_peer("h5py", "files of weights")
    path, name = tmp_path / "x.weights.h5", "layers/dense/vars/0"
    values = np.random.default_rng(0).normal(size=(300, 70)).astype(np.float32) * is_random
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=values, chunks=(64, 64), compression="gzip", **options)
    np.testing.assert_array_equal(weight_files.read("keras", path).tensors[name], values)


def test_older_files_that_list_a_layer_often(tmp_path, monkeypatch):
    h5py = import_peer("h5py", "files of weights")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["a"] * 10
        file.create_group("a").attrs["weight_names"] = ["kernel"]
        file["a/kernel"] = np.zeros((10, 10), np.float32)
    monkeypatch.setenv(LIMIT, "4000")
    assert len(weight_files.read("keras", path).tensors) == 10
    monkeypatch.setenv(LIMIT, "1000")
    _refused("keras", path, 1200)


def test_a_keras_archive(tmp_path, monkeypatch):
    import_peer("h5py", "files of weights")
    path = tmp_path / "x.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10**6))
    assert path.stat().st_size < 2000
    monkeypatch.setenv(LIMIT, "999999")
    assert "unpacked, it has" in _refused("keras", path, 10**6)
