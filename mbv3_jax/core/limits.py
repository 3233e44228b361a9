"""Limits on the sizes that files declare, checked before anything of that size is allocated.

A file of a few kilobytes can declare an image, a tensor or a network of terabytes. Each limit is
far above what MobileNets need, and an environment variable of the same name raises it.
"""

import dataclasses
import os
import zipfile


@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit.

    Attributes:
      default: The largest value that is allowed unless the environment says otherwise.
      unit: What is counted.
    """

    default: int
    unit: str


LIMITS = {
    # Of a file that is read into memory: an image, weights, a table, JSON.
    "MBV3_MAX_FILE_BYTES": Limit(2_000_000_000, "bytes"),
    # Of what is unpacked from a file: weights as float32, and the members of a zip archive. The
    # largest network of the papers has 22 MB.
    "MBV3_MAX_UNPACKED_BYTES": Limit(1_000_000_000, "bytes"),
    # From where on Pillow warns of a decompression bomb; about 0.9 GB of memory at 16 bits.
    "MBV3_MAX_IMAGE_PIXELS": Limit(89_478_485, "pixels"),
    # Of one download, whatever happens on the way.
    "MBV3_MAX_DOWNLOAD_SECONDS": Limit(600, "seconds"),
    # The deepest network of the papers has 17 blocks.
    "MBV3_MAX_BLOCKS": Limit(256, "blocks"),
    # As float32, these are 4 GB.
    "MBV3_MAX_PARAMETERS": Limit(1_000_000_000, "parameters"),
    # Of one layer for one image; 1 GiB as float32. MobileNetV3-Large reaches it at 4096 pixels.
    "MBV3_MAX_ACTIVATIONS": Limit(2**28, "values"),
}


class OverLimit(ValueError):
    """Something is larger than a limit; the message says how to raise it."""


def limit(name: str) -> int:
    """Returns the value of a limit.

    Args:
      name: One of `LIMITS`.

    Raises:
      OverLimit: The environment sets it to something other than a positive whole number.
    """
    text = os.environ.get(name)
    if not text:
        return LIMITS[name].default
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise OverLimit(f"{name}: got {text!r} in the environment, expected a positive number")
    return value


def check_limit(name: str, size: int, what: str) -> None:
    """Refuses what is larger than a limit.

    Args:
      name: One of `LIMITS`.
      size: How large it is.
      what: What has this size, with a verb: "the image has".

    Raises:
      OverLimit: It is larger.
    """
    allowed = limit(name)
    if size > allowed:
        got = f"{size:,}" if size < 10**18 else "over 10^18"
        raise OverLimit(
            f"{what} {got} {LIMITS[name].unit}, more than the limit of {allowed:,}; "
            f"the environment variable {name} raises it"
        )


class Total:
    """A sum of sizes that must not exceed a limit.

    Args:
      name, what: As for `check_limit`.
    """

    def __init__(self, name: str, what: str):
        self._name, self._what, self._sum = name, what, 0

    def add(self, size: int) -> None:
        """Adds a size; raises OverLimit if the sum is too large."""
        self._sum += size
        check_limit(self._name, self._sum, self._what)


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raises OverLimit if the members of a zip archive are too large together, once unpacked."""
    total = sum(member.file_size for member in archive.infolist())
    check_limit("MBV3_MAX_UNPACKED_BYTES", total, "unpacked, it has")
