"""Writing files of weights that other libraries load: .pth, .safetensors, .weights.h5."""

import collections
import io
from pathlib import Path

import numpy as np

from mbv3_jax.interop.files import need, suffix
from mbv3_jax.interop.mapping import BOOKKEEPING
from mbv3_jax.train.errors import RunError, UsageError

SUFFIXES = {
    "timm": (".safetensors", ".pth"),
    "torchvision": (".pth", ".safetensors"),
    "keras": (".weights.h5",),
}


def check(library: str, path: Path) -> str:
    """The format of a file to write, by its name.

    Raises:
      UsageError: it is there already, or cannot be written for that library.
    """
    format_ = suffix(path)
    if format_ not in SUFFIXES[library]:
        listed = ", ".join(SUFFIXES[library])
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
    format_ = check(library, path)
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
    torch = need("torch", "writing .pth")
    state = collections.OrderedDict(
        (n, torch.from_numpy(np.array(t))) for n, t in _with_bookkeeping(tensors).items()
    )
    if metadata:
        state._metadata = collections.OrderedDict(metadata)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _safetensors(tensors, metadata) -> bytes:
    save = need("safetensors.numpy", "writing .safetensors").save
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
    h5py = need("h5py", "writing Keras' files")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, value in tensors.items():
            file[name] = value
    return buffer.getvalue()
