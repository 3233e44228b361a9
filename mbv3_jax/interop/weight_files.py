"""Reading files of weights: PyTorch's .pth, .safetensors, Keras' .weights.h5, .keras and older .h5.

Each is read as {name: float32 array}, names as `mapping` has them. Reading runs no code from the
file.
"""

import collections
import dataclasses
import hashlib
import io
import re
import zipfile
from pathlib import Path

import numpy as np

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.packages import need
from mbv3_jax.interop.mapping import BOOKKEEPING

# By library: what its files end in.
SUFFIXES = {
    "timm": (".safetensors", ".pth"),
    "torchvision": (".pth", ".safetensors"),
    "keras": (".weights.h5", ".keras", ".h5"),
}
_ALIASES = {".pt": ".pth", ".bin": ".pth", ".tar": ".pth", ".hdf5": ".h5"}
# Where training scripts put the state dict among other things: the averaged weights first.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
_FLOATS = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a file holds: tensors by name, and for messages and records where they were."""

    path: Path
    format: str
    tensors: dict[str, np.ndarray]
    sha256: str
    md5: str
    inside: str | None = None  # which part of a training script's checkpoint


def suffix(path: Path) -> str:
    """The format that a file's name asks for, ".pth" or ".weights.h5"; "" for none."""
    if path.name.endswith(".weights.h5"):
        return ".weights.h5"
    return _ALIASES.get(path.suffix, path.suffix)


def read(library: str, path: Path) -> Source:
    """Reads a file of weights.

    Raises:
      UsageError: no such file, one of another format, damaged, or with more than tensors in it;
        or a package that reads it is not installed.
    """
    format_ = suffix(path)
    if format_ not in SUFFIXES[library]:
        listed = ", ".join(SUFFIXES[library])
        raise UsageError(f"--weights={path}: files of {library} end in {listed}")
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    reader = {".pth": _read_pth, ".safetensors": _read_safetensors}.get(format_, _read_keras)
    try:
        inside, tensors = reader(data)
    except UsageError as e:
        raise UsageError(f"{path}: {e}") from e
    except Exception as e:  # whatever a damaged file makes its reader raise
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise UsageError(f"{path} cannot be read as {format_}, is it whole? {reason}") from e
    return Source(
        path=path,
        format=format_,
        tensors={n: _float32(path, n, t) for n, t in tensors.items()},
        sha256=hashlib.sha256(data).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        inside=inside,
    )


def _float32(path: Path, name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.name not in _FLOATS:
        raise UsageError(f"{path}: {name} is {value.dtype.name}, expected {', '.join(_FLOATS)}")
    return np.asarray(value, np.float32)


def _read_pth(data: bytes):
    torch = need("torch", "reading .pth", "weights")
    import pickle

    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        reason = next((x for x in str(e).splitlines() if "GLOBAL" in x or "global" in x), "")
        if not reason:
            raise
        raise UsageError(
            "it holds more than tensors, which could run code when loaded; not loaded "
            f"({reason.strip()[:200]})"
        ) from e
    inside = None
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            inside, loaded = key, loaded[key]
            break
    if not isinstance(loaded, dict) or not all(torch.is_tensor(v) for v in loaded.values()):
        raise UsageError(
            "it holds no state dict (a dict of tensors), alone or under " + ", ".join(_NESTED)
        )
    tensors = {}
    for name, value in loaded.items():
        value = value.detach()
        if value.dtype == torch.bfloat16:  # NumPy has no such type
            value = value.float()
        tensors[name.removeprefix("module.")] = value.numpy()
    return inside, _without_bookkeeping(tensors)


def _read_safetensors(data: bytes):
    load = need("safetensors.numpy", "reading .safetensors", "weights").load
    import ml_dtypes  # noqa: F401  (with it NumPy has bfloat16)

    return None, _without_bookkeeping(load(data))


def _without_bookkeeping(tensors):
    return {n: t for n, t in tensors.items() if not n.endswith(BOOKKEEPING)}


def _read_keras(data: bytes):
    h5py = need("h5py", "reading Keras' files", "weights")
    if data[:2] == b"PK":  # .keras: a zip archive
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read("model.weights.h5")
    with h5py.File(io.BytesIO(data), "r") as file:
        if "layers" in file and "layer_names" not in file.attrs:
            return None, _read_datasets(h5py, file)
        group = file.get("model_weights", file)
        if "layer_names" not in group.attrs:
            raise UsageError("it is no file of Keras: it has neither layers nor layer_names")
        return None, _read_older(group)


def _read_datasets(h5py, file) -> dict[str, np.ndarray]:
    """Keras 3: layers/CLASS_NUMBER/vars/NUMBER. States of optimizers and dropout are left out."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not re.search(r"^optimizer/|/seed_generator/", name):
            found[name] = item[()]

    file.visititems(visit)
    return found


def _read_older(group) -> dict[str, np.ndarray]:
    """Keras 2: groups named as the layers, listed in order; named here as Keras 3 names them."""
    found, counts = {}, {}
    for layer in group.attrs["layer_names"]:
        layer = _text(layer)
        names = [_text(n) for n in group[layer].attrs["weight_names"]]
        if not names:
            continue
        values = [group[layer][n][()] for n in names]
        if len(values) == 4:
            kind = "batch_normalization"
        elif "depthwise" in names[0].rpartition("/")[2] or "depthwise" in layer:
            kind = "depthwise_conv2d"
        else:
            kind = "dense" if values[0].ndim == 2 else "conv2d"
        number = counts[kind] = counts.get(kind, -1) + 1
        place = f"layers/{kind}" + (f"_{number}" if number else "")
        found |= {f"{place}/vars/{i}": value for i, value in enumerate(values)}
    return found


def _text(name) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


# Writing files of weights that other libraries load: .pth, .safetensors, .weights.h5.

WRITABLE = {
    "timm": (".safetensors", ".pth"),
    "torchvision": (".pth", ".safetensors"),
    "keras": (".weights.h5",),
}


def check_writable(library: str, path: Path) -> str:
    """The format of a file to write, by its name.

    Raises:
      UsageError: it is there already, or cannot be written for that library.
    """
    format_ = suffix(path)
    if format_ not in WRITABLE[library]:
        listed = ", ".join(WRITABLE[library])
        raise UsageError(f"--out={path}: files written for {library} end in {listed}")
    if path.exists():
        raise UsageError(f"--out={path}: is there already")
    return format_


def write(library: str, path: Path, tensors: dict[str, np.ndarray], *, metadata: dict) -> None:
    """Writes a file that the library loads strictly; whole or not at all.

    Args:
      library: "timm", "torchvision" or "keras".
      path: a new file; its suffix decides the format.
      tensors: by name, in order.
      metadata: for PyTorch's own state dict: module name -> its entries.

    Raises:
      UsageError: as `check`, or a package that writes it is not installed.
      RunError: it cannot be written.
    """
    format_ = check_writable(library, path)
    writer = {".pth": _pth, ".safetensors": _safetensors, ".weights.h5": _keras}[format_]
    data = writer(tensors, metadata)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        aside.replace(path)
    except OSError as e:
        aside.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {e.strerror}") from e


def _pth(tensors, metadata) -> bytes:
    torch = need("torch", "writing .pth", "weights")
    state = collections.OrderedDict(
        (n, torch.from_numpy(np.array(t))) for n, t in _with_bookkeeping(tensors).items()
    )
    if metadata:
        state._metadata = collections.OrderedDict(metadata)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _safetensors(tensors, metadata) -> bytes:
    save = need("safetensors.numpy", "writing .safetensors", "weights").save
    plain = {n: np.ascontiguousarray(t) for n, t in _with_bookkeeping(tensors).items()}
    return save(plain, metadata={"format": "pt"})


def _with_bookkeeping(tensors):
    """Adds the counter that each BatchNorm of PyTorch has, at zero."""
    found = {}
    for name, value in tensors.items():
        found[name] = value
        if name.endswith(".running_var"):
            found[name.removesuffix(".running_var") + BOOKKEEPING] = np.zeros((), np.int64)
    return found


def _keras(tensors, metadata) -> bytes:
    h5py = need("h5py", "writing Keras' files", "weights")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, value in tensors.items():
            file[name] = value
    return buffer.getvalue()
