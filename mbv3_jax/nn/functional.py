"""Networks as pure functions of plain nested dicts: the one adapter around the Flax modules.

`variables` is {"params": {...}, "batch_stats": {...}}, both nested by layer name, all float32;
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
    """Fresh variables of the network.

    Kernels are normal with variance 2 / fan-out (He et al. 2015, as MnasNet and torchvision
    initialise MobileNets), head and logits normal with deviation .01; biases and running means
    are zero, BatchNorm scales and running variances one.
    """
    return _init(spec, key)


@functools.partial(jax.jit, static_argnums=0)
def _init(spec: NetSpec, key: jax.Array) -> Variables:
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes(spec))
    # One draw for all kernels: a draw a kernel takes XLA ten seconds to compile.
    total = sum(math.prod(x.shape) for path, x in leaves if path[-1].key == "kernel")
    noise, used, values = jax.random.normal(key, (total,)), 0, []
    for path, x in leaves:
        *layer, kind = (p.key for p in path)
        if kind == "kernel":
            size = math.prod(x.shape)
            deviation = _deviation(layer, x.shape)
            values.append(deviation * noise[used : used + size].reshape(x.shape))
            used += size
        else:
            values.append(jnp.full(x.shape, 1.0 if kind in ("scale", "var") else 0.0))
    return jax.tree.unflatten(tree, values)


def _deviation(layer: list[str], shape: tuple[int, ...]) -> float:
    """Standard deviation of a fresh kernel [k, k, in, out]."""
    if layer[-1] in ("head", "logits"):
        return 0.01
    # Each output of a depthwise layer's input channel belongs to that channel alone.
    channels_out = 1 if "depthwise" in layer else shape[3]
    return math.sqrt(2 / (shape[0] * shape[1] * channels_out))


@functools.lru_cache(maxsize=64)
def _template(spec: NetSpec, compute: Compute):
    """The module's structure and the shapes of its variables, without any array."""
    model = nnx.eval_shape(lambda: MobileNet(spec, compute))
    return nnx.graphdef(model), _variables(model)


def _variables(model: MobileNet) -> Variables:
    _, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(batch_stats),
    }


def shapes(spec: NetSpec) -> Variables:
    """The variables as `jax.ShapeDtypeStruct`s: what a checkpoint of this network holds."""
    # A copy: the cached dicts must not change with what a caller does to its own.
    found = jax.tree.map(lambda x: x, _template(spec, Compute())[1])
    if spec.quant:
        found["batch_stats"]["quant"] = fake_quant.state_shapes(spec)
    return found


def check(spec: NetSpec, variables: Variables) -> None:
    """Holds variables against the network they are meant for.

    Raises:
      ValueError: listing every missing, surplus or misshapen entry by path with both shapes.
    """
    flatten = jax.tree_util.tree_leaves_with_path
    got = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flatten(variables)}
    want = {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flatten(shapes(spec))
    }
    problems = [f"{path}: missing, expected {want[path].shape}" for path in want.keys() - got]
    problems += [f"{path}: surplus, has {got[path].shape}" for path in got.keys() - want]
    problems += [
        f"{path}: got {got[path].shape}, expected {want[path].shape}"
        for path in want.keys() & got
        if got[path].shape != want[path].shape
    ]
    if problems:
        raise ValueError(f"variables do not fit {spec.name}:\n  " + "\n  ".join(sorted(problems)))


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
      variables: what `init` returned or training made of it.
      images: normalised [N, H, W, in_channels]; H and W need not be `spec.resolution`.
      train: normalise by the batch's statistics and move the running ones; drop out.
      key: randomness for dropout and drop-path, needed for training with either.
      compute: types and forms of computation.

    Returns:
      Float32 logits [N, num_classes] and the new batch_stats (the old ones unless `train`).

    Raises:
      ValueError: the images do not fit, or the key is missing.
    """
    if spec.quant:
        how = {"train": train, "key": key, "compute": compute}
        return fake_quant.apply(spec, variables, images, **how)
    model = _merge(spec, variables, compute)
    logits = model(images, train=train, key=key)
    if not train:
        return logits, variables["batch_stats"]
    return logits, _variables(model)["batch_stats"]


def _merge(spec: NetSpec, variables: Variables, compute: Compute) -> MobileNet:
    graphdef, _ = _template(spec, compute)
    # A module would write new statistics into NumPy arrays, which are the caller's.
    batch_stats = jax.tree.map(jnp.asarray, variables["batch_stats"])
    batch_stats.pop("quant", None)  # maps and embeddings are those of the float network
    return nnx.merge(graphdef, variables["params"], batch_stats)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["stage", "stride"]
)
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """The output of a stage: values [N, ceil(H / stride), ceil(W / stride), C]."""

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
    """Runs the network as a backbone, for heads of detection or segmentation.

    Works under `jax.jit` with `spec`, `stages` (a tuple) and `compute` static; strides stay
    plain integers. BatchNorm takes its running statistics. What comes after the last stage asked
    for is not computed.

    Args:
      spec: the network.
      variables: as for `apply`.
      images: as for `apply`.
      stages: names of `spec.strides()`: "stem", "block1", ..., "last". None: the last stage of
        each stride, whichever strides the network has (2, 4, 8, 16 and 32).
      compute: types and forms of computation.

    Returns:
      A map for each of `stages`, in that order, of the compute type.

    Raises:
      ValueError: an unknown stage, or images that do not fit.
    """
    strides = spec.strides()
    if stages is None:
        stages = tuple({stride: name for name, stride in strides.items()}.values())
    for name in stages:
        choose("stages", name, strides)
    model, found = _merge(spec, variables, compute), {}
    for name, values in model.maps(images):
        if name in stages:
            found[name] = FeatureMap(values, name, strides[name])
        if len(found) == len(set(stages)):
            break
    return tuple(found[name] for name in stages)


def embed(
    spec: NetSpec,
    variables: Variables,
    images: jax.Array,
    *,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> jax.Array:
    """What the logits are a linear function of: float32 [N, channels]; arguments as `apply`."""
    model = _merge(spec, variables, compute)
    *_, (_, last) = model.maps(images)
    return model.embed(last)[:, 0, 0].astype(jnp.float32)
