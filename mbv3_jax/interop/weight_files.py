"""Weight files of other libraries: PyTorch's .pth, .safetensors, Keras' .weights.h5 and older.

Tensors are a dict of name -> float32 array, with the names that `mapping` uses: `layout` removes
what stands before them. Reading a file never runs code in it.
"""

import collections
import dataclasses
import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import open_atomically, read_bytes
from mbv3_jax.core.limits import OverLimit
from mbv3_jax.core.packages import need
from mbv3_jax.interop import images, layout
from mbv3_jax.interop.keras_files import read_keras
from mbv3_jax.interop.mapping import BOOKKEEPING
from mbv3_jax.interop.pth_files import read_pth

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
_ALIASES = {".pt": ".pth", ".bin": ".pth", ".tar": ".pth", ".ckpt": ".pth", ".hdf5": ".h5"}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_FLOATS = ("float32", "float16", "bfloat16", "float64")

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The contents of a file.

    tensors: those of the network, by the library's names.
    sha256, md5: hashes of the file.
    part: the keys of a training script's checkpoint that held the tensors, joined by dots; None if
      they were at the top level.
    prefix: what stood before the library's names.
    beside: tensors without that prefix, by their names in the file: a head, perhaps.
    left_out: what else the file holds and is not read, by name: optimizer, epoch, ...
    told: what the file, or timm's config.json beside it, says of its images.
    """

    tensors: Tensors
    sha256: str
    md5: str
    part: str | None = None
    prefix: str = ""
    beside: Tensors = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    told: images.Told = dataclasses.field(default_factory=dict)


def suffix(path: Path) -> str:
    """The format that the ending of a file name stands for, such as ".pth" or ".weights.h5"."""
    if path.name.endswith(".weights.h5"):
        return ".weights.h5"
    return _ALIASES.get(path.suffix, path.suffix)


def endings(library: str) -> tuple[str, ...]:
    """The endings of files of a library that are read, those that it writes itself first."""
    formats = SUFFIXES[library]
    return *formats, *(alias for alias, format_ in _ALIASES.items() if format_ in formats)


def read(library: str, path: Path) -> WeightFile:
    """Reads a file of weights.

    Args:
      library: "timm", "torchvision" or "keras".
      path: the file; its ending decides the format.

    Raises:
      UsageError: the file does not exist, has another format, is damaged, holds code, no or
        several networks, or the package that reads it is not installed.
    """
    format_ = suffix(path)
    if format_ not in SUFFIXES[library]:
        listed = ", ".join(SUFFIXES[library])
        raise UsageError(f"--weights={path}: files of {library} end in {listed}")
    try:
        data = read_bytes(path)
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    if data.startswith(_LFS_POINTER):
        raise UsageError(
            f"{path} is a pointer of Git LFS, which stands for the file: `git lfs pull` in its "
            "folder fetches it"
        )
    readers: dict[str, Callable[[bytes], tuple[str | None, Tensors, list[str], images.Told]]] = {
        ".pth": read_pth,
        ".safetensors": _read_safetensors,
    }
    try:
        part, raw, left_out, told = readers.get(format_, read_keras)(data)
        place = layout.locate(library, {name: value.shape for name, value in raw.items()})
    except (UsageError, OverLimit) as e:
        raise UsageError(f"{path}: {e}") from e
    except Exception as e:  # readers raise errors of many kinds for a damaged file
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise UsageError(f"{path} cannot be read as {format_}; is it complete? {reason}") from e
    # Counters, statistics of metrics and the like are no weights.
    is_weight = {
        n: raw[n].dtype.name in _FLOATS and np.isfinite(raw[n]).all() for n in place.beside
    }
    return WeightFile(
        tensors={name: _as_float32(path, name, raw[old]) for name, old in place.inside.items()},
        sha256=hashlib.sha256(data).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        part=part,
        prefix=place.prefix,
        beside={n: _as_float32(path, n, raw[n]) for n, yes in is_weight.items() if yes},
        left_out=(*left_out, *layout.summary(n for n, yes in is_weight.items() if not yes)),
        told=(images.beside(path) if library == "timm" else {}) | told,
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
    """Atomically writes a file that the library loads strictly.

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


def _read_safetensors(data: bytes) -> tuple[str | None, Tensors, list[str], images.Told]:
    load = need("safetensors.numpy", "reading .safetensors", "weights").load
    import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)

    try:
        return None, load(data), [], {}
    except KeyError as e:  # a type that NumPy does not have
        raise UsageError(
            f"it has tensors of the type {e.args[0]}, expected {', '.join(_FLOATS)}"
        ) from e


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
