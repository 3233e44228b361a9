"""The Hugging Face Hub by address: hf:OWNER/NAME[@REVISION].

Three addresses of its web interface are all that reading needs (huggingface_hub 1.x asks the same):

{HF_ENDPOINT}/api/models/OWNER/NAME/revision/REVISION?blobs=true   commit, files, sizes, hashes
{HF_ENDPOINT}/OWNER/NAME/resolve/COMMIT/FILE                       a file, perhaps by a redirection

Writing is left to huggingface_hub. The token in HF_TOKEN is sent to HF_ENDPOINT only.
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
from mbv3_jax.core.json_values import parse_json
from mbv3_jax.core.limits import limit
from mbv3_jax.core.packages import need
from mbv3_jax.run.model import DESCRIPTION, LABELS

PREFIX = "hf:"
_FORM = "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
# huggingface_hub's `validate_repo_id`; a revision is a branch, a tag or a commit.
_REPOSITORY = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w./-]{1,200}", re.ASCII)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # timm's, the better one first
_CONFIG = "config.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Address:
    """A repository of models, and one of its revisions; None for its newest."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def parse(text: str, option: str) -> Address:
    """Reads an address that a person typed.

    Args:
      text: hf:OWNER/NAME or hf:OWNER/NAME@REVISION.
      option: the flag that it was typed for, for the message.

    Raises:
      UsageError: it has another form.
    """
    repository, at, revision = text.removeprefix(PREFIX).partition("@")
    is_right = _REPOSITORY.fullmatch(repository) and (not at or _REVISION.fullmatch(revision))
    if not text.startswith(PREFIX) or not is_right or ".." in text:
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
    weights: the file of weights.
    is_described: whether the files of an import folder that describe a model are beside it.
    """

    commit: str
    weights: Path
    is_described: bool


def fetch(address: Address, folder: Path, endings: Collection[str]) -> Fetched:
    """Downloads the weights of a repository, and what describes them.

    Args:
      address: the repository.
      folder: an empty folder for the files.
      endings: of files of weights, where there is none of `WEIGHTS`.

    Raises:
      UsageError: there is no such repository or revision, or no file of weights in it.
      RunError: it cannot be downloaded, or what arrives is not what the Hub lists.
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
    for name in WEIGHTS:
        if name in files:
            return name
    found = sorted(name for name in files if name.endswith(tuple(endings)))
    if len(found) == 1:
        return found[0]
    has = (
        f"it has {', '.join(map(printable, found))}"
        if found
        else f"it has no file that ends in {_or(endings)}"
    )
    raise UsageError(
        f"--weights={address}: expected {_or(WEIGHTS)} or one other file of weights, {has}"
        + (", of which to download one and give --weights=FILE" if found else "")
    )


def _or(names: Collection[str]) -> str:
    return " or ".join(names)


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _token() -> str | None:
    """The token, checked here, because the error of a header that cannot be sent has its text.

    Raises:
      UsageError: it cannot be sent.
    """
    token = (os.environ.get("HF_TOKEN") or "").strip()
    if not token.isascii() or not all(map(str.isprintable, token)) or " " in token:
        raise UsageError("the environment variable HF_TOKEN: has characters that no token has")
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
    """The error for a person, by what the Hub answers: its code, and its header X-Error-Code."""
    code = error.answer.code if error.answer else None
    reason = (error.answer.headers.get("X-Error-Code") or "") if error.answer else ""
    if code == 404 and reason == "RevisionNotFound":
        wanted = address.revision or "main"
        return UsageError(f"--weights={address}: {address.repository} has no revision {wanted}")
    if code in (401, 403) or (code == 404 and reason in ("", "RepoNotFound")):
        sent = "HF_TOKEN does not open it" if _token() else "HF_TOKEN is not set"
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
