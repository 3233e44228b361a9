"""Downloads published weights, from the Hugging Face Hub or by URL, and checks their hashes."""

import hashlib
from pathlib import Path

from mbv3_jax.core.download import DownloadError, cache_folder, download, within_deadline
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.core.limits import check_limit, limit
from mbv3_jax.core.packages import need
from mbv3_jax.interop.pretrained import HUB_FILE, Pretrained


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
        info = within_deadline(
            lambda: client.model_info(hub, revision=revision, files_metadata=True)
        )
        lfs_entries = {sibling.rfilename: sibling.lfs for sibling in info.siblings}
        size = next((s.size for s in info.siblings if s.rfilename == HUB_FILE), None)
        check_limit("MBV3_MAX_FILE_BYTES", size or 0, f"{HUB_FILE} has")
        # Ask by commit, so that the file is the one whose hash was listed. The client shows the
        # progress and resumes by itself.
        path = Path(
            within_deadline(lambda: client.hf_hub_download(hub, HUB_FILE, revision=info.sha))
        )
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
    path = cache_folder() / entry.file_name
    try:
        if path.is_file() and not _hash_mismatch(entry, path.read_bytes()):
            return path
        has_hash = entry.sha256 or entry.md5
        data = download(
            entry.url,
            entry.file_name,
            max_bytes=limit("MBV3_MAX_FILE_BYTES"),
            is_right=(lambda data: not _hash_mismatch(entry, data)) if has_hash else None,
        )
        mismatch = _hash_mismatch(entry, data)
        if not mismatch:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
    except (DownloadError, OSError) as e:
        raise _download_error(entry, e) from e
    if mismatch:
        raise RunError(f"{entry.url} is not what was published: {mismatch}")
    return path


def _hash_mismatch(entry: Pretrained, data: bytes) -> str | None:
    """How the data differs from the published hashes; None if it does not, or none are known."""
    for kind, published in (("sha256", entry.sha256), ("md5", entry.md5)):
        digest = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
        if published and not digest.startswith(published):
            return f"{kind} {digest}, expected {published}"
    return None


def _download_error(entry: Pretrained, error: Exception) -> RunError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines or [type(error).__name__])[0][:300]
    return RunError(
        f"cannot download {entry.name} from {entry.url}: {reason}. Without a network: fetch "
        f"{entry.file_name} elsewhere and give --weights=FILE --network={entry.name}"
    )
