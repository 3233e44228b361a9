"""Reading and writing files: what is written here is complete or absent, even after a kill."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from mbv3_jax.core.errors import RunError, UsageError, first_line
from mbv3_jax.core.limits import OverLimit, check_limit

T = TypeVar("T")

_TRIES = 10  # to remove a folder, a tenth of a second apart
_BUCKETS = ("az", "gs", "hf", "s3")  # the schemes of etils.epath, through which Orbax sees paths


def check_storable(
    folder: Path, advice: str = "choose another folder", *, read_only: bool = False
) -> None:
    """Checks that Orbax would use the folder at this path, and not another one.

    TensorStore, to which Orbax passes paths, reads a backslash as a slash: arrays for `a\\b` end up
    in `a/b`, and are not found again, or those of another network are found. All other characters
    that a name can have in UTF-8 were tried, and are stored as they are.

    Args:
      folder: the path of a folder, which need not exist.
      advice: what the user can do, for the message.
      read_only: whether it is only read, for which a pattern will do: older versions of Orbax look
        for what they have written by one.

    Raises:
      UsageError: Orbax would take the path, or what a link in it leads to, for another one.
    """
    for path in (folder.absolute(), Path(os.path.realpath(folder))):  # the storage follows links
        names = path.parts[1:]  # without the root, which is a backslash on Windows
        text = "/".join(names)
        if not read_only and (wild := sorted(set("*?[") & set(text))):
            reason = f"a path with {' '.join(wild)} in it, which Orbax takes for a pattern"
        elif "\\" in text:
            reason = "a path with \\ in it, which Orbax takes for /"
        elif not _is_utf8(text):
            reason = "a path that is not UTF-8"
        elif path.root == "/" and names and names[0] in _BUCKETS:
            reason = f"/{names[0]}, which Orbax takes for {names[0]}://"
        elif address := {f"{bucket}:" for bucket in _BUCKETS}.intersection(names):
            reason = f"a bucket; {min(address)}// stands for one"
        else:
            continue
        leads = "" if path == folder.absolute() else f" leads to {path}"
        message = f"{folder}{leads}: checkpoints cannot be read from {reason}; {advice}"
        raise UsageError(message.encode(errors="backslashreplace").decode())


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that Python has kept as lone surrogates
        return False
    return True


def write_atomically(path: Path, contents: str | bytes) -> None:
    """Writes a file atomically: even after a kill it has the old contents or the new ones."""
    with open_atomically(path) as file:
        file.write(contents.encode() if isinstance(contents, str) else contents)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name for a file or folder to make in the block, which then replaces `path`.

    It is a hidden name beside `path` that nobody else uses, so no file of the user, and no file of
    another process that writes the same `path`, is touched. After an error `path` is as it was and
    nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            _remove(temporary)
        name = getattr(e, "filename", None)
        if isinstance(e, OSError) and isinstance(name, str) and name.startswith(str(temporary)):
            e.filename = name.replace(str(temporary), str(path), 1)  # which the user knows
            e.filename2 = None
        raise


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    # Orbax writes in threads: after one has failed, others may add files for a moment.
    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            return shutil.rmtree(path)
        time.sleep(0.1)
    shutil.rmtree(path)


def is_temporary(name: str, of: Collection[str], *, older: bool = True) -> bool:
    """Returns whether a process that was killed may have left this name beside one of `of`.

    Args:
      name: The name of a file or a folder.
      of: The names of what the process may have been writing.
      older: Whether to count the names that were used until format 2: those of the target with
        another suffix. A user can have such a file as well.
    """
    made = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", name)
    if made:
        return made[1] in of
    return older and name in {Path(target).with_suffix(".tmp").name for target in of}


def remove_temporaries(folder: Path, of: Collection[str], *, older: bool = False) -> None:
    """Removes what a killed process has left; only for a folder that this process has locked.

    Args:
      folder: Where to look.
      of, older: As for `is_temporary`.
    """
    for path in folder.iterdir():
        if is_temporary(path.name, of, older=older):
            _remove(path)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a new binary file that replaces `path` once the block has ended without an error.

    The data is first written under another name, see `replacing`.
    """
    with replacing(path) as temporary, temporary.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def check_can_be_written(option: str, path: Path) -> None:
    """Checks that a file can be written, before the work whose result it will hold.

    Whether the system lets a file be made can only be found out by making one.

    Args:
      option: where the file was named, for the message.
      path: the file.

    Raises:
      UsageError: its folder does not exist or does not accept a file, or the path is a folder
        itself.
    """
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.is_dir():
            raise UsageError(f"{option}: {path} is a folder")
        if not path.parent.is_dir():
            raise UsageError(f"{option}: {path.parent}: no such folder")
        probe.open("xb").close()
        probe.unlink()
    except OSError as e:
        raise UsageError(f"{option}: cannot write {path}: {e.strerror}") from e


# A FIFO is opened without waiting for its writer, a terminal without becoming this process's own.
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading in binary mode if it is a regular file, after following links.

    A FIFO or a device may never end, so every file that a user names is opened here.

    Raises:
      OSError: It cannot be opened or is something else; `strerror` says which, for a message.
    """
    return open(path, "rb", opener=_regular_descriptor)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the contents of a file.

    Raises:
      OSError: As for `open_regular`, or it is larger than the limit MBV3_MAX_FILE_BYTES.
    """
    with open_regular(path) as file:
        try:
            check_limit("MBV3_MAX_FILE_BYTES", os.fstat(file.fileno()).st_size, "it has")
        except OverLimit as e:
            raise OSError(errno.EFBIG, str(e), os.fspath(path)) from e
        return file.read()


def read_text(path: str | os.PathLike[str], errors: str = "strict") -> str:
    """Returns the text of a file in UTF-8, its lines ended by "\\n", without a byte order mark.

    Args:
      path: The file.
      errors: As for `bytes.decode`.

    Raises:
      OSError: As for `open_regular`.
      UnicodeDecodeError: It is not UTF-8.
    """
    text = read_bytes(path).decode("utf-8-sig", errors)  # editors on Windows write the mark
    return text.replace("\r\n", "\n").replace("\r", "\n")


def expand_user(
    path: str | os.PathLike[str], field: str, *, error: type[Exception] = ValueError
) -> Path:
    """Returns a path with the folder of a user in place of "~" or "~user".

    Args:
      path: What was typed.
      field: Where it was typed, for the message.
      error: The class of what is raised.

    Raises:
      error: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        user = Path(path).parts[0]
        raise error(
            f"{field}: got {path}, but there is no home folder {user}; a folder of that name is "
            f"./{path}"
        ) from e


def _regular_descriptor(path: str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | _WITHOUT_WAITING)
    except OSError as e:
        if e.errno == errno.ENOENT and os.path.islink(path):  # noqa: PTH114 (once per image)
            e.strerror = f"a link to {os.readlink(path)}, which does not exist"  # noqa: PTH115
        elif e.errno == errno.ENXIO:  # of a socket
            e.strerror = "not a regular file"
        raise
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        error = IsADirectoryError if kind == stat.S_IFDIR else OSError
        number = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        found = _KINDS.get(kind, "something else")
        raise error(number, f"{found}, not a regular file", os.fspath(path))
    return descriptor


def read_file(
    path: Path,
    parse: Callable[[bytes], T],
    *,
    error: type[Exception] = RunError,
    advice: str = "",
) -> T:
    """Reads and parses a file.

    Args:
      path: the file.
      parse: from its bytes to the result; ValueError means that the file is damaged.
      error: the class of what is raised.
      advice: what the user can do about a damaged file, for the message.

    Raises:
      error: the file cannot be read or parsed; the message has its path and the reason.
    """
    try:
        return parse(read_bytes(path))
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or first_line(e)
        raise error(f"{path} is damaged: {reason}" + (f"; {advice}" if advice else "")) from e
