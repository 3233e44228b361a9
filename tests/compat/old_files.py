"""Helpers that make the fixtures of tests/compat and compare with them, without the package."""

import hashlib
import json
import os
import tarfile
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

HERE = Path(__file__).resolve().parent
# Of a record: differ from run to run.
_TIMES = ("images_per_second",)


def unpack(name: str, folder: Path) -> None:
    """Unpacks NAME.tar.xz into `folder`."""
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        # Python 3.11 has filters from 3.11.4 on; the archives are our own.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safe)


def records(run: Path) -> list[dict]:
    """metrics.jsonl without what differs from time to time."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]


def contents(folder: Path) -> dict[str, str]:
    """Every file's path and the SHA-256 of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weights_digest(run: Path, step: int) -> str:
    """SHA-256 of the weights, BatchNorm statistics and averages of a checkpoint."""
    folder = run.absolute() / "checkpoints" / str(step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(folder, ocp.args.PyTreeRestore(restore_args=plain))
    found = hashlib.sha256()
    kept = {name: state.get(name) for name in ("variables", "ema")}
    for path, value in jax.tree_util.tree_leaves_with_path(kept):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def tensors_digest(file: Path) -> str:
    """SHA-256 of the tensors of a .pth file with their names, but for counters of batches."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(torch.load(file).items()):
        if not name.endswith("num_batches_tracked"):
            found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def draw(folder: Path) -> None:
    """Four pictures without noise, so that any way of resizing gives nearly the same."""
    folder.mkdir()
    y, x = np.mgrid[0:44, 0:60]
    for i in range(4):
        waves = [np.sin(y * (0.1 + 0.15 * i) + phase) for phase in (0.0, 0.3, 0.6)]
        pixels = np.stack([127 + 80 * wave + (x - 30) * 0.5 * i for wave in waves], axis=-1)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")


def machine() -> dict:
    """On machines where all of this is equal, the same program gives the same bits."""
    info = Path("/proc/cpuinfo")
    fields = dict(
        (part.strip() for part in line.partition(":")[::2])
        for line in (info.read_text().splitlines() if info.is_file() else ())
        if line.partition(":")[0].strip() in ("model name", "cpu family", "model", "flags")
    )
    fields["flags"] = hashlib.sha256(fields.get("flags", "").encode()).hexdigest()[:12]
    return {
        **fields,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "devices": jax.device_count(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
    }
