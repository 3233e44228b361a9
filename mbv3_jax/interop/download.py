"""Fetching published weights: by revision from the Hugging Face Hub, or by URL; then by hash."""

import hashlib
import os
import urllib.request
from pathlib import Path

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.packages import need
from mbv3_jax.interop.pretrained import Pretrained

HUB_FILE = "model.safetensors"
_TIMEOUT_S = 30


def cache_folder() -> Path:
    """Where files fetched by URL are kept; the Hub's client has a cache of its own."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mbv3_jax"


def fetch(entry: Pretrained, *, revision: str | None = None) -> tuple[Path, dict]:
    """The file of published weights, from a cache or the network, its hash checked.

    Args:
      entry: which weights.
      revision: commit of a Hub repository; None takes the newest, and the origin says which.

    Returns:
      The file, and where it is from: {"hub", "revision", "file", "sha256"} or {"url"}.

    Raises:
      UsageError: a revision for weights that are not on the Hub, or its client is missing.
      RunError: it cannot be fetched, or is not what was published.
    """
    if entry.hub:
        return _from_hub(entry, revision)
    if revision is not None:
        raise UsageError(f"--revision={revision}: {entry.name} is not on the Hub")
    return _from_url(entry), {"url": entry.url}


def _from_hub(entry: Pretrained, revision: str | None) -> tuple[Path, dict]:
    hub = need("huggingface_hub", "downloading from the Hugging Face Hub", "weights")
    where = f"https://huggingface.co/{entry.hub}"
    try:
        client = hub.HfApi()
        info = client.model_info(entry.hub, revision=revision, files_metadata=True)
        # By commit, so that what is read is what the Hub's list of hashes was about.
        path = Path(client.hf_hub_download(entry.hub, HUB_FILE, revision=info.sha))
        listed = {s.rfilename: s.lfs for s in info.siblings}
    except Exception as e:  # of whatever layer of the client
        raise _failed(entry, where, e) from e
    if listed.get(HUB_FILE) is None:
        raise RunError(f"{where} publishes no hash of {HUB_FILE}")
    wanted, got = listed[HUB_FILE].sha256, hashlib.sha256(path.read_bytes()).hexdigest()
    if got != wanted:
        raise RunError(f"{path} is not what {where} publishes: SHA-256 {got}, expected {wanted}")
    return path, {"hub": entry.hub, "revision": info.sha, "file": HUB_FILE}


def _from_url(entry: Pretrained) -> Path:
    name = entry.url.rpartition("/")[2]
    path = cache_folder() / name
    try:
        if path.is_file() and not _mismatch(entry, path.read_bytes()):
            return path
        with urllib.request.urlopen(entry.url, timeout=_TIMEOUT_S) as response:
            data = response.read()
        wrong = _mismatch(entry, data)
        if not wrong:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{name}.{os.getpid()}.tmp")
            aside.write_bytes(data)
            aside.replace(path)
    except OSError as e:  # URLError and HTTPError are such
        raise _failed(entry, entry.url, e) from e
    if wrong:
        raise RunError(f"{entry.url} is not what was published: {wrong}")
    return path


def _mismatch(entry: Pretrained, data: bytes) -> str | None:
    """What is wrong with the bytes, by the hash that is published, if one is."""
    for kind, wanted in (("sha256", entry.sha256), ("md5", entry.md5)):
        got = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
        if wanted and not got.startswith(wanted):
            return f"{kind} {got}, expected {wanted}"
    return None


def _failed(entry: Pretrained, where: str, error: Exception) -> RunError:
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    reason = (lines or [type(error).__name__])[0][:200]
    file = HUB_FILE if entry.hub else entry.url.rpartition("/")[2]
    return RunError(
        f"cannot download {entry.name} from {where}: {reason}. Without a network: fetch {file} "
        f"elsewhere and give --weights=FILE --network={entry.name}"
    )
