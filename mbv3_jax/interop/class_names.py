"""The class names that imported weights get."""

import collections
from pathlib import Path

from mbv3_jax.core.errors import UsageError, counted
from mbv3_jax.core.files import read_bytes, read_text
from mbv3_jax.core.json_values import parse_json

# As torchvision lists them (BSD-3-Clause, Soumith Chintala 2016), from WordNet's synsets.
_IMAGENET_FILE = Path(__file__).parent / "imagenet_classes.txt"
BACKGROUND = "background"  # the first of the 1001 classes of TensorFlow's networks
IN21K_MIIL = 11221  # classes of ImageNet-21k as MIIL processed it


def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012, in the usual order (by WordNet number)."""
    return tuple(_IMAGENET_FILE.read_text().splitlines())


def find_class_names(count: int, file: Path | None) -> tuple[tuple[str, ...], str]:
    """Finds names for the classes of a network.

    Args:
      count: the number of outputs of the network. A single output tells two classes apart, and gets
        two names if there is a file.
      file: a file of names, one on each line or a JSON list; None takes the names of ImageNet if
        the count is that of ImageNet, else numbers.

    Returns:
      The names by label, and a description of where they come from.

    Raises:
      UsageError: the file cannot be read or has another number of names.
    """
    if file is not None:
        names, source = _read_names(file), f"of {file}"
        if count == 1:
            if len(names) != 2:
                raise UsageError(
                    f"--classes={file}: has {counted(len(names), 'name')}, but the network has one "
                    "output, whose sigmoid tells two classes apart; give two names, that of small "
                    "outputs first"
                )
            return names, f"{source}, the second by the sigmoid of the one output"
        if several := [n for n, times in collections.Counter(names).items() if times > 1]:
            listed = ", ".join(map(repr, several[:5])) + (", ..." if len(several) > 5 else "")
            source += f", of which {len(several)} stand for several classes: {listed}"
    elif count in (1000, 1001):
        names, source = imagenet_names(), "of ImageNet (other ones: --classes=FILE)"
    elif count == IN21K_MIIL and (from_timm := _in21k_names()):
        names, source = from_timm, "of ImageNet-21k, as timm lists them"
    elif count == 1:
        return (
            "0",
        ), "unknown: of one output, --classes=FILE gives two, that of small outputs first"
    else:
        numbers = tuple(map(str, range(count)))
        return numbers, "unknown, so they are numbers (--classes=FILE gives names)"
    if count == 1001 and len(names) == 1000:
        return (BACKGROUND, *names), f"{source}, after {BACKGROUND}"
    if len(names) != count:
        raise UsageError(
            f"--classes={file}: has {counted(len(names), 'name')}, the network "
            f"{counted(count, 'class')}"
        )
    return names, source


def _read_names(file: Path) -> tuple[str, ...]:
    try:
        if file.suffix == ".json":
            names = parse_json(read_bytes(file), list[str])
        else:
            names = read_text(file).splitlines()
    except OSError as e:
        raise UsageError(f"--classes={file}: {e.strerror}") from e
    except ValueError as e:
        raise UsageError(
            f"--classes={file}: {e}; expected one name on each line, or a JSON list of names"
        ) from e
    names = [name.strip() for name in names]
    if file.suffix != ".json":
        while names and not names[-1]:  # blank lines at the end are no names
            names.pop()
    if not names:
        raise UsageError(f"--classes={file}: no name in it; expected one on each line")
    if "" in names:
        blank = [i for i, name in enumerate(names, 1) if not name]
        place = "entry" if file.suffix == ".json" else "line"
        raise UsageError(
            f"--classes={file}: {place} {blank[0]} is blank ({len(blank)} such), "
            "expected one name on each line, or a JSON list of names"
        )
    return tuple(names)


def _in21k_names() -> tuple[str, ...] | None:
    try:
        from timm.data import ImageNetInfo
    except Exception:  # not installed, or installed beside a torch that it does not fit
        return None
    info = ImageNetInfo("imagenet21k-miil")
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))
