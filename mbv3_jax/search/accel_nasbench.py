"""Accel-NASBench: ImageNet accuracy and speed on six devices, 5,138 results of 5,125 networks.

The results are those of github.com/afzalxo/Accel-NASBench (Apache-2.0). An accuracy is the top-1
after a short ImageNet recipe, which ranks networks but is lower than that of a full training. There
are 5,138 results of 5,125 different networks, 13 of which were trained and measured twice. None of
them are part of this package: `fetch` downloads the archive, whose hash is pinned, and `convert`
makes a `NetworkTable` of it.
"""

import gzip
import hashlib
import io
import re
import tarfile
from pathlib import Path
from typing import Any

from mbv3_jax.core.download import DownloadError, download
from mbv3_jax.core.errors import RunError, first_line
from mbv3_jax.core.files import open_regular
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.search.network_table import Column, NetworkTable, make_network_table
from mbv3_jax.search.presets import accel_nasbench
from mbv3_jax.search.space import Point, Space

NAME = "accel_nasbench"  # what stands for the table on the command line and in configurations
SOURCE = "https://github.com/afzalxo/Accel-NASBench, commit 42603572"
LICENSE = "Apache-2.0"
URL = "https://github.com/afzalxo/Accel-NASBench/raw/42603572/anb_dataset/anb_dataset_jsons.tar.gz"
SIZE = 1_173_570
SHA256 = "3520992d42e368b7c08c99fc3f6612855b5b366bf98668a7f19d49f3131aa4ae"
# A file of the archive has 1,350 bytes, and the archive unpacked about 12 MB.
_MAX_FILE, _MAX_UNPACKED = 16_384, 64_000_000

_KEYS = {"depth": "l", "kernel": "k", "expansion": "e", "se": "se"}
# Columns of the table: the group and the field of `platform_perf`, and the unit.
_COSTS = {
    f"{device}_{what}": (f"{what}_{device}", f"{what}_mean", unit)
    for what, unit, devices in (
        ("throughput", "images/s", ("a100", "3090", "tpuv2", "tpuv3", "zcu102", "vck190")),
        ("latency", "ms", ("zcu102", "vck190")),
    )
    for device in devices
}


def fetch(archive: Path | None = None) -> bytes:
    """Returns the published archive, from a file if one is given, else from the network.

    Raises:
      RunError: It cannot be read or downloaded, or is not the published file.
    """
    advice = f"fetch {URL} elsewhere and give --archive=FILE"
    try:
        if archive is not None:
            advice = f"expected the file of {URL}"
            with open_regular(archive) as file:
                data = file.read(SIZE + 1)
        else:
            name = URL.rpartition("/")[2]
            data = download(URL, name, max_bytes=SIZE, is_right=_is_right)
    except (DownloadError, OSError) as e:
        reason = getattr(e, "strerror", None) or first_line(e)
        raise RunError(f"cannot read {archive or URL}: {reason}; {advice}") from e
    if not _is_right(data):
        digest = hashlib.sha256(data).hexdigest()
        size = f"{len(data)} bytes" if len(data) <= SIZE else f"more than {SIZE} bytes"
        raise RunError(
            f"{archive or URL} is not the published archive: {size} with SHA-256 {digest}, "
            f"expected {SIZE} bytes with {SHA256}; {advice}"
        )
    return data


def _is_right(archive: bytes) -> bool:
    return hashlib.sha256(archive).hexdigest() == SHA256


def convert(archive: bytes) -> NetworkTable:
    """Converts the archive to a table; nothing is unpacked to disk.

    Args:
      archive: A gzipped tar of JSON files, one for each network.

    Raises:
      RunError: It is not such an archive.
    """
    space = accel_nasbench()
    try:
        networks: dict[Point, list[dict]] = {}
        for result in _read(archive):
            networks.setdefault(_point(space, result["architecture"]), []).append(result)
        return make_network_table(
            name="Accel-NASBench",
            source=SOURCE,
            license=LICENSE,
            space=space,
            networks=list(networks),
            columns=_columns(list(networks.values())),
        )
    except (EOFError, KeyError, OSError, TypeError, ValueError, tarfile.TarError) as e:
        raise RunError(f"not an archive of Accel-NASBench: {type(e).__name__}: {e}") from e


def _read(archive: bytes) -> list[dict]:
    with gzip.open(io.BytesIO(archive)) as stream:
        unpacked = stream.read(_MAX_UNPACKED + 1)
    if len(unpacked) > _MAX_UNPACKED:
        raise ValueError(f"it unpacks to more than {_MAX_UNPACKED} bytes")
    results = {}
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        for member in tar:
            number = re.fullmatch(r".*/result_(\d+)\.json", member.name)
            if not number or not member.isfile():
                continue
            if member.size > _MAX_FILE:
                raise ValueError(f"{member.name} has {member.size} bytes")
            file = tar.extractfile(member)
            assert file is not None  # a regular file
            results[int(number[1])] = parse_json(file.read(), dict, member.name)
    return [results[number] for number in sorted(results)]


def _point(space: Space, architecture: dict[str, Any]) -> Point:
    return space.canonical(
        [d.choices.index(architecture[f"block{d.stage}_{_KEYS[d.what]}"]) for d in space.decisions]
    )


def _columns(groups: list[list[dict]]) -> dict[str, Column]:
    """Returns the columns; each group is what is known about one network."""
    columns = {
        "top1": Column(
            kind="accuracy",
            unit="%",
            about="ImageNet validation top-1 after the short recipe of Accel-NASBench",
            values=tuple(tuple(r["metrics"]["val_top1"] for r in group) for group in groups),
        )
    }
    for name, (device, field, unit) in _COSTS.items():
        found = [[r["platform_perf"][device][field] for r in group] for group in groups]
        columns[name] = Column(
            kind="cost",
            unit=unit,
            higher_is_better=unit == "images/s",
            values=tuple(tuple(v for v in values if v is not None) for values in found),
        )
    return columns
