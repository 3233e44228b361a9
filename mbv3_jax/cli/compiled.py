"""Compiled programs are kept between commands, by JAX's persistent compilation cache.

The cache is JAX's own. This module chooses its folder and its size, and makes sure that no state of
the folder can end a command. JAX's key of a program has the computation, XLA's flags and the
version of jaxlib. The key need not identify the CPU: each kind of CPU and each version of jaxlib
has a folder of its own, because a program that was compiled for another CPU may compute other bits
or end with SIGILL (https://github.com/jax-ml/jax/issues/38445).
"""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from mbv3_jax.core.errors import printable

# JAX's own options, which a user may set as well. A training of V3-Small keeps about 1 MB, and JAX
# removes what was not used for the longest time.
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_DEFAULTS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),  # bytes
    # Programs that compile faster would otherwise be compiled by each command.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
_NO = ("n", "no", "f", "false", "off", "0")  # as JAX reads them
_UNUSED_DAYS = 90  # after which the folder of another CPU or jaxlib is removed
_LOCK_SECONDS = 10  # as JAX waits
_PROBLEM = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.*?)': ")
# What tells one kind of CPU from another in /proc/cpuinfo, on x86 and ARM.
_CPU_FIELDS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)


def keep_programs() -> None:
    """Lets JAX keep compiled programs in the user's cache folder; call it before JAX is imported.

    A JAX_COMPILATION_CACHE_DIR that the user has set is respected, and
    JAX_ENABLE_COMPILATION_CACHE=false switches the cache off. If the folder cannot be used, one
    line says so, and programs are compiled as if there were no cache.
    """
    # A sweep passes its environment on, perhaps to a machine with another CPU.
    root = user_cache_path("mbv3_jax") / "xla"
    given = os.environ.get(_FOLDER)
    if given is not None and not Path(given).is_relative_to(root):
        return
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in _NO:
        return
    folder = root / host_digest()
    try:
        if not root.is_absolute():
            raise OSError("there is no home folder")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        _tidy(folder)
    except (OSError, NotImplementedError) as e:  # the latter from filelock: no locks there
        os.environ.pop(_FOLDER, None)
        _say(f"compiled programs are not kept: {getattr(e, 'strerror', None) or e}: {folder}")
        return
    os.environ[_FOLDER] = str(folder)
    for option, value in _DEFAULTS.items():
        os.environ.setdefault(option, value)
    _answer_warnings(folder)


def host_digest() -> str:
    """Returns a name for this kind of CPU with this version of jaxlib."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux: every machine is a kind
        lines = [":".join(platform.uname())]
        kind = lines
    else:
        kind = sorted({line for line in lines if line.partition(":")[0].strip() in _CPU_FIELDS})
    text = "\n".join([metadata.version("jaxlib"), platform.machine(), *kind])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tidy(folder: Path) -> None:
    """Removes programs that are not complete, and folders that are no longer used.

    JAX writes a program and then the time of its use. If a kill or a full disk comes in between,
    JAX would find a damaged program, and could not write any other.
    """
    with FileLock(folder / ".lockfile", timeout=_LOCK_SECONDS):  # JAX's
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()
    os.utime(folder)
    for other in folder.parent.iterdir():
        with contextlib.suppress(OSError):  # another process may be removing it
            if time.time() - other.stat().st_mtime > _UNUSED_DAYS * 86400:
                shutil.rmtree(other)


def _answer_warnings(folder: Path) -> None:
    """Replaces JAX's warnings of a program that it could not read or write by one line.

    JAX would warn of each program at each start, since it never replaces a damaged one. Here a
    program that cannot be read is removed; JAX writes it once it has compiled it.
    """
    show, told = warnings.showwarning, False

    def answer(message, *arguments, **keywords):
        nonlocal told
        problem = _PROBLEM.match(str(message))
        if not problem:
            show(message, *arguments, **keywords)
            return
        if problem[1] == "reading":
            for path in folder.glob(f"{problem[2]}-*"):
                with contextlib.suppress(OSError):
                    path.unlink()
        if not told:
            reason = str(message)[problem.end() :].splitlines()[0]
            _say(f"a compiled program is not kept or was damaged: {reason}: {folder}")
        told = True

    warnings.showwarning = answer


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)
