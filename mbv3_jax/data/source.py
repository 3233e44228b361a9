"""What a source of images is, and the registry that finds sources by name.

A source is a sequence of (image, label), read by index. Shuffling, batching, sharding and resuming
belong to the loader; flips and colours belong to the device (`augment`). A source only knows how to
read example `i` and, where images are stored encoded, how to cut a training view out of it: `batch`
takes one random generator per example for that, and returns the evaluation view without them.

One decorator registers a source, either on its class:

    @source("squares", splits=("train", "test"), default_recipe="modest")
    class Squares(Source):
        def __init__(self, split, resolution, *, num_examples=1000): ...

or on a function that opens both splits, where they depend on each other:

    @source("tables:PATH", default_recipe="modest")
    def open_tables(path, resolution, *, eval_split=None, crop=None): ...

The keyword-only parameters are the fields of `config.data` that the source takes; any other field
must be None. A source of your own may take fields that `config.data` does not have yet.

The built-in sources are the modules of `mbv3_jax.data.sources`. Each is named like its source and
imported when the source is first used, so that a run loads only the libraries of its own data.
A source of your own lives in any Python file, and `config.data.name` is "FILE.py:NAME"; once the
file has been imported, for instance because it is the configuration file itself, "NAME" suffices.
"""

import abc
import dataclasses
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mbv3_jax.core.checks import Resolution, check_resolution, choose
from mbv3_jax.core.errors import counted
from mbv3_jax.core.files import expand_user
from mbv3_jax.core.registry import option_names, pickle_by_value

ON_ERROR = ("raise", "skip")
LABEL_KINDS = ("single", "multi", "soft")
Batch = dict[str, np.ndarray]
Registered = TypeVar("Registered", bound=Callable[..., Any])

_BUILT_IN = "mbv3_jax.data.sources"
_PATTERN = re.compile(r"([a-z][a-z0-9_]*)(?:([/:])([A-Z]+))?")
_NAME = re.compile(r"([a-z][a-z0-9_]*)(?:([/:])(.+))?", re.DOTALL)
_ATTRIBUTES = ("name", "split", "resolution", "class_names", "fingerprint")


class BadExample(ValueError):
    """An example cannot be used; the message names it and says why."""


class NotFound(FileNotFoundError):
    """The data is missing or has a format that is not read here; the message says what to do."""


class Source(abc.ABC):
    """The images of one split of one data set.

    Attributes:
      name: the name of the source, as in `config.data.name`.
      split: the name of the split.
      resolution: of the images in pixels: the side of squares, or (height, width).
      class_names: one name per label.
      fingerprint: a text that changes when examples are added, removed, renamed or relabelled. A
        run stores it, so that a resumed run can tell whether its data is still the same. It need
        not follow the contents of files, see docs/data.md.
      label_kind: one of `LABEL_KINDS`: "single" unless a source says otherwise. The labels of
        "multi" are float32 [batch, classes], 1 for each class that an image has, and those of
        "soft" the probability of each class.
      channels: of the images: 3 (RGB) unless a source says otherwise. A source that takes the
        keyword-only option `channels` is given the number that the network takes.
      encoded: whether reading an example means decoding it, so that more processes help.
      test: of held-out examples, the test split, on which nothing is chosen: what was chosen on the
        held-out examples is evaluated on it once, at the end; None if there is no such split.
      divided: of held-out examples, whether data without splits was divided to hold them out.
      notes: what the user should know before these examples are used, such as the number of files
        that are not read; a line each.
    """

    name: str
    split: str
    resolution: Resolution
    class_names: tuple[str, ...]
    fingerprint: str
    label_kind = "single"
    channels = 3
    encoded = False
    test: "Source | None" = None
    divided = False
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def batch(
        self,
        indices: Sequence[int] | np.ndarray,
        views: Iterable[np.random.Generator] | None = None,
    ) -> Batch:
        """Reads examples by index, each from 0 to `len(self) - 1`.

        Args:
          indices: [batch] which examples.
          views: one generator per example, from which a source of encoded images draws its random
            crop; None for the evaluation view. Sources in memory ignore it.

        Returns:
          {"image": uint8 [batch, height, width, channels], "label": int32 [batch]}.

        Raises:
          BadExample: one of the examples cannot be used.
        """

    def labels(self) -> np.ndarray | None:
        """The label of each image, [images]; None where all would have to be read."""
        return None

    def counts(self) -> np.ndarray | None:
        """The number of images of each class, [classes]; None where all would have to be read.

        An image with several labels counts for each of them.
        """
        labels = self.labels()
        return None if labels is None else np.bincount(labels, minlength=self.num_classes)

    def where(self, index: int) -> str:
        """What to call an example in a message: the path of its file, if it has one."""
        return f"{self.name}/{self.split}/{index}"

    def load(
        self,
        indices: Sequence[int] | np.ndarray,
        views: Iterable[np.random.Generator] | None = None,
    ) -> tuple[Batch, dict[int, str]]:
        """Like `batch`, but reports the examples that cannot be used instead of raising.

        Returns:
          The batch, in which the image and the label of an unusable example are 0, and
          {place in the batch: what is wrong with the example}.
        """
        return self.batch(indices, views), {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": uint8 [R, R, C], "label": int or [classes]}, in evaluation's view."""
        index = range(len(self))[index]  # resolves negative indices, raises IndexError past the end
        batch = self.batch([index])
        label = batch["label"][0]
        return {"image": batch["image"][0], "label": label if label.ndim else int(label)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered source.

    Attributes:
      pattern: "digits", or with the kind of argument that follows, "tfds/NAME" or "folder:PATH".
      default_recipe: the recipe that `configs/*.py:ARGUMENT` takes for this source, see `source`.
      options: the fields of `config.data` that it takes; "crop" stands for those of `decode_view`.
      required: the options that have no default.
      num_classes: how many classes there are, if that is known before the data is opened.
      exif_rotate: the default of `config.data.exif_rotate`.
      origin: the file that registers the source.
      open: `open([argument,] resolution, **options)` returns the splits to train and evaluate on.
    """

    pattern: str
    default_recipe: str | Callable[[Any], Any]
    options: tuple[str, ...]
    required: tuple[str, ...]
    num_classes: int | None
    exif_rotate: bool
    origin: str
    open: Callable[..., tuple[Source, Source]]

    @property
    def separator(self) -> str:
        """What stands between the name and the argument: "/", ":" or, without argument, ""."""
        return _parse(self.pattern)[1]


_REGISTRY: dict[str, Entry] = {}  # by the part of the pattern before its argument


def source(
    pattern: str,
    *,
    default_recipe: str | Callable[[Any], Any],
    splits: Sequence[str] | None = None,
    num_classes: int | None = None,
    exif_rotate: bool = False,
) -> Callable[[Registered], Registered]:
    """Registers a source: decorates its class, or the function that opens it.

    Args:
      pattern: how `config.data.name` refers to the source: "digits"; with an argument, which is
        written in capitals, "tfds/NAME" or "folder:PATH".
      default_recipe: what the configurations train the source with: the name of a recipe of
        configs/recipes.py, or a function that takes a configuration, fills it in and returns it.
      splits: for a class, the names of its splits: the one to train on, then those to evaluate on.
        The first of these is the default; if there are several, `config.data.eval_split` chooses.
      num_classes: how many classes there are, if that is known before the data is opened.
      exif_rotate: the default of `config.data.exif_rotate`: whether images are turned upright.

    Returns:
      The decorator. A class is called as `cls([argument,] split, resolution, **options)`. A
      function is called as `open([argument,] resolution, **options)` and returns the sources to
      train on and to evaluate on; if it has the option `on_error`, it gets "raise" or "skip".

    Raises:
      TypeError, ValueError: the entry is incomplete, or the name is taken.
    """
    origin = _origin(sys._getframe(1).f_globals)

    def register(opener: Registered) -> Registered:
        entry = Entry(
            pattern=pattern,
            default_recipe=default_recipe,
            num_classes=num_classes,
            exif_rotate=exif_rotate,
            origin=origin,
            **_interface(pattern, opener, splits),
        )
        _check_entry(entry, opener.__module__)
        _REGISTRY[_parse(pattern)[0]] = entry
        pickle_by_value(opener.__module__)
        return opener

    return register


def find_entry(name: str, field: str = "data.name") -> tuple[Entry, str]:
    """Finds a source by its name, and imports the module or the file that registers it.

    Args:
      name: as in `config.data.name`: "digits", "tfds/cifar10", "folder:/photographs",
        "FILE.py:NAME".
      field: where the name was given, for messages.

    Returns:
      The entry, and the argument in the name ("" for a source that takes none).

    Raises:
      ValueError: no source has this name, or the file fails; the message lists the sources.
      NotFound: the file of "FILE.py:NAME" is missing.
    """
    if match := _NAME.fullmatch(name):
        head, separator, argument = match[1], match[2] or "", match[3] or ""
        if head not in _REGISTRY and importlib.util.find_spec(f"{_BUILT_IN}.{head}"):
            importlib.import_module(f"{_BUILT_IN}.{head}")
        entry = _REGISTRY.get(head)
        if entry and entry.separator == separator:
            return entry, argument
    file, in_file, inner = name.partition(".py:")
    if in_file:
        _import_file(Path(f"{file}.py"), field)
        return find_entry(inner, field)
    choices = ", ".join(repr(pattern) for pattern in (*patterns(), "FILE.py:NAME"))
    raise ValueError(f"{field}: got {name!r}, expected one of {choices}")


def patterns(option: str | None = None) -> tuple[str, ...]:
    """The patterns of all sources, sorted; with `option`, only of those that take this option."""
    for module in pkgutil.iter_modules(importlib.import_module(_BUILT_IN).__path__):
        importlib.import_module(f"{_BUILT_IN}.{module.name}")
    entries = _REGISTRY.values()
    return tuple(sorted(e.pattern for e in entries if option is None or option in e.options))


def crop_for(name: str, crop: Mapping[str, object]) -> dict[str, object]:
    """The crop of a trained network as it applies to a source.

    Args:
      name: the name of the source.
      crop: options of `decode.decode_view` that the network was trained with.

    Returns:
      Nothing for a source without crop options; else `crop`, without `exif_rotate` for a source
      whose images are read as they are stored.
    """
    entry, _ = find_entry(name)
    if "crop" not in entry.options:
        return {}
    return {k: v for k, v in crop.items() if k != "exif_rotate" or entry.exif_rotate}


def open_pair(
    name: str,
    *,
    resolution: Resolution,
    channels: int | None = None,
    crop: Mapping[str, object] | None = None,
    on_error: str = "raise",
    may_be_empty: bool = False,
    **options: Any,
) -> tuple[Source, Source]:
    """Opens a data set to train on and to evaluate on; the two have no example in common.

    Args:
      name: the name of the source, see `find_entry`.
      resolution: of the images in pixels: the side of squares, or (height, width).
      channels: that the images must have; None takes what the source has by default.
      crop: options of `decode.decode_view`, for sources of encoded images; those that are None
        count as not given.
      on_error: "raise", or "skip" to accept data with files that are not images and with empty
        classes; the loader leaves out what cannot be read.
      may_be_empty: whether one of the two may have no example, which training needs in both.
      **options: the other fields of `config.data` that choose what is read, see configs/common.py
        and the source's own documentation; None counts as not given.

    Raises:
      ValueError: an unknown name or split (the message lists the choices), a value out of range,
        an option that this source does not take, images of another number of channels, data that
        is not laid out as it should be, or has nothing to train or to evaluate on.
      NotFound: the data is missing; the message says how to get it.
    """
    choose("data.on_error", on_error, ON_ERROR)
    entry, argument = find_entry(name)
    if "://" in argument:
        raise NotFound(f"data.name: {argument} is an address, and nothing is downloaded")
    options = {key: value for key, value in options.items() if value is not None}
    crop = {key: value for key, value in (crop or {}).items() if value is not None}
    for option in (*options, *crop):
        if ("crop" if option in crop else option) not in entry.options:
            raise ValueError(f"data.{option}: {name!r} has no such option, it must be None")
    resolution = check_resolution("data.resolution", resolution, 1)
    _check_values(options)
    if "crop" in entry.options:
        options["crop"] = {"exif_rotate": True, **crop} if entry.exif_rotate else crop
        if channels not in (None, 3):  # options of `decode_view` that a source passes on
            options["crop"] = {**options["crop"], "channels": channels}
    if "channels" in entry.options and channels is not None:
        options["channels"] = channels
    if "on_error" in entry.options:
        options["on_error"] = on_error
    for option in entry.required:
        if option not in options:
            raise ValueError(f"data.{option}: got None, but {name!r} needs it")
    pair = entry.open(*([argument] if entry.separator else []), resolution, **options)
    for opened in pair:
        if missing := [key for key in _ATTRIBUTES if not hasattr(opened, key)]:
            raise ValueError(
                f"data.name: {name!r} is incomplete: {type(opened).__name__} does not set "
                f"{', '.join(missing)}"
            )
        if channels not in (None, opened.channels):
            raise ValueError(
                f"net.in_channels: the images of {name!r} have "
                f"{counted(opened.channels, 'channel')}, but the network takes {channels}"
            )
    for opened, purpose in zip(pair, ("train", "evaluate"), strict=True):
        if not len(opened) and not may_be_empty:
            nothing = f"{opened.name}: nothing to {purpose} on, its split {opened.split} is empty"
            raise ValueError("; ".join((nothing, *opened.notes)))
    return pair


def _check_values(options: Mapping[str, Any]) -> None:
    for option in ("num_classes", "num_examples"):
        value = options.get(option)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"data.{option}: got {value!r}, expected a whole number of at least 1")
    fraction = options.get("split_fraction")
    if fraction is not None:
        if not 0 < fraction < 1:
            raise ValueError(f"data.split_fraction: got {fraction!r}, expected between 0 and 1")
        if "eval_split" in options:
            raise ValueError("data.split_fraction: data.eval_split is given too; one must be None")


def _parse(pattern: str) -> tuple[str, str]:
    """("tfds", "/") for "tfds/NAME", ("digits", "") for "digits"."""
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        raise ValueError(
            f"source {pattern!r}: expected a lower-case name, with a capital word for its argument "
            "if it takes one: 'tables', 'tables/NAME' or 'tables:PATH'"
        )
    return match[1], match[2] or ""


def _interface(
    pattern: str, opener: Callable[..., Any], splits: Sequence[str] | None
) -> dict[str, Any]:
    """The fields of an entry that follow from the signature of its class or function."""
    expected = ["argument"] if _parse(pattern)[1] else []
    if isinstance(opener, type):
        if not issubclass(opener, Source):
            raise TypeError(f"source {pattern!r}: {opener.__name__} is not a subclass of Source")
        if missing := sorted(opener.__abstractmethods__):
            raise TypeError(
                f"source {pattern!r}: {opener.__name__} does not define {', '.join(missing)}"
            )
        if splits is None or len(splits) < 2 or len(set(splits)) < len(splits):
            raise ValueError(
                f"source {pattern!r}: splits: got {splits!r}, expected the names of at least two: "
                "to train on and to evaluate on"
            )
        expected.append("split")
    elif splits is not None:
        raise ValueError(f"source {pattern!r}: splits are for a class; a function opens its own")
    expected.append("resolution")
    parameters = inspect.signature(opener).parameters
    others = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if len(others) != len(expected) or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in others):
        raise TypeError(
            f"source {pattern!r}: {opener.__name__} has the parameters "
            f"({', '.join(map(str, parameters.values()))}), expected ({', '.join(expected)}) and "
            "then keyword-only options"
        )
    options = option_names(opener)
    required = tuple(o for o in options if parameters[o].default is inspect.Parameter.empty)
    if splits is None:
        return {"open": opener, "options": options, "required": required}
    options += ("eval_split",) if len(splits) > 2 else ()
    opened = _opener_of_splits(opener, tuple(splits))
    return {"open": opened, "options": options, "required": required}


def _opener_of_splits(
    cls: Callable[..., Source], splits: tuple[str, ...]
) -> Callable[..., tuple[Source, Source]]:
    train, *held_out = splits

    def opener(*arguments: Any, eval_split: str | None = None, **options: Any):
        *argument, resolution = arguments
        evaluate = choose("data.eval_split", eval_split or held_out[0], held_out)
        return (
            cls(*argument, train, resolution, **options),
            cls(*argument, evaluate, resolution, **options),
        )

    return opener


def _check_entry(entry: Entry, module: str) -> None:
    recipe, (head, _) = entry.default_recipe, _parse(entry.pattern)
    if not (callable(recipe) or (isinstance(recipe, str) and recipe)):
        raise ValueError(
            f"source {entry.pattern!r}: default_recipe: got {recipe!r}, expected the name of a "
            "recipe of configs/recipes.py or a function"
        )
    parent, _, stem = module.rpartition(".")
    if parent == _BUILT_IN:
        if stem != head:
            raise ValueError(f"source {entry.pattern!r}: its module must be {_BUILT_IN}.{head}")
    elif importlib.util.find_spec(f"{_BUILT_IN}.{head}"):
        raise ValueError(f"source {entry.pattern!r}: {head!r} is the name of a built-in source")
    elif head in _REGISTRY and _REGISTRY[head].origin != entry.origin:
        # The same file may register it again: a configuration file is read more than once.
        raise ValueError(
            f"source {entry.pattern!r}: {_REGISTRY[head].origin} has registered this name already"
        )


def _origin(namespace: Mapping[str, Any]) -> str:
    """The file of a module; of a notebook, which has none, the name "__main__"."""
    file = namespace.get("__file__")
    return os.fspath(Path(file).resolve()) if file else namespace["__name__"]


def _import_file(path: Path, field: str) -> None:
    path = expand_user(path, field).resolve()
    if any(entry.origin == os.fspath(path) for entry in _REGISTRY.values()):
        return
    spec = importlib.util.spec_from_file_location(f"source_file_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise NotFound(f"{field}: {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as e:  # whatever the file does
        raise ValueError(f"{field}: {path}: {type(e).__name__}: {e}") from e
