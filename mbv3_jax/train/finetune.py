"""Fine-tuning: which stages are frozen, and the learning rates of groups of parameters."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import check_number, choose
from mbv3_jax.train.optimizers import parameter_paths
from mbv3_jax.train.state import PROJECTIONS

Tree = Any  # nested dicts of arrays


def stages(spec: NetSpec) -> tuple[str, ...]:
    """All stages of a network in order: "stem", "block1", ..., "last", "head", "logits"."""
    return (*spec.strides(), *(("head",) if spec.head else ()), "logits")


def frozen_stages(spec: NetSpec, text: str) -> tuple[str, ...]:
    """The stages that a text names.

    Args:
      spec: the network.
      text: names of `stages`, separated by commas; a number stands for a block, a dash for a
        range: "stem-block6", "stem,1-6", "head".

    Raises:
      ValueError: a name is unknown, a range runs backwards, or no stage is left to train.
    """
    names = stages(spec)

    def position(name: str) -> int:
        name = f"block{name}" if name.isdigit() else name
        return names.index(choose("finetune.frozen", name, names))

    chosen: set[str] = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        first, dash, last = (p.strip() for p in part.partition("-"))
        low, high = position(first), position(last if dash else first)
        if low > high:
            raise ValueError(f"finetune.frozen: got {part!r}, where {last} comes before {first}")
        chosen.update(names[low : high + 1])
    if len(chosen) == len(names):
        raise ValueError(f"finetune.frozen: got {text!r}, which leaves no stage to train")
    return tuple(name for name in names if name in chosen)


def rate_factors(
    params: Tree,
    *,
    backbone: float = 1.0,
    patterns: Sequence[tuple[str, float]] = (),
    frozen: Sequence[str] = (),
) -> Tree:
    """The factor of the learning rate of each parameter.

    Args:
      params: nested dicts by stage.
      backbone: the factor of everything except the logits and the projections of hints.
      patterns: (regular expression over a whole parameter path, factor); the first that matches
        counts and takes precedence over `backbone`.
      frozen: stages whose factor is 0.

    Returns:
      The structure of `params` with a float for each leaf.

    Raises:
      ValueError: a factor is below 0, or an expression is malformed or matches no parameter.
    """
    check_number("finetune.backbone_lr_factor", backbone, at_least=0)
    compiled = [_pattern(pair) for pair in patterns]
    paths = parameter_paths(params)
    for expression, _ in compiled:
        if not any(expression.fullmatch(path) for path in paths):
            raise ValueError(
                f"finetune.lr_factors: {expression.pattern!r} matches no parameter; they have "
                f"paths like {paths[-1]} and {paths[0]}"
            )

    def factor(path: str) -> float:
        stage = path.partition("/")[0]
        if stage in frozen:
            return 0.0
        matching = (value for expression, value in compiled if expression.fullmatch(path))
        return next(matching, 1.0 if stage in ("logits", PROJECTIONS) else backbone)

    return jax.tree.unflatten(jax.tree.structure(params), [factor(path) for path in paths])


def _pattern(pair: Any) -> tuple[re.Pattern, float]:
    match pair:
        case [str(expression), factor]:
            factor = check_number("finetune.lr_factors", factor, at_least=0)
            try:
                return re.compile(expression), factor
            except re.error as e:
                raise ValueError(f"finetune.lr_factors: got {expression!r}: {e}") from e
        case _:
            raise ValueError(
                f"finetune.lr_factors: got {pair!r}, expected pairs (regular expression, factor)"
            )


def scale_rates(
    tx: optax.GradientTransformation, factors: Callable[[Tree], Tree]
) -> optax.GradientTransformation:
    """The optimizer `tx` with the learning rate of each parameter multiplied by its factor.

    The updates of our optimizers are proportional to the learning rate, weight decay included, so
    the factor of the update is the factor of the rate. A parameter whose factor is 0 stays as it
    is.

    Args:
      tx: the optimizer.
      factors: from the parameters to a factor for each, see `rate_factors`.
    """

    def scale(update: jax.Array, factor: float) -> jax.Array:
        return jnp.zeros_like(update) if factor == 0 else update * factor

    def update(gradients: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        updates, state = tx.update(gradients, state, params)
        return jax.tree.map(scale, updates, factors(params)), state

    return optax.GradientTransformation(tx.init, update)
