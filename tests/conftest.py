"""Before any test imports jax: two virtual CPU devices, and a compilation cache that is kept.

Both are set in the environment, so that the commands which tests start have them too.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=2"]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
