"""Reads Keras' files, of version 3 and older ones, with the names of version 3.

`layers/conv2d_3/vars/0` is the first variable of the fourth Conv2D; a network that is a layer of
another is `layers/functional/layers/conv2d_3/vars/0`. Only layers are read.
"""

import io
import math
import re
import zipfile
import zlib
from typing import Any

import numpy as np

from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.core.limits import Total, check_archive
from mbv3_jax.core.packages import need
from mbv3_jax.interop import images

Tensors = dict[str, np.ndarray]

# What is saved beside the layers; tf.keras 2 has metrics there once a network is compiled.
_STATES = re.compile(r"_?(optimizer|loss_tracker|(compiled?_)?(metrics|loss))")
# Of random layers, and of Normalization.
_COUNTER = re.compile(r"/seed_generator/|/normalization(_\d+)?/vars/2$")
# Mean and variance of Normalization: how images are scaled, and no weights.
_NORMALIZATION = re.compile(r"(?:.*/)?normalization(?:_\d+)?/vars/[01]$")
_MOST_VARIABLES = 4  # of one layer: those of BatchNorm
# The order of the variables of a layer in Keras 3.
_VARIABLES = {
    name: i for i, name in enumerate(("gamma", "beta", "moving_mean", "moving_variance"))
} | {"kernel": 0, "depthwise_kernel": 0, "bias": 1, "mean": 0, "variance": 1, "count": 2}


def read_keras(data: bytes) -> tuple[str | None, Tensors, list[str], images.Told]:
    """Reads the bytes of a .weights.h5, .keras or .h5 file.

    Returns:
      None, for Keras has one network in a file; its tensors by name, in their own types; the names
      of what is left out; and what the file says of its images.

    Raises:
      UsageError: it is not a file of Keras, or refers to other files.
      OverLimit: unpacked, it is too large.
    """
    h5py = need("h5py", "reading Keras' files", "weights")
    config: str | bytes | None = None
    if data[:2] == b"PK":  # .keras: a zip archive
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_archive(archive)
            data = archive.read("model.weights.h5")
            config = archive.read("config.json") if "config.json" in archive.namelist() else None
    with h5py.File(io.BytesIO(data), "r") as file:
        _check_self_contained(h5py, file)
        group = file.get("model_weights", file)
        left_out: list[str] = []
        if "layer_names" in group.attrs:
            tensors = _read_older(group)
            config = file.attrs.get("model_config")
        else:
            tensors, left_out = _read_datasets(h5py, file)
            if not tensors:
                raise UsageError("it is not a Keras file: it has neither layers nor layer_names")
    scaling = sorted(name for name in tensors if _NORMALIZATION.match(name))
    values = [tensors.pop(name) for name in scaling]
    if config is None:  # a file of weights alone
        layers = dict.fromkeys(name.rpartition("/vars/")[0] for name in scaling)
        return None, tensors, [*left_out, *layers], {}
    adapted = list(zip(values[::2], values[1::2], strict=True))
    return None, tensors, left_out, images.of_keras(parse_json(config, dict), adapted)


def _check_self_contained(h5py: Any, file: Any) -> None:
    """Checks that all values lie in the file itself.

    HDF5 reads what a file refers to like the file's own values, so a file from a stranger could
    bring bytes of any file of this machine into weights that are then passed on. Keras writes only
    hard links, so soft ones are refused without being followed.

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


def _read_datasets(h5py: Any, file: Any) -> tuple[Tensors, list[str]]:
    """Reads a Keras 3 file: layers/CLASS_NUMBER/vars/NUMBER, at any depth.

    Returns:
      The tensors, and the groups that are no layers: the optimizer, metrics, the state of dropout.
    """
    tensors: Tensors = {}
    left_out: dict[str, None] = {}
    total = Total("MBV3_MAX_UNPACKED_BYTES", "as float32, its tensors have")

    def visit(name: str, item: Any) -> None:
        place = name.replace("\\", "/").replace("_layer_checkpoint_dependencies/", "layers/")
        first = place.partition("/")[0]
        if not isinstance(item, h5py.Dataset) or _COUNTER.search(place):
            return
        if _STATES.match(first):
            left_out[first] = None
        elif "/vars/" in place:
            tensors[place] = _read_dataset(item, total)

    file.visititems(visit)
    return tensors, list(left_out)


def _read_older(group: Any) -> Tensors:
    """Reads a Keras 2 file, which lists its layers in order, with the names of Keras 3.

    A layer that is a network lists all its variables, those that are trained before the others.
    """
    tensors: Tensors = {}
    total = Total("MBV3_MAX_UNPACKED_BYTES", "as float32, its tensors have")
    counts: dict[str, int] = {}
    for layer in group.attrs["layer_names"]:
        layer = _text(layer)
        names = [_text(n) for n in group[layer].attrs["weight_names"]]
        if not names:
            continue
        values = {n: _read_dataset(group[layer][n], total) for n in dict.fromkeys(names)}
        if len(names) <= _MOST_VARIABLES:
            tensors |= _as_layer("", layer, values, counts)
            continue
        # A network: its layers in the order of the pass.
        place = f"layers/{_number('functional', counts)}/"
        layers: dict[str, dict[str, np.ndarray]] = {}
        for name, value in values.items():
            layers.setdefault(name.rpartition("/")[0], {})[name] = value
        inner: dict[str, int] = {}
        for name in sorted(layers, key=_order):
            tensors |= _as_layer(place, name, layers[name], inner)
    return tensors


def _as_layer(
    place: str, layer: str, values: dict[str, np.ndarray], counts: dict[str, int]
) -> Tensors:
    """The variables of a layer under the name that Keras 3 gives it."""
    first, value = next(iter(values.items()))
    if len(values) == 4:
        kind = "batch_normalization"
    elif {_leaf(name) for name in values} >= {"mean", "variance"}:
        kind = "normalization"
        values = {name: value for name, value in values.items() if _leaf(name) != "count"}
    elif "depthwise" in first.rpartition("/")[2] or "depthwise" in layer:
        kind = "depthwise_conv2d"
    else:
        kind = "dense" if value.ndim == 2 else "conv2d"
    ordered = sorted(values, key=lambda name: _VARIABLES.get(_leaf(name), 0))
    place += f"layers/{_number(kind, counts)}"
    return {f"{place}/vars/{i}": values[name] for i, name in enumerate(ordered)}


def _number(kind: str, counts: dict[str, int]) -> str:
    number = counts[kind] = counts.get(kind, -1) + 1
    return f"{kind}_{number}" if number else kind


def _leaf(name: str) -> str:
    return name.rpartition("/")[2].partition(":")[0]


def _order(layer: str) -> tuple[int, int]:
    """Where a layer of keras.applications' MobileNets is in the pass, by its name.

    Such names are `expanded_conv_3_squeeze_excite_conv_1` or, before Keras 3,
    `expanded_conv_3/squeeze_excite/Conv_1`; `block_3_expand_BN`; outside the blocks `Conv`,
    `Conv_1_bn`, `bn_Conv1`. Layers with other names keep their places after these.
    """
    name = layer.lower().replace("/", "_")
    if block := re.search(r"(?:^|_)(?:expanded_conv|block)(?:_(\d+))?_(.*)", name):
        parts = ("expand", "depthwise", "squeeze_excite_conv_1", "squeeze_excite", "project")
        part = next((i for i, p in enumerate(parts) if block[2].startswith(p)), len(parts))
        return 1 + int(block[1] or 0), {2: 3, 3: 2}.get(part, part)
    if re.search(r"(^|_)conv1?(_bn|_batchnorm.*)?$", name):
        return 0, 0
    last = re.search(r"(?:^|_)conv_(\d+)(?:_bn|_batchnorm.*)?$", name)
    return 10_000, int(last[1]) if last else 10_000


def _read_dataset(dataset: Any, total: Total) -> np.ndarray:
    # HDF5 unpacks whole chunks, which may be larger than what they are chunks of.
    count = max(dataset.size or 0, math.prod(dataset.chunks or ()))
    total.add(count * max(4, dataset.dtype.itemsize))
    _check_packed_chunks(dataset)
    value = dataset[()]
    if dataset.attrs.get("dtype") == "bfloat16" and value.dtype.itemsize == 2:
        import ml_dtypes

        return value.view(ml_dtypes.bfloat16)  # a type that HDF5 does not have
    return value


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
