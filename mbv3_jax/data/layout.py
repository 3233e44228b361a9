"""Which folders in a folder of images are splits, by their names, and which are classes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from mbv3_jax.data.files import is_folder, scan

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# These names go before others of the same meaning, in this order.
PLAIN = ("train", "validation", "val", "valid", "test")

_WORDS = {
    TRAIN: ("train", "training", "trn"),
    VALIDATION: (
        *("validation", "validate", "validating", "valid", "val"),
        *("dev", "eval", "evaluate", "evaluation", "holdout", "heldout"),
    ),
    TEST: ("test", "testing", "tst"),
}
_ROLE_OF = {word: role for role, words in _WORDS.items() for word in words}
# Words that say nothing about which split it is: "Training Set", "test_images", "val_data".
_OTHER_WORDS = (
    *("set", "sets", "split", "splits", "data", "dataset", "datasets", "folder", "part"),
    *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "sample"),
    *("samples", "and", "class", "classes"),
)
# The longest first, so that "training" is not read as "train" and a rest.
_WORD = "|".join(sorted((*_ROLE_OF, *_OTHER_WORDS), key=lambda word: (-len(word), word)))
_NAME = re.compile(f"(?:{_WORD})+")


def roles(name: str) -> frozenset[str]:
    """The roles that the name of a folder may mean, in any case and with the usual synonyms.

    Returns:
      {"train"} for "Training Set" or "train2017", {"train", "validation"} for "TrainVal"; nothing
      if there is another word in the name, as in "train_station".
    """
    letters = re.sub(r"[\W\d_]+", "", name.lower())
    if not _NAME.fullmatch(letters):
        return frozenset()
    return frozenset(_ROLE_OF[word] for word in re.findall(_WORD, letters) if word in _ROLE_OF)


def split_of_file(name: str) -> tuple[str | None, str]:
    """The split that a file of many examples belongs to, by its name or else its folder's.

    Args:
      name: its path, relative to the folder of the data.

    Returns:
      The split ("train" of "data/train-00000-of-00004.parquet", "a-train-3.tar" and
      "train/0.tar"), None if no name says it; and the folder above, "" for one that says nothing.
    """
    path = PurePosixPath(name)
    stem = re.sub(r"-\d+-of-\d+.*", "", path.stem)
    split = next((word for word in re.findall(r"[A-Za-z]+", stem)[::-1] if roles(word)), None)
    parents = path.parent.parts
    if split is None and parents and roles(parents[-1]):
        split, parents = parents[-1], parents[:-1]
    return split, "/".join(part for part in parents if part.lower() not in _OTHER_WORDS)


def subfolders(path: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return [entry.name for entry in scan(path) if is_folder(entry)]


def find_splits(root: Path, folders: Iterable[str]) -> dict[str, list[str]]:
    """The folders in `root` that are splits: named like one, with class folders inside.

    Args:
      root: where they are.
      folders: the names of all folders there.

    Returns:
      The names by role; those in `PLAIN` come first in each.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(folders, key=lambda n: (PLAIN.index(n) if n in PLAIN else len(PLAIN), n)):
        named = roles(name)
        if len(named) == 1 and subfolders(root / name):
            found.setdefault(next(iter(named)), []).append(name)
    return found


def choose_split(root: Path, splits: Mapping[str, Sequence[str]], role: str, field: str) -> str:
    """The split of a role.

    Raises:
      ValueError: several folders may be meant, and `field` has to say which.
    """
    names = splits[role]
    if len(names) > 1 and names[0] not in PLAIN:
        raise ValueError(
            f"{root}: each of {', '.join(names)} may be the {role} split; say which with "
            f"{field}={_quoted(names[0])}"
        )
    return names[0]


def check_classes_are_no_splits(root: Path, classes: Sequence[str], files: Iterable[str]) -> str:
    """Checks that the folders taken for classes are not splits whose names are not understood.

    Args:
      root: the folder of the classes.
      classes: the names of its folders.
      files: the paths of all images, relative to `root`.

    Returns:
      A remark if the names do not decide it, else "".

    Raises:
      ValueError: they are splits, or look like them; the message says what to type.
    """
    inner: dict[str, set[str]] = {name: set() for name in classes}  # the folders in each
    for file in files:
        name, _, rest = file.partition("/")
        if "/" in rest:
            inner[name].add(rest.partition("/")[0])
    for name in classes:
        named = sorted(folder for folder in inner[name] if roles(folder))
        if {TRAIN} < frozenset().union(*map(roles, named)):
            same = [other for other in classes if set(named) <= inner[other]]
            if len(same) > 1:
                raise ValueError(
                    f"{root / name}: the splits {', '.join(named)} are inside the class folders; "
                    f"expected {root}/{named[0]}/{name}, and so on"
                )
            raise ValueError(
                f"{root}: its folder {name} holds the splits {', '.join(named)}; name that folder: "
                f"folder:{root / name}"
            )
    mixed = [name for name in classes if len(roles(name)) > 1 and inner[name]]
    shared = set.intersection(*inner.values()) if inner else set()
    if len(shared) > 1:
        named_so = [name for name in classes if _mentions_split(name)]
        mixed = mixed or (named_so if len(named_so) == len(classes) else [])
    if mixed:
        others = [name for name in classes if name not in mixed] or mixed[1:]
        evaluate = f" and data.eval_split={_quoted(others[0])}" if others else ""
        raise ValueError(
            f"{root / mixed[0]}: named like a split, but it is unclear which one; name the splits "
            f"with data.train_split={_quoted(mixed[0])}{evaluate}, or rename the folder if it is a "
            "class"
        )
    if len(classes) > 1 and all(map(roles, classes)):
        raise ValueError(
            f"{root}: the folders {', '.join(classes)} are named like splits but hold images, not "
            f"class folders; expected {root}/{classes[0]}/CLASS/IMAGE, or other names if they are "
            "the classes"
        )
    if len(shared) > 1 and len(classes) > 1:
        return (
            f"{', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''} are taken for the "
            f"classes, though the same {len(shared)} folders are in each of them "
            f"({', '.join(sorted(shared)[:3])}{', ...' if len(shared) > 3 else ''}); if they are "
            f"splits, name them with data.train_split={_quoted(classes[0])} and "
            f"data.eval_split={_quoted(classes[1])}"
        )
    return ""


def _mentions_split(name: str) -> bool:
    """Whether one word of a name is that of a split, as in "my_train" or "testPart2"."""
    return any(word.lower() in _ROLE_OF for word in re.findall(r"[A-Z]*[a-z]+|[A-Z]+", name))


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name) else f"'{name}'"
