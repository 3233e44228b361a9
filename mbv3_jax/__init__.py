"""MobileNetV3 in JAX: the networks, their training, their ablations.

    import jax
    import mbv3_jax

    spec = mbv3_jax.build("mobilenet_v3_large", width=0.75)
    variables = mbv3_jax.init(spec, jax.random.key(0))
    logits, _ = mbv3_jax.apply(spec, variables, images)
    print(mbv3_jax.cost.madds(spec))
    model = mbv3_jax.load("runs/small")

Importing the package imports only a small part of the standard library. JAX is imported by the
first call of `init`, `apply`, `features` or `load`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

    from mbv3_jax.arch import NetSpec, build, cost
    from mbv3_jax.nn.functional import FeatureMap, Variables
    from mbv3_jax.nn.modules import Compute
    from mbv3_jax.run.model import Model

__all__ = ["NetSpec", "apply", "build", "cost", "features", "init", "load"]


def __getattr__(name: str) -> Any:
    if name in ("NetSpec", "build", "cost"):
        from mbv3_jax.arch import NetSpec, build, cost

        return {"NetSpec": NetSpec, "build": build, "cost": cost}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def init(spec: NetSpec, key: jax.Array) -> Variables:
    """Initialises the variables of a network, in one compiled program for each spec.

    Args:
      spec: the network, see `build`.
      key: randomness, `jax.random.key(0)`.

    Returns:
      {"params": ..., "batch_stats": ...}, nested by layer name, all float32.
    """
    from mbv3_jax.nn import functional  # imports JAX, like all imports inside these functions

    return functional.init(spec, key)


def apply(
    spec: NetSpec,
    variables: Variables,
    images: jax.Array,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    compute: Compute | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Runs a network, compiled once for each spec, image shape and `train`.

    `nn.functional.apply` is the same function without compilation, for programs that compile it as
    a part of a larger function.

    Args:
      spec: the network.
      variables: from `init`, or the `variables` of a `load`ed model.
      images: normalised images [batch, height, width, channels].
      train: whether to normalise by the statistics of the batch, update the running ones, and use
        dropout.
      key: randomness for dropout and drop-path; training with either needs it.
      compute: types and forms of computation; None for float32.

    Returns:
      Float32 logits [batch, classes], and the new batch_stats: the old ones unless `train`.

    Raises:
      ValueError: the images or the variables do not fit the network, or the key is missing.
    """
    options = {} if compute is None else {"compute": compute}
    run = _compiled("apply", "train", "compute")
    return run(spec, variables, images, train=train, key=key, **options)


def features(
    spec: NetSpec,
    variables: Variables,
    images: jax.Array,
    *,
    stages: Sequence[str] | None = None,
    compute: Compute | None = None,
) -> tuple[FeatureMap, ...]:
    """Runs a network as a backbone, compiled once for each spec, image shape and `stages`.

    Args:
      spec, variables, images: as for `apply`.
      stages: names from `spec.strides()`: "stem", "block1", ..., "last". None takes the last stage
        of each stride that the network has (usually 2, 4, 8, 16 and 32).
      compute: types and forms of computation; None for float32.

    Returns:
      For each of `stages` a map with `values` [batch, height, width, channels], `stage` and
      `stride`.

    Raises:
      ValueError: a stage is unknown, or the images do not fit the network.
    """
    options = {} if compute is None else {"compute": compute}
    run = _compiled("features", "stages", "compute")
    return run(spec, variables, images, stages=tuple(stages) if stages else None, **options)


@functools.cache
def _compiled(name: str, *static: str):
    import jax

    from mbv3_jax.nn import functional

    return jax.jit(getattr(functional, name), static_argnums=0, static_argnames=static)


def load(folder: str | Path, *, step: int | str | None = None, weights: str = "auto") -> Model:
    """Reads a trained network from a run folder or an import folder.

    Args:
      folder: a run folder, or a folder written by `mbv3 import`.
      step: which checkpoint of a run: a number, "best", or None for the newest.
      weights: which weights of a run: "ema", "raw", or "auto" for the average if there is one.

    Returns:
      The network's spec, variables, preprocessing and class names.

    Raises:
      UsageError: the folder is missing or of another kind, or an option does not fit it.
      RunError: the folder is damaged, or has no such checkpoint.
    """
    from mbv3_jax.run.model import load_model

    return load_model(Path(folder), step=step, weights=weights)
