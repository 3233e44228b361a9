"""Training recipes for ImageNet: who published them, what they reached, and what is unknown.

A recipe takes a configuration of any network and fills in the rest; they are in
`tensorflow_recipes.py` (the papers' and those after TensorFlow) and `torch_recipes.py` (those of
PyTorch and PaddlePaddle). The decorator says where a recipe comes from and which of its fields are
not published, so that the value is chosen here; `mbv3 recipes` lists all of it. The docstring of a
recipe says how it differs from a known source.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

Recipe = Callable[[ConfigDict], ConfigDict]

LARGE, SMALL = "mobilenet_v3_large", "mobilenet_v3_small"
# The networks of a family that recipes are published for; configurations of others take them, too.
FAMILIES = {"v3": (LARGE, SMALL), "v2": ("mobilenet_v2",), "mnasnet": ("mnasnet_a1",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A recipe and where it comes from.

    name: what follows ",recipe=".
    families: of networks that take it, keys of `FAMILIES`.
    recipe: the function.
    source: who published it.
    top1: network -> the accuracy on ImageNet that is published for it, in percent.
    chosen: fields that the source does not give, whose values are chosen here.
    cost: the machine, and its hours if they are published; None if neither is.
    """

    name: str
    families: tuple[str, ...]
    recipe: Recipe
    source: str
    top1: Mapping[str, float]
    chosen: tuple[str, ...] = ()
    cost: str | None = None


# In the order of the list; the first of a family is that of its paper.
PUBLISHED: list[Published] = []


def published(name: str, *families: str, **origin: Any) -> Callable[[Recipe], Recipe]:
    """The decorator of a recipe; the arguments are the fields of `Published`."""

    def add(recipe: Recipe) -> Recipe:
        PUBLISHED.append(Published(name=name, families=families, recipe=recipe, **origin))
        return recipe

    return add


def of_family(family: str) -> dict[str, Recipe]:
    """The recipes of a family of networks by name."""
    return {entry.name: entry.recipe for entry in PUBLISHED if family in entry.families}


def base(config: ConfigDict) -> ConfigDict:
    """What the ImageNet recipes share: Inception crops on the host, flips on the device."""
    config.net.update(resolution=224, dropout=0.2)
    config.data.prefetch_batches = 2
    config.augment.update(normalize="inception", flip=True)
    config.log_every_steps = 50
    config.eval_batch_size = 1024
    config.eval_every_epochs = 5.0
    config.checkpoint_every_epochs = 1.0
    return config
