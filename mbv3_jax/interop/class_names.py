"""Names of the classes that imported weights tell apart."""

import json
from pathlib import Path

from mbv3_jax.train.errors import UsageError

# As torchvision lists them (BSD-3-Clause, Soumith Chintala 2016), from WordNet's synsets.
_IMAGENET = Path(__file__).parent / "imagenet_classes.txt"
BACKGROUND = "background"  # the first of the 1001 classes of TensorFlow's networks
IN21K_MIIL = 11221


def imagenet() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012, in the usual order (that of their WordNet numbers)."""
    return tuple(_IMAGENET.read_text().splitlines())


def find(count: int, file: Path | None) -> tuple[tuple[str, ...], str]:
    """The names of a network's classes, and in words where they come from.

    Args:
      count: how many classes the network has.
      file: names, one a line, or a JSON list; None for those of ImageNet where the count is
        ImageNet's, else numbers.

    Raises:
      UsageError: the file cannot be read or has another number of names.
    """
    if file is not None:
        names, where = _read(file), f"of {file}"
    elif count in (1000, 1001):
        names, where = imagenet(), "of ImageNet (other ones: --classes=FILE)"
    elif count == IN21K_MIIL and (names := _in21k()):
        where = "of ImageNet-21k, as timm lists them"
    else:
        numbers = tuple(map(str, range(count)))
        return numbers, "unknown, so they are numbers (--classes=FILE gives names)"
    if count == 1001 and len(names) == 1000:
        return (BACKGROUND, *names), f"{where}, after {BACKGROUND}"
    if len(names) != count:
        raise UsageError(f"--classes={file}: has {len(names)} names, the network {count} classes")
    return names, where


def _read(file: Path) -> tuple[str, ...]:
    try:
        text = file.read_text()
        names = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except OSError as e:
        raise UsageError(f"--classes={file}: {e.strerror}") from e
    except ValueError as e:
        raise UsageError(f"--classes={file}: {e}") from e
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise UsageError(f"--classes={file}: expected a name a line, or a JSON list of names")
    return tuple(n.strip() for n in names)


def _in21k() -> tuple[str, ...] | None:
    try:
        from timm.data import ImageNetInfo
    except Exception:  # not installed, or beside a torch that it does not fit
        return None
    info = ImageNetInfo("imagenet21k-miil")
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))
