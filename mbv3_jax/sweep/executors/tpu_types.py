"""The sizes of TPU slices that Google Cloud offers.

SkyPilot takes any number after the generation and fails when it asks the cloud. The number counts
TensorCores for v2 to v5p and chips for v5litepod and v6e.
Source: https://cloud.google.com/tpu/docs (regions-zones, v4, v5p, v5e, v6e), read in 2025.
"""

_CUBES = 128  # TensorCores of 4x4x4 chips, of which larger slices are made


def _small(*exponents: int) -> list[int]:
    return [2**e for e in exponents]


SIZES = {
    "v2": _small(3, 5, 7, 8, 9),
    "v3": _small(3, 5, 6, 7, 8, 9, 10, 11),
    "v4": [*_small(3, 4, 5, 6), *range(_CUBES, 8192 + 1, _CUBES)],
    "v5litepod": _small(0, 2, 3, 4, 5, 6, 7, 8),
    "v5p": [*_small(3, 4, 5, 6), *range(_CUBES, 12288 + 1, _CUBES)],
    "v6e": _small(0, 2, 3, 4, 5, 6, 7, 8),
}


def check(path: str, accelerator: str) -> str:
    """Returns `accelerator` if it is no TPU, or one that exists: "tpu-v5litepod-16".

    Raises:
      ValueError: there is no such TPU; the message has `path`, the generations or the sizes.
    """
    if not accelerator.lower().startswith("tpu"):
        return accelerator
    prefix, _, rest = accelerator.partition("-")
    generation, _, size = rest.rpartition("-")
    if prefix != "tpu" or generation not in SIZES:
        listed = ", ".join(f"tpu-{name}-N" for name in SIZES)
        raise ValueError(f"{path}: got {accelerator!r}, expected one of {listed}")
    sizes = SIZES[generation]
    if not size.isdigit() or int(size) not in sizes:
        listed = ", ".join(map(str, sizes[:8])) + (" ..." if len(sizes) > 8 else "")
        raise ValueError(
            f"{path}: got {accelerator!r}, which does not exist; tpu-{generation}-N has N {listed}"
        )
    return accelerator
