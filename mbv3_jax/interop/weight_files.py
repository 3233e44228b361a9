"""Files of weights of other libraries: PyTorch's .pth, .safetensors, Keras' .weights.h5 and older.

Tensors are a dict of name -> float32 array, with the names that `mapping` uses. Reading a file
never runs code from it.
"""

import collections
import dataclasses
import hashlib
import io
import math
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import open_atomically, read_bytes
from mbv3_jax.core.limits import OverLimit, Total, check_archive
from mbv3_jax.core.packages import need
from mbv3_jax.interop.mapping import BOOKKEEPING

# Library -> the endings of files that are read.
SUFFIXES = {
    "timm": (".safetensors", ".pth"),
    "torchvision": (".pth", ".safetensors"),
    "keras": (".weights.h5", ".keras", ".h5"),
}
# Library -> the endings of files that are written.
WRITABLE = {
    "timm": (".safetensors", ".pth"),
    "torchvision": (".pth", ".safetensors"),
    "keras": (".weights.h5",),
}
_ALIASES = {".pt": ".pth", ".bin": ".pth", ".tar": ".pth", ".hdf5": ".h5"}
# Where training scripts put the state dict among other things; averaged weights come first.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
_FLOATS = ("float32", "float16", "bfloat16")

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The contents of a file.

    tensors: by name.
    sha256, md5: hashes of the file.
    part: the key of a training script's checkpoint that held the tensors; None if they were at
      the top level.
    """

    tensors: Tensors
    sha256: str
    md5: str
    part: str | None = None


def suffix(path: Path) -> str:
    """The format that the ending of a file name stands for, such as ".pth" or ".weights.h5"."""
    if path.name.endswith(".weights.h5"):
        return ".weights.h5"
    return _ALIASES.get(path.suffix, path.suffix)


def read(library: str, path: Path) -> WeightFile:
    """Reads a file of weights.

    Args:
      library: "timm", "torchvision" or "keras".
      path: the file; its ending decides the format.

    Raises:
      UsageError: the file does not exist, has another format, is damaged or holds more than
        tensors, or the package that reads it is not installed.
    """
    format_ = suffix(path)
    if format_ not in SUFFIXES[library]:
        listed = ", ".join(SUFFIXES[library])
        raise UsageError(f"--weights={path}: files of {library} end in {listed}")
    try:
        data = read_bytes(path)
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    readers: dict[str, Callable[[bytes], tuple[str | None, Tensors]]] = {
        ".pth": _read_pth,
        ".safetensors": _read_safetensors,
    }
    try:
        part, tensors = readers.get(format_, _read_keras)(data)
    except (UsageError, OverLimit) as e:
        raise UsageError(f"{path}: {e}") from e
    except Exception as e:  # readers raise errors of many kinds for a damaged file
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise UsageError(f"{path} cannot be read as {format_}, is it whole? {reason}") from e
    return WeightFile(
        tensors={name: _as_float32(path, name, tensor) for name, tensor in tensors.items()},
        sha256=hashlib.sha256(data).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        part=part,
    )


def check_writable(library: str, path: Path) -> str:
    """Checks that a file may be written for a library, and returns its format.

    Raises:
      UsageError: the file exists, or the library does not load files with this ending.
    """
    format_ = suffix(path)
    if format_ not in WRITABLE[library]:
        listed = ", ".join(WRITABLE[library])
        raise UsageError(f"--out={path}: files written for {library} end in {listed}")
    if path.exists():
        raise UsageError(f"--out={path}: already exists")
    return format_


def write(library: str, path: Path, tensors: Tensors, *, metadata: Mapping[str, dict]) -> None:
    """Writes a file that the library loads strictly, whole or not at all.

    Args:
      library: "timm", "torchvision" or "keras".
      path: a new file; its ending decides the format.
      tensors: by name, in order.
      metadata: the metadata of PyTorch's state dict: module name -> entries.

    Raises:
      UsageError: as for `check_writable`, or the package that writes it is not installed.
      RunError: the file cannot be written.
    """
    format_ = check_writable(library, path)
    if format_ == ".pth":
        data = _pth_bytes(tensors, metadata)
    elif format_ == ".safetensors":
        data = _safetensors_bytes(tensors)
    else:
        data = _keras_bytes(tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path) as file:
            file.write(data)
    except OSError as e:
        raise RunError(f"cannot write {path}: {e.strerror}") from e


def _as_float32(path: Path, name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.name not in _FLOATS:
        raise UsageError(f"{path}: {name} is {value.dtype.name}, expected {', '.join(_FLOATS)}")
    with np.errstate(over="ignore"):  # said below, of any type
        result = np.asarray(value, np.float32)
    if not np.isfinite(result).all():
        raise UsageError(f"{path}: {name} holds values that are not finite numbers")
    return result


def _read_pth(data: bytes) -> tuple[str | None, Tensors]:
    torch = need("torch", "reading .pth", "weights")
    if zipfile.is_zipfile(io.BytesIO(data)):  # else a file of an old PyTorch, which is not packed
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_archive(archive)
            pickled = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".pkl"))
    else:
        pickled = data
    if b"bytearray" in pickled:  # PyTorch allows it, and would fill one of any size with zeros
        raise UsageError("it holds a bytearray, expected tensors only; not loaded")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the version of pickle
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        # PyTorch's messages advise to load the file without this protection.
        found = re.search(r"GLOBAL ([\w.]+)", str(e))
        if found:
            raise UsageError(
                "it holds more than tensors, which could run code when loaded; not loaded "
                f"(it asks for {found[1]})"
            ) from e
        raise UsageError(
            "it cannot be read as .pth, is it whole? It is no pickle of tensors"
        ) from e
    part = None
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            part, loaded = key, loaded[key]
            break
    if not isinstance(loaded, dict) or not all(torch.is_tensor(v) for v in loaded.values()):
        raise UsageError(
            "it holds no state dict (a dict of tensors), at the top level or under "
            + ", ".join(_NESTED)
        )
    tensors = {}
    total = _total()
    for name, value in loaded.items():
        total.add(4 * value.numel())  # an expanded tensor repeats the few values that are stored
        value = value.detach()
        if value.dtype == torch.bfloat16:  # a type that NumPy does not have
            value = value.float()
        tensors[name.removeprefix("module.")] = value.numpy()
    return part, _without_bookkeeping(tensors)


def _read_safetensors(data: bytes) -> tuple[str | None, Tensors]:
    load = need("safetensors.numpy", "reading .safetensors", "weights").load
    import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)

    return None, _without_bookkeeping(load(data))


def _total() -> Total:
    """The sum of the sizes of tensors as float32, to be added to before each is read."""
    return Total("MBV3_MAX_UNPACKED_BYTES", "as float32, its tensors have")


def _without_bookkeeping(tensors: Tensors) -> Tensors:
    return {n: t for n, t in tensors.items() if not n.endswith(BOOKKEEPING)}


def _read_keras(data: bytes) -> tuple[str | None, Tensors]:
    h5py = need("h5py", "reading Keras' files", "weights")
    if data[:2] == b"PK":  # .keras: a zip archive
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_archive(archive)
            data = archive.read("model.weights.h5")
    with h5py.File(io.BytesIO(data), "r") as file:
        _check_self_contained(h5py, file)
        if "layers" in file and "layer_names" not in file.attrs:
            return None, _read_datasets(h5py, file)
        group = file.get("model_weights", file)
        if "layer_names" not in group.attrs:
            raise UsageError("it is not a Keras file: it has neither layers nor layer_names")
        return None, _read_older(group)


def _check_self_contained(h5py: Any, file: Any) -> None:
    """Checks that all values lie in the file itself.

    HDF5 reads what a file refers to like the file's own values: a file from a stranger could so
    bring bytes of any file of this machine into weights that are then passed on. Keras writes no
    links but hard ones, so that soft ones need not be followed to find out where they lead.

    Raises:
      UsageError: they do not; the message has the name of the first such dataset or link.
    """

    # HDF5 stops at the first name that one of these returns; it does not pass exceptions on.
    def find_link(name: bytes, link: Any) -> str | None:
        if link.type == h5py.h5l.TYPE_HARD:
            return None
        kind = "a soft" if link.type == h5py.h5l.TYPE_SOFT else "an external"
        return f"{name.decode(errors='backslashreplace')} is {kind} link"

    def find_dataset(name: str, item: Any) -> str | None:
        if not isinstance(item, h5py.Dataset) or not (item.is_virtual or item.external):
            return None
        return f"{name} is a dataset with {'virtual' if item.is_virtual else 'external'} storage"

    outside = file.id.links.visit(find_link, info=True)  # also links that lead nowhere
    outside = outside or file.visititems(find_dataset)
    if outside:
        raise UsageError(f"{outside}, expected only datasets in the file itself")


def _read_datasets(h5py: Any, file: Any) -> Tensors:
    """Reads a Keras 3 file: layers/CLASS_NUMBER/vars/NUMBER.

    The states of optimizers and dropout are left out.
    """
    tensors: Tensors = {}
    total = _total()

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not re.search(r"^optimizer/|/seed_generator/", name):
            tensors[name] = _read_dataset(item, total)

    file.visititems(visit)
    return tensors


def _read_older(group: Any) -> Tensors:
    """Reads a Keras 2 file, which lists its layers in order, with the names of Keras 3."""
    tensors: Tensors = {}
    total = _total()
    counts: dict[str, int] = {}
    for layer in group.attrs["layer_names"]:
        layer = _text(layer)
        names = [_text(n) for n in group[layer].attrs["weight_names"]]
        if not names:
            continue
        values = [_read_dataset(group[layer][n], total) for n in names]
        if len(values) == 4:
            kind = "batch_normalization"
        elif "depthwise" in names[0].rpartition("/")[2] or "depthwise" in layer:
            kind = "depthwise_conv2d"
        else:
            kind = "dense" if values[0].ndim == 2 else "conv2d"
        number = counts[kind] = counts.get(kind, -1) + 1
        place = f"layers/{kind}" + (f"_{number}" if number else "")
        tensors |= {f"{place}/vars/{i}": value for i, value in enumerate(values)}
    return tensors


def _read_dataset(dataset: Any, total: Total) -> np.ndarray:
    # HDF5 unpacks whole chunks, which may be larger than what they are chunks of.
    count = max(dataset.size or 0, math.prod(dataset.chunks or ()))
    total.add(count * max(4, dataset.dtype.itemsize))
    _check_packed_chunks(dataset)
    return dataset[()]


def _check_packed_chunks(dataset: Any) -> None:
    """Refuses chunks that hold more than they declare, which HDF5 unpacks to whatever they hold.

    Raises:
      UsageError: a chunk is larger, or is packed by anything but gzip, whose size can be found
        without unpacking it all.
    """
    from h5py import h5z

    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    packers = [f for f in filters if f not in (h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32)]
    if not packers:
        return
    if packers != [h5z.FILTER_DEFLATE]:
        raise UsageError(f"{dataset.name} is packed by another method than gzip")
    declared = math.prod(dataset.chunks) * dataset.dtype.itemsize
    places: list[tuple[int, ...]] = []
    dataset.id.chunk_iter(lambda chunk: places.append(chunk.chunk_offset))
    for place in places:
        skipped, packed = dataset.id.read_direct_chunk(place)
        if skipped >> filters.index(h5z.FILTER_DEFLATE) & 1:  # stored as it is
            continue
        most = declared + 4  # with the checksum of FILTER_FLETCHER32
        if len(zlib.decompressobj().decompress(packed, most + 1)) > most:
            raise UsageError(f"{dataset.name}: a part of it holds more than {declared:,} bytes")


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _pth_bytes(tensors: Tensors, metadata: Mapping[str, dict]) -> bytes:
    torch = need("torch", "writing .pth", "weights")
    state = collections.OrderedDict(
        (n, torch.from_numpy(np.array(t))) for n, t in _with_bookkeeping(tensors).items()
    )
    if metadata:
        # Where PyTorch keeps the version of each module.
        setattr(state, "_metadata", collections.OrderedDict(metadata))  # noqa: B010
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _safetensors_bytes(tensors: Tensors) -> bytes:
    save = need("safetensors.numpy", "writing .safetensors", "weights").save
    contiguous = {n: np.ascontiguousarray(t) for n, t in _with_bookkeeping(tensors).items()}
    return save(contiguous, metadata={"format": "pt"})


def _with_bookkeeping(tensors: Tensors) -> Tensors:
    """Adds the batch counter that each BatchNorm of PyTorch has, at zero."""
    complete: Tensors = {}
    for name, value in tensors.items():
        complete[name] = value
        if name.endswith(".running_var"):
            complete[name.removesuffix(".running_var") + BOOKKEEPING] = np.zeros((), np.int64)
    return complete


def _keras_bytes(tensors: Tensors) -> bytes:
    h5py = need("h5py", "writing Keras' files", "weights")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, value in tensors.items():
            file[name] = value
    return buffer.getvalue()
