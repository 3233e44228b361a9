"""Reads PyTorch's files: the state dict in them, whatever else a training script has saved.

PyTorch's restricted unpickler reads them (`weights_only`). It knows tensors and plain containers.
Every other class that a file asks for is replaced by a placeholder that keeps nothing and does
nothing; modules of the operating system are refused by PyTorch itself. No class or function that a
file names is ever imported, looked up or called.
"""

import collections
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mbv3_jax.core.errors import UsageError, printable
from mbv3_jax.core.limits import Total, check_archive
from mbv3_jax.core.packages import need
from mbv3_jax.interop import images
from mbv3_jax.interop.layout import has_stem

# Under which keys training scripts keep the network, the most likely first; an averaged copy of it
# has one of the words in its key and comes before all.
_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "module")
_AVERAGED = {"ema", "swa", "averaged", "average"}
_CONFIG = "pretrained_cfg"
_MOST_DEPTH = 4
_MOST_CLASSES = 64  # a checkpoint of a training framework names about twenty
_SAVE = "torch.save(model.state_dict(), FILE.pth)"


def read_pth(data: bytes) -> tuple[str | None, dict[str, np.ndarray], list[str], images.Told]:
    """Reads the bytes of a .pth, .pt, .bin or .ckpt file.

    Returns:
      The keys under which the state dict was, joined by dots (None: at the top level); its
      tensors by name, in their own types; the keys of what lies beside it; and what timm's
      `pretrained_cfg` there says of the images.

    Raises:
      UsageError: there is no state dict, or there are several, or the file is code.
      OverLimit: unpacked, it is too large.
    """
    torch = need("torch", "reading .pth", "weights")
    pickled = data
    if zipfile.is_zipfile(io.BytesIO(data)):  # else a file of an old PyTorch, which is not packed
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_archive(archive)
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                raise UsageError(
                    "it is a TorchScript archive, which holds code; save its state dict instead: "
                    "torch.save(torch.jit.load(FILE).state_dict(), NEW.pth)"
                )
            pickled = b"".join(archive.read(name) for name in names if name.endswith(".pkl"))
    if b"bytearray" in pickled:  # PyTorch allows it, and would fill one of any size with zeros
        raise UsageError("it holds a bytearray, expected tensors only; not loaded")
    loaded, asked = _load(torch, data)
    states = list(_states(torch, loaded))
    if not states:
        if isinstance(loaded, _Placeholder) or _is_module(asked):
            kinds = f" ({printable(asked[0])})" if asked else ""
            raise UsageError(
                f"it holds a whole Python object{kinds}, which is code; save the state dict of the "
                f"network instead: {_SAVE}"
            )
        raise UsageError(
            "it holds no state dict (a dict of tensors), at the top level or under a key such as "
            + ", ".join(_KEYS)
        )
    path, state = _choose(states)
    told: images.Told = {}
    node = loaded
    for key in (*path, None):  # the innermost counts: it is nearest to the network
        if isinstance(config := node.get(_CONFIG), dict):
            told = images.of_timm(config, _CONFIG)
        node = node[key] if key is not None else node
    beside = [str(key) for key in loaded if key not in (path[0], _CONFIG)] if path else []
    total = Total("MBV3_MAX_UNPACKED_BYTES", "as float32, its tensors have")
    tensors = {}
    for name, value in state.items():
        if not torch.is_tensor(value):
            beside += [str(name)] if name != _CONFIG else []
            continue
        total.add(4 * value.numel())  # an expanded tensor repeats the few values that are stored
        value = value.detach()
        if value.dtype == torch.bfloat16:  # a type that NumPy does not have
            value = value.float()
        tensors[str(name)] = value.numpy()
    return ".".join(path) or None, tensors, [printable(name) for name in beside], told


class _Placeholder:
    """Stands for an object of a class that is not loaded; its contents are dropped."""

    def __new__(cls, *_args: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_args: Any):
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class _DictPlaceholder(_Placeholder):
    """For a subclass of dict, into which the file puts its items."""

    def __new__(cls, *_args: Any) -> Any:
        return collections.OrderedDict()


class _ListPlaceholder(_Placeholder):
    """For a subclass of list, to which the file appends its items."""

    def __new__(cls, *_args: Any) -> Any:
        return []


def _load(torch: Any, data: bytes) -> tuple[Any, list[str]]:
    """Loads a file, with placeholders for the classes that PyTorch's unpickler refuses.

    The unpickler says at which class it stopped, so that the file is read again with a placeholder
    for it, until it is read.

    Returns:
      What the file holds, and the names of the classes that it asked for.
    """
    placeholders: dict[str, type] = {}
    for _ in range(_MOST_CLASSES):
        # The message leaves "builtins." out.
        allowed = [
            (kind, prefix + name)
            for name, kind in placeholders.items()
            for prefix in ("", "builtins.")
        ]
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
                warnings.simplefilter("ignore")  # about the version of pickle
                loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return loaded, list(placeholders)
        except Exception as e:  # of many kinds, where placeholders stand for what it expects
            if not placeholders and not isinstance(e, pickle.UnpicklingError):
                raise
            # PyTorch's messages advise to load the file without this protection.
            said = str(e)
            found = re.search(r"Unsupported global: GLOBAL (.+?) was not an allowed", said)
            if found and found[1] not in placeholders:
                placeholders[found[1]] = _placeholder(len(placeholders), _Placeholder)
                continue
            if changed := _container(said, placeholders):
                placeholders |= changed
                continue
            if _is_module(list(placeholders)):
                raise UsageError(
                    f"it holds a whole network, which is code; save its state dict instead: {_SAVE}"
                ) from e
            named = re.search(r"GLOBAL ([\w.]+)", said)
            asked = [named[1]] if named else list(placeholders)[-1:]
            if asked:
                raise UsageError(
                    "it holds more than tensors, which could run code when loaded; not loaded "
                    f"(it asks for {printable(asked[0])})"
                ) from e
            raise UsageError(
                "it cannot be read as .pth; is it complete? It is not a pickle of tensors"
            ) from e
    raise UsageError(f"it asks for more than {_MOST_CLASSES} classes; save {_SAVE} instead")


def _placeholder(number: int, base: type) -> type:
    return type(f"Placeholder{number}End", (base,), {})


def _container(said: str, placeholders: Mapping[str, type]) -> dict[str, type]:
    """The placeholder that was to be filled like a dict or a list, as one that can be."""
    for operation, base in (
        (r"Can only SETITEMS? for", _DictPlaceholder),
        (r"Can only (append to|extend) lists", _ListPlaceholder),
    ):
        for number, (name, kind) in enumerate(placeholders.items()):
            if re.search(operation, said) and f"{kind.__name__}'" in said:
                return {name: _placeholder(number, base)}
    return {}


def _is_module(asked: list[str]) -> bool:
    """Whether the classes are those of a pickled network, whose layers are modules of PyTorch."""
    return any(re.match(r"torch\.nn\.modules\.(?!loss)", name) for name in asked)


def _states(torch: Any, loaded: Any) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yields the state dicts of networks in a file: their keys and themselves.

    Where no dict has the stem of a network that a library has, these are dicts of tensors only.
    """
    found = []
    waiting: collections.deque[tuple[tuple[str, ...], Any]] = collections.deque([((), loaded)])
    seen: set[int] = set()
    while waiting:
        path, node = waiting.popleft()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        tensors = {n: v for n, v in node.items() if isinstance(n, str) and torch.is_tensor(v)}
        if tensors:
            found.append((path, node, tensors))
        if len(path) < _MOST_DEPTH:
            waiting += [((*path, k), v) for k, v in node.items() if isinstance(k, str)]
    networks = [
        (path, node)
        for path, node, tensors in found
        if has_stem({name: tuple(value.shape) for name, value in tensors.items()})
    ]
    plain = [
        (path, node)
        for path, node, tensors in found
        if len(tensors) == len(node) and (not path or path[-1] in _KEYS or _is_average(path))
    ]
    yield from networks or plain


def _choose(
    states: list[tuple[tuple[str, ...], Mapping[str, Any]]],
) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The state dict to read: an averaged one, else the one with the most likely key."""
    averaged = [entry for entry in states if _is_average(entry[0])]
    chosen = averaged or states
    for key in _KEYS:
        likely = [entry for entry in chosen if entry[0] and entry[0][-1] == key]
        if len(chosen) > 1 and likely:
            chosen = likely[:1]
    if len(chosen) > 1:
        listed = ", ".join(printable(".".join(path) or "the top level") for path, _ in chosen)
        raise UsageError(f"it holds several networks ({listed}); save the one to read by itself")
    return chosen[0]


def _is_average(path: tuple[str, ...]) -> bool:
    return any(_AVERAGED & set(re.split(r"[^a-z]+", key.lower())) for key in path)
