"""Before any test imports jax: two virtual CPU devices, and a compilation cache that is kept.

Both are set in the environment, so that the commands which tests start have them too.
"""

import contextlib
import os
import resource
import subprocess
import sys

import pytest
from paths import ROOT, TINY

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=2"]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session")
def tiny_spec():
    """A network of two blocks, of every kind of layer, for 32 pixels; no dropout."""
    from tiny_config import SPEC

    return SPEC.replace(dropout=0.0)


@pytest.fixture(scope="session")
def tiny_config():
    """tiny_config(*overrides) -> the configuration of a run of seconds, with these overrides."""
    from mbv3_jax.run.config import parse_config

    return lambda *overrides: parse_config(TINY, overrides)


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory):
    """The folder of a sweep with trials in every state, see `ended_sweep.make`."""
    from ended_sweep import make

    folder = tmp_path_factory.mktemp("sweeps") / "nonlinearity"
    make(folder)
    return folder


@pytest.fixture(scope="session")
def command():
    """command(script, *arguments) -> a finished process that ran from the repository's root."""

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, script, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def small_files():
    """Context manager: files cannot grow past a number of bytes, as on a full disk."""

    @contextlib.contextmanager
    def limit(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
