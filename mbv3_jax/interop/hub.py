"""The Hugging Face Hub by address: hf:OWNER/NAME[@REVISION].

Reading needs only these addresses of its web interface, which huggingface_hub 1.x uses too:

{HF_ENDPOINT}/api/models/OWNER/NAME/revision/REVISION?blobs=true   commit, files, sizes, hashes
{HF_ENDPOINT}/OWNER/NAME/resolve/COMMIT/FILE                       a file, perhaps by a redirection

Writing is left to huggingface_hub. The token is sent to HF_ENDPOINT only.
"""

import dataclasses
import hashlib
import os
import re
import urllib.parse
from collections.abc import Collection
from pathlib import Path
from typing import NotRequired, TypedDict

from mbv3_jax.core.download import DownloadError, download
from mbv3_jax.core.errors import RunError, UsageError, first_line, printable
from mbv3_jax.core.files import read_text
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.core.limits import limit
from mbv3_jax.core.packages import need
from mbv3_jax.run.model import DESCRIPTION, LABELS

PREFIX = "hf:"
_FORM = "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
# huggingface_hub's `validate_repo_id`; a revision is a branch, a tag or a commit.
_REPOSITORY = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[^\s~^:?*\[\\]{1,200}")  # what Git forbids in names left out
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # timm's, the better one first
_CONFIG = "config.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST_NAME = 150  # of a file; of the cache's name, which is longer, systems allow 255 bytes
# Files with the endings of weights that transformers and accelerate save beside them.
_BESIDE = re.compile(r"(training_args|optimizer|scheduler|scaler|random_states|rng_state)[\w.-]*")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")


@dataclasses.dataclass(frozen=True)
class Address:
    """A repository of models, and one of its revisions; None for its newest."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def parse(text: str, option: str) -> Address:
    """Parses an address.

    Args:
      text: hf:OWNER/NAME or hf:OWNER/NAME@REVISION.
      option: the flag that it was given with, for the message.

    Raises:
      UsageError: it has another form.
    """
    repository, at, revision = text.removeprefix(PREFIX).partition("@")
    is_right = _REPOSITORY.fullmatch(repository) and (not at or _REVISION.fullmatch(revision))
    if not text.startswith(PREFIX) or not is_right or ".." in text or not text.isprintable():
        raise UsageError(f"{option}={text}: {_FORM}")
    return Address(repository, revision or None)


class _Lfs(TypedDict):
    sha256: str | None


class _Sibling(TypedDict):
    rfilename: str
    lfs: NotRequired[_Lfs | None]  # of files that Git does not hold


class _Info(TypedDict):
    sha: str
    siblings: list[_Sibling]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """Files of a repository, downloaded to one folder.

    commit: which commit they are of.
    weights: the weight file.
    is_described: whether the files of an import folder that describe a model are beside it.
    """

    commit: str
    weights: Path
    is_described: bool


def fetch(address: Address, folder: Path, endings: Collection[str]) -> Fetched:
    """Downloads the weights of a repository and the files that describe them.

    Args:
      address: the repository.
      folder: an empty folder for the files.
      endings: of weight files, the preferred ones first.

    Raises:
      UsageError: there is no such repository or revision, or it has no weight file.
      RunError: it cannot be downloaded, or what was downloaded is not what the Hub lists.
    """
    revision = urllib.parse.quote(address.revision or "main", safe="")
    info_url = f"{_endpoint()}/api/models/{address.repository}/revision/{revision}?blobs=true"
    answer = _download(address, info_url, "its list of files", None)
    try:
        info = parse_json(answer, _Info)
        if not _COMMIT.fullmatch(info["sha"]):
            raise ValueError(f"sha: got {info['sha']!r:.60}, expected a commit")
    except ValueError as e:
        raise RunError(f"{address}: {_endpoint()} is no Hugging Face Hub: {e}") from e
    hashes: dict[str, str | None] = {}
    for file in info["siblings"]:
        lfs = file.get("lfs")
        hashes[file["rfilename"]] = lfs["sha256"] if lfs else None
    weights = _weights(address, hashes, endings)
    is_described = set(DESCRIPTION) <= hashes.keys()
    wanted = [
        weights,
        *(n for n in (_CONFIG, *((*DESCRIPTION, LABELS) if is_described else ())) if n in hashes),
    ]
    for name in wanted:
        path = f"resolve/{info['sha']}/{urllib.parse.quote(name)}"
        url = f"{_endpoint()}/{address.repository}/{path}"
        data = _download(address, url, name, hashes[name])
        (folder / Path(name).name).write_bytes(data)
    return Fetched(
        commit=info["sha"], weights=folder / Path(weights).name, is_described=is_described
    )


def _weights(address: Address, files: Collection[str], endings: Collection[str]) -> str:
    """The weight file of a repository: one of `WEIGHTS`, or the only one with the best ending."""
    usual = [name for name in WEIGHTS if name.endswith(tuple(endings))]
    found = sorted(
        name
        for name in files
        if name.endswith(tuple(endings)) and not _BESIDE.fullmatch(Path(name).name)
    )
    best = [name for name in usual if name in files][:1]
    for ending in endings:
        best = best or [name for name in found if name.endswith(ending)]
    if len(best) == 1:
        name = best[0]
        if not name.isprintable() or len(Path(name).name.encode()) > _LONGEST_NAME:
            raise UsageError(
                f"--weights={address}: its file {printable(name)[:60]} has a name that cannot be "
                "kept; download it under another one and give --weights=FILE"
            )
        return name
    if any(map(_SHARD.search, found)):
        raise UsageError(
            f"--weights={address}: its weights are in several files (shards), which are not read; "
            "load them in Python, save one state dict, and give --weights=FILE"
        )
    has = (
        f"it has {', '.join(map(printable, found))}"
        if found
        else f"it has no file that ends in {_or(endings)}"
    )
    wanted = _or([*usual, "one other file of weights"] if usual else ["one file of weights"])
    raise UsageError(
        f"--weights={address}: expected {wanted}, {has}"
        + (", of which to download one and give --weights=FILE" if found else "")
    )


def _or(names: Collection[str]) -> str:
    return " or ".join(names)


def _endpoint() -> str:
    """Where the Hub is.

    Raises:
      UsageError: HF_ENDPOINT is not an address of this form; the message does not repeat it,
        because it may contain a secret.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").strip().rstrip("/")
    try:
        parts = urllib.parse.urlsplit(endpoint)
        is_right = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    except ValueError:
        is_right = False
    if not is_right or not endpoint.isprintable() or parts.query or parts.fragment:
        raise UsageError(
            "the environment variable HF_ENDPOINT: expected https://HOST or http://HOST:PORT, "
            "without a user (HF_TOKEN holds a token)"
        )
    return endpoint


def _token() -> str | None:
    """The token in HF_TOKEN, else the one that `hf auth login` keeps (huggingface_hub.constants).

    It is checked here, because the error for a header that cannot be sent would contain the token.

    Raises:
      UsageError: it cannot be sent.
    """
    token, where = os.environ.get("HF_TOKEN") or "", "the environment variable HF_TOKEN"
    if not token.strip():
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        home = os.environ.get("HF_HOME") or Path(cache) / "huggingface"
        path = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser()
        where = str(path)
        try:
            token = read_text(path)
        except (OSError, ValueError):  # nobody has logged in
            return None
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{where}: has characters that no token has")
    return token or None


def _download(address: Address, url: str, what: str, sha256: str | None) -> bytes:
    # The name of what is kept of a download that was cut off.
    name = f"hf-{hashlib.sha256(url.encode()).hexdigest()[:16]}-{Path(what).name}"

    def is_right(data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() == sha256

    try:
        data = download(
            url,
            name,
            max_bytes=limit("MBV3_MAX_FILE_BYTES"),
            is_right=is_right if sha256 else None,
            token=_token(),
        )
    except DownloadError as e:
        raise _refusal(address, what, e) from e
    if sha256 and not is_right(data):
        raise RunError(f"{address}: {what} is not what the Hub lists: its SHA-256 differs")
    return data


def _refusal(address: Address, what: str, error: DownloadError) -> Exception:
    """The error to raise for an answer of the Hub, by its code and its header X-Error-Code."""
    code = error.answer.code if error.answer else None
    reason = (error.answer.headers.get("X-Error-Code") or "") if error.answer else ""
    if code == 404 and reason == "RevisionNotFound":
        wanted = address.revision or "main"
        return UsageError(f"--weights={address}: {address.repository} has no revision {wanted}")
    if code in (401, 403) or (code == 404 and reason in ("", "RepoNotFound")):
        sent = "the token does not open it" if _token() else "HF_TOKEN is not set"
        return UsageError(
            f"--weights={address}: {_endpoint()} has no such repository, or it is private or gated "
            f"and {sent} ({code})"
        )
    if error.answer is None:
        return RunError(
            f"cannot download {what} of {address} from {_endpoint()}: {error}. Without a network: "
            "fetch the files elsewhere and give --weights=FILE"
        )
    return RunError(f"cannot download {what} of {address} from {_endpoint()}: {error}")


def upload(folder: Path, address: Address) -> str:
    """Uploads the files of a folder as one commit; makes the repository, private, if there is none.

    Returns:
      The address of the commit, for a browser.

    Raises:
      UsageError: huggingface_hub is not installed.
      RunError: the Hub refuses, or cannot be reached.
    """
    package = need("huggingface_hub", "uploading to the Hugging Face Hub", "weights")
    client = package.HfApi(endpoint=_endpoint(), token=_token())
    try:
        client.create_repo(address.repository, private=True, exist_ok=True)
        commit = client.upload_folder(
            repo_id=address.repository,
            folder_path=folder,
            commit_message="Weights from mbv3_jax",
        )
    except Exception as e:  # the layers of the client raise errors of many kinds
        raise RunError(f"--to={address}: {_endpoint()} refuses: {first_line(e)}") from e
    return str(commit.commit_url)
