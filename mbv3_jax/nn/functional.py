"""Networks as pure functions of plain nested dicts: the only adapter around the Flax modules.

`variables` is {"params": {...}, "batch_stats": {...}}, both nested by layer name and all float32:
`params["block3"]["depthwise"]["conv"]["kernel"]` is a kernel [k, k, 1, channels].
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import choose
from mbv3_jax.nn import fake_quant
from mbv3_jax.nn.modules import Compute, MobileNet

Variables = dict[str, dict]


def init(spec: NetSpec, key: jax.Array) -> Variables:
    """Initialises the variables of the network.

    Kernels are drawn from a normal distribution of variance 2 / fan-out (He et al. 2015, as MnasNet
    and torchvision initialise MobileNets), those of head and logits with standard deviation 0.01.
    Biases and running means are zero, BatchNorm scales and running variances one.
    """
    return _init(spec, key)


@functools.partial(jax.jit, static_argnums=0)
def _init(spec: NetSpec, key: jax.Array) -> Variables:
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes(spec))
    # One draw for all kernels: with one for each kernel, XLA compiles for ten seconds.
    total = sum(math.prod(x.shape) for path, x in leaves if path[-1].key == "kernel")
    noise, used, values = jax.random.normal(key, (total,)), 0, []
    for path, x in leaves:
        keys = [p.key for p in path]
        layer, kind = keys[:-1], keys[-1]
        if kind == "kernel":
            size = math.prod(x.shape)
            deviation = _deviation(layer, x.shape)
            values.append(deviation * noise[used : used + size].reshape(x.shape))
            used += size
        else:
            values.append(jnp.full(x.shape, 1.0 if kind in ("scale", "var") else 0.0))
    return jax.tree.unflatten(tree, values)


def _deviation(layer: list[str], shape: tuple[int, ...]) -> float:
    """Standard deviation of a newly drawn kernel [k, k, in, out]."""
    if layer[-1] in ("head", "logits"):
        return 0.01
    # Each input channel of a depthwise layer reaches one output channel only.
    channels_out = 1 if "depthwise" in layer else shape[3]
    return math.sqrt(2 / (shape[0] * shape[1] * channels_out))


@functools.lru_cache(maxsize=64)
def _template(spec: NetSpec, compute: Compute):
    """The module's structure and the shapes of its variables, without allocating arrays."""
    model = nnx.eval_shape(lambda: MobileNet(spec, compute))
    return nnx.graphdef(model), _variables(model)


def _variables(model: MobileNet) -> Variables:
    _, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = states
    return {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(batch_stats),
    }


def shapes(spec: NetSpec) -> Variables:
    """The variables as `jax.ShapeDtypeStruct`s: what a checkpoint of this network holds."""
    # A copy, so that callers cannot change the cached dicts.
    variables = jax.tree.map(lambda x: x, _template(spec, Compute())[1])
    if spec.quant:
        variables["batch_stats"]["quant"] = fake_quant.state_shapes(spec)
    return variables


def check(spec: NetSpec, variables: Variables) -> None:
    """Checks that variables fit a network.

    Raises:
      ValueError: some do not; the message lists every missing, surplus or misshapen entry by its
        path, with both shapes.
    """
    got, want = _by_path(variables), _by_path(shapes(spec))
    problems = [f"{path}: missing, expected {want[path].shape}" for path in want.keys() - got]
    problems += [f"{path}: surplus, has {got[path].shape}" for path in got.keys() - want]
    problems += [
        f"{path}: got {got[path].shape}, expected {want[path].shape}"
        for path in want.keys() & got
        if got[path].shape != want[path].shape
    ]
    if problems:
        raise ValueError(f"variables do not fit {spec.name}:\n  " + "\n  ".join(sorted(problems)))


def _by_path(variables: Variables) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def apply(
    spec: NetSpec,
    variables: Variables,
    images: jax.Array,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, dict]:
    """Runs the network.

    Args:
      spec: the network.
      variables: from `init` or training.
      images: normalised [N, H, W, in_channels]; H and W need not be `spec.resolution`.
      train: normalise by the batch's statistics, update the running ones, and use dropout.
      key: random key for dropout and drop-path; training with either needs it.
      compute: types and forms of computation.

    Returns:
      Float32 logits [N, num_classes], and the new batch_stats (the given ones unless `train`).

    Raises:
      ValueError: the images do not fit, or training needs a key and has none.
    """
    logits, _, batch_stats = apply_with_maps(
        spec, variables, images, stages=(), train=train, key=key, compute=compute
    )
    return logits, batch_stats


def apply_with_maps(
    spec: NetSpec,
    variables: Variables,
    images: jax.Array,
    *,
    stages: Sequence[str],
    train: bool = False,
    key: jax.Array | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Runs the network and keeps the outputs of some stages, for losses on them.

    Args:
      spec, variables, images, train, key, compute: as for `apply`.
      stages: names from `spec.strides()`.

    Returns:
      The logits, {stage: [N, H', W', C]}, and the new batch_stats. Maps of a network with
      `spec.quant` are in simulated int8 in training, and of the float network otherwise.

    Raises:
      ValueError: as `apply`.
    """
    if spec.quant:
        logits, maps, batch_stats = fake_quant.apply(
            spec, variables, images, stages=stages, train=train, key=key, compute=compute
        )
        if stages and not train:
            found = features(spec, variables, images, stages=stages, compute=compute)
            maps = {one.stage: one.values for one in found}
        return logits, maps, batch_stats
    model = _merge(spec, variables, compute)
    logits, maps = model.logits_and_maps(images, train=train, key=key)
    batch_stats = _variables(model)["batch_stats"] if train else variables["batch_stats"]
    return logits, {stage: maps[stage] for stage in stages}, batch_stats


def _merge(spec: NetSpec, variables: Variables, compute: Compute) -> MobileNet:
    graphdef, _ = _template(spec, compute)
    # The module updates statistics in place, and NumPy arrays belong to the caller.
    batch_stats = jax.tree.map(jnp.asarray, variables["batch_stats"])
    batch_stats.pop("quant", None)  # features and embeddings come from the float network
    return nnx.merge(graphdef, variables["params"], batch_stats)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["stage", "stride"]
)
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """The output of a stage.

    Attributes:
      values: [N, ceil(H / stride), ceil(W / stride), C].
      stage: its name, a key of `NetSpec.strides`.
      stride: pixels of the image between neighbouring values.
    """

    values: jax.Array
    stage: str
    stride: int


def features(
    spec: NetSpec,
    variables: Variables,
    images: jax.Array,
    *,
    stages: Sequence[str] | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> tuple[FeatureMap, ...]:
    """Runs the network as a backbone for detection or segmentation.

    It works under `jax.jit` with `spec`, `stages` (a tuple) and `compute` static; strides stay
    plain integers. BatchNorm uses its running statistics. Nothing after the last requested stage
    is computed.

    Args:
      spec: the network.
      variables: as for `apply`.
      images: as for `apply`.
      stages: names from `spec.strides()`: "stem", "block1", ..., "last". None takes the last stage
        of each stride that the network has (usually 2, 4, 8, 16 and 32).
      compute: types and forms of computation.

    Returns:
      One map for each of `stages`, in that order, in the compute type.

    Raises:
      ValueError: an unknown stage, or images that do not fit.
    """
    strides = spec.strides()
    if stages is None:
        stages = tuple({stride: stage for stage, stride in strides.items()}.values())
    for name in stages:
        choose("stages", name, strides)
    model, maps = _merge(spec, variables, compute), {}
    for name, values in model.maps(images):
        if name in stages:
            maps[name] = FeatureMap(values, name, strides[name])
        if len(maps) == len(set(stages)):
            break
    return tuple(maps[name] for name in stages)


def embed(
    spec: NetSpec,
    variables: Variables,
    images: jax.Array,
    *,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> jax.Array:
    """The features that the logits are a linear function of, float32 [N, channels].

    Args:
      spec, variables, images, compute: as for `apply`.
    """
    model = _merge(spec, variables, compute)
    last = next(values for name, values in model.maps(images) if name == "last")
    return model.embed(last)[:, 0, 0].astype(jnp.float32)
