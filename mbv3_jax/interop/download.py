"""Downloads published weights, from the Hugging Face Hub or by URL, and checks their hashes."""

import hashlib
import os
import urllib.request
from pathlib import Path

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import open_atomically
from mbv3_jax.core.packages import need
from mbv3_jax.interop.pretrained import HUB_FILE, Pretrained

_TIMEOUT_S = 30


def fetch(entry: Pretrained, *, revision: str | None = None) -> tuple[Path, dict[str, str]]:
    """Returns the file of published weights, from a cache or the network, after a hash check.

    Args:
      entry: the weights.
      revision: a commit of the Hub repository; None takes the newest one.

    Returns:
      The file, and its origin: {"hub", "revision" (the commit), "file"} or {"url"}.

    Raises:
      UsageError: a revision was given for weights that are not on the Hub, or the Hub's client is
        not installed.
      RunError: the file cannot be downloaded, or is not what was published.
    """
    if entry.hub:
        return _fetch_from_hub(entry, entry.hub, revision)
    if revision is not None:
        raise UsageError(f"--revision={revision}: {entry.name} is not on the Hub")
    return _fetch_from_url(entry), {"url": entry.url}


def _fetch_from_hub(
    entry: Pretrained, hub: str, revision: str | None
) -> tuple[Path, dict[str, str]]:
    client_package = need("huggingface_hub", "downloading from the Hugging Face Hub", "weights")
    try:
        client = client_package.HfApi()
        info = client.model_info(hub, revision=revision, files_metadata=True)
        # Ask by commit, so that the file is the one whose hash was listed.
        path = Path(client.hf_hub_download(hub, HUB_FILE, revision=info.sha))
        lfs_entries = {sibling.rfilename: sibling.lfs for sibling in info.siblings}
    except Exception as e:  # the layers of the client raise errors of many kinds
        raise _download_error(entry, e) from e
    lfs = lfs_entries.get(HUB_FILE)
    if lfs is None:
        raise RunError(f"{entry.url} publishes no hash of {HUB_FILE}")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != lfs.sha256:
        raise RunError(
            f"{path} is not what {entry.url} publishes: SHA-256 {sha256}, expected {lfs.sha256}"
        )
    return path, {"hub": hub, "revision": info.sha, "file": HUB_FILE}


def _fetch_from_url(entry: Pretrained) -> Path:
    path = _cache_folder() / entry.file_name
    try:
        if path.is_file() and not _hash_mismatch(entry, path.read_bytes()):
            return path
        with urllib.request.urlopen(entry.url, timeout=_TIMEOUT_S) as response:
            data = response.read()
        mismatch = _hash_mismatch(entry, data)
        if not mismatch:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_atomically(path) as file:
                file.write(data)
    except OSError as e:  # URLError and HTTPError among them
        raise _download_error(entry, e) from e
    if mismatch:
        raise RunError(f"{entry.url} is not what was published: {mismatch}")
    return path


def _cache_folder() -> Path:
    """The cache of files fetched by URL; the Hub's client has a cache of its own."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mbv3_jax"


def _hash_mismatch(entry: Pretrained, data: bytes) -> str | None:
    """How the data differs from the published hashes; None if it does not, or none are known."""
    for kind, published in (("sha256", entry.sha256), ("md5", entry.md5)):
        digest = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
        if published and not digest.startswith(published):
            return f"{kind} {digest}, expected {published}"
    return None


def _download_error(entry: Pretrained, error: Exception) -> RunError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines or [type(error).__name__])[0][:200]
    return RunError(
        f"cannot download {entry.name} from {entry.url}: {reason}. Without a network: fetch "
        f"{entry.file_name} elsewhere and give --weights=FILE --network={entry.name}"
    )
