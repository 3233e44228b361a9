"""The shared network: every network of a space is a masked part of the largest one.

A part has the first channels of each layer, the middle of each kernel, and the first blocks of each
stage. Which part is computed is an input, the switches, so that one compiled program serves all.
BatchNorm normalises by the batch, as in TuNAS: running statistics would mix the networks.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.activations import ACTIVATIONS, GATES
from mbv3_jax.arch.spec import BlockSpec, NetSpec, make_divisible
from mbv3_jax.nn import functional, ops
from mbv3_jax.nn.modules import DTYPES, Compute
from mbv3_jax.search.space import Point, Space

Tree = dict  # nested dicts of arrays


def largest(space: Space) -> NetSpec:
    """The network with room for all: the widest, with the largest kernels and all blocks.

    Raises:
      ValueError: the space has drop-path, or blocks of which only some expand in the largest.
    """
    if space.base.drop_path:
        raise ValueError(f"{space.name}: drop_path: got {space.base.drop_path}, expected 0")
    blocks, inputs, room = [], (space.base.stem.out,), space.base.stem.out
    for stage in space.stages:
        can_skip = 0 in stage.depth  # it then hands on what came before it
        after = max(*stage.out, room if can_skip else 0)
        for i in range(max(stage.depth)):
            widths = inputs if i == 0 else stage.out
            expansions = [w if e == 1 else make_divisible(w * e) for w in widths
                          for e in stage.expansion]  # fmt: skip
            block = BlockSpec(
                kernel=max(stage.kernel),
                expansion=max(expansions),
                out=after,
                act=stage.act[0],
                stride=stage.stride if i == 0 else 1,
                se=space.squeeze_excite if any(stage.se) else None,
            )
            blocks.append(block)
            if block.expansion == room and set(stage.expansion) != {1}:
                raise ValueError(
                    f"{space.name}: block {len(blocks)} has no expansion layer in the largest "
                    f"network, but in others; expected expansions of 1 alone, or one above"
                )
            room = after
        inputs = (*stage.out, *inputs) if can_skip else stage.out
    last = space.base.last
    if space.last_factor is not None:
        last = dataclasses.replace(last, out=make_divisible(space.last_factor * max(inputs)))
    return space.base.replace(name=f"{space.name}_largest", blocks=tuple(blocks), last=last)


def switches(space: Space, points: Sequence[Point]) -> Tree:
    """What makes `apply` compute points: float32 arrays with a first axis over N points.

    For each block its masks, of channels 1 or 0: expansion, squeeze, out, and kernel [k, k, 1, 1];
    and its flags: there, expand, se, shortcut, act (the number of the stage's choice). For `last`
    the mask of its channels.
    """
    whole, acts = largest(space), _acts(space)
    trees = [_switches(space, whole, acts, point) for point in points]
    return jax.tree.map(lambda *x: np.stack(x).astype(np.float32), *trees)


def _acts(space: Space) -> list[tuple[str, ...]]:
    """The nonlinearities that each block of the largest network chooses from."""
    return [stage.act for stage in space.stages for _ in range(max(stage.depth))]


def _switches(space: Space, whole: NetSpec, acts, point: Point) -> Tree:
    spec = space.to_spec(point)
    inputs, tree = spec.block_inputs(), {"last": _first(whole.last.out, spec.last.out)}
    parts = {slot: index for index, slot in enumerate(space.slots(point))}
    for slot, room in enumerate(whole.blocks):
        index = parts.get(slot)
        own = None if index is None else spec.blocks[index]
        squeeze = whole_squeeze = 0
        if room.se:
            widths = {"expansion": room.expansion, "block_input": whole.block_inputs()[slot]}
            whole_squeeze = room.se.channels(**widths)
        if own and own.se:
            squeeze = own.se.channels(expansion=own.expansion, block_input=inputs[index])
        tree[f"block{slot + 1}"] = {
            "there": own is not None,
            "expand": own is not None and spec.has_expand(index),
            "shortcut": own is not None and spec.has_shortcut(index),
            "se": bool(own and own.se),
            "act": acts[slot].index(own.act) if own else 0,
            "expansion": _first(room.expansion, own.expansion if own else 0),
            "squeeze": _first(whole_squeeze, squeeze),
            "out": _first(room.out, own.out if own else 0),
            "kernel": _middle(room.kernel, own.kernel if own else 0),
        }
    return tree


def _first(size: int, used: int) -> np.ndarray:
    return np.arange(size) < used


def _middle(size: int, used: int) -> np.ndarray:
    at = np.abs(np.arange(size) - size // 2) <= (used - 1) // 2 if used else np.zeros(size, bool)
    return (at[:, None] & at)[..., None, None]


def apply(
    space: Space,
    params: Tree,
    images: jax.Array,
    switches: Tree,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> jax.Array:
    """Computes the network of one point, normalised by the statistics of the batch.

    Args:
      space: whose networks.
      params: of `largest(space)`, as `functional.init` gives them.
      images: normalised [N, H, W, 3].
      switches: of one point, without the axis of points.
      train: drop out; it takes a key.
      key: randomness.
      compute: types and forms of computation.

    Returns:
      Float32 logits [N, num_classes].
    """
    spec, groups = largest(space), {"eps": space.base.bn_eps, "groups": compute.bn_groups}
    acts = _acts(space)

    def norm(layer, x, choices, number):
        """BatchNorm, and the nonlinearity of this number."""
        how = layer["bn"]["scale"], layer["bn"]["bias"]
        if len(choices) == 1:
            act = ACTIVATIONS[choices[0]] if choices[0] else None
            return ops.batch_norm_train(x, *how, act=act, **groups)[0]
        x = ops.batch_norm_train(x, *how, **groups)[0]
        y = ACTIVATIONS[choices[0]](x)
        for i, name in enumerate(choices[1:], start=1):
            y = jnp.where(number == i, ACTIVATIONS[name](x), y)
        return y

    def squeeze_excite(layer, x, se, mask):
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        squeezed = ACTIVATIONS[se.act](_pointwise(layer["reduce"], pooled)) * mask.astype(x.dtype)
        return GATES[se.gate](_pointwise(layer["expand"], squeezed))

    def block(layer, x, own, acts, on, has_expand):
        def masked(x, mask):
            return x * mask.astype(x.dtype)

        y = _fit(x, own.expansion)
        if has_expand:
            z = ops.pointwise_conv(x, layer["expand"]["conv"]["kernel"])
            z = masked(norm(layer["expand"], z, acts, on["act"]), on["expansion"])
            y = jnp.where(on["expand"] > 0, z, y)
        kernel = layer["depthwise"]["conv"]["kernel"] * on["kernel"]
        how = {"stride": own.stride, "padding": spec.padding, "impl": compute.depthwise}
        y = ops.depthwise_conv(y, kernel, **how)
        y = masked(norm(layer["depthwise"], y, acts, on["act"]), on["expansion"])
        if own.se:
            gate = squeeze_excite(layer["se"], y, own.se, on["squeeze"])
            y = y * jnp.where(on["se"] > 0, gate, jnp.ones_like(gate))
        y = ops.pointwise_conv(y, layer["project"]["conv"]["kernel"])
        y = masked(norm(layer["project"], y, (None,), None), on["out"])
        if own.stride > 1:
            return y
        before = _fit(x, own.out)
        return jnp.where(on["there"] > 0, y + before * on["shortcut"].astype(x.dtype), before)

    x = images.astype(DTYPES[compute.dtype])
    x = ops.conv(x, params["stem"]["conv"]["kernel"], stride=spec.stem.stride, padding=spec.padding)
    x = norm(params["stem"], x, (spec.stem.act,), None)
    if spec.stem.se:
        x = x * squeeze_excite(params["stem"]["se"], x, spec.stem.se, jnp.ones(()))
    for i, own in enumerate(spec.blocks):
        name = f"block{i + 1}"
        x = block(params[name], x, own, acts[i], switches[name], spec.has_expand(i))
    x = norm(params["last"], ops.pointwise_conv(x, params["last"]["conv"]["kernel"]),
             (spec.last.act,), None) * switches["last"].astype(x.dtype)  # fmt: skip
    if spec.last.se:
        raise ValueError(f"{spec.name}: last.se: a supernet has none")
    x = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    if spec.head:
        x = ACTIVATIONS[spec.head.act](_pointwise(params["head"], x))
    if train and spec.dropout:
        keep = jax.random.bernoulli(key, 1 - spec.dropout, x.shape)
        x = jnp.where(keep, x / (1 - spec.dropout), 0)
    return _pointwise(params["logits"], x.astype(jnp.float32))[:, 0, 0]


def _pointwise(layer: Tree, x: jax.Array) -> jax.Array:
    return ops.pointwise_conv(x, layer["kernel"], layer["bias"])


def _fit(x: jax.Array, channels: int) -> jax.Array:
    """The first channels of x; more of them are zero."""
    missing = max(0, channels - x.shape[-1])
    return jnp.pad(x, [(0, 0)] * 3 + [(0, missing)])[..., :channels]


def extract(space: Space, params: Tree, point: Point) -> functional.Variables:
    """A point's own variables; its running statistics are still to be taken, by `calibrate`."""
    spec = space.to_spec(point)
    places = {f"block{i + 1}": f"block{s + 1}" for i, s in enumerate(space.slots(point))}

    def take(path, leaf):
        stage, *rest = (p.key for p in path)
        whole = params[places.get(stage, stage)]
        for name in rest:
            whole = whole[name]
        if leaf.ndim < 4:
            return whole[: leaf.shape[0]]
        margins = [(n - k) // 2 for n, k in zip(whole.shape[:2], leaf.shape[:2], strict=True)]
        middle = [slice(m, m + k) for m, k in zip(margins, leaf.shape[:2], strict=True)]
        return whole[(*middle, slice(leaf.shape[2]), slice(leaf.shape[3]))]

    shapes = functional.shapes(spec)
    return {
        "params": jax.tree_util.tree_map_with_path(take, shapes["params"]),
        "batch_stats": jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full(x.shape, float(path[-1].key == "var")), shapes["batch_stats"]
        ),
    }


def calibrate(spec: NetSpec, variables: functional.Variables, batches) -> functional.Variables:
    """The variables with running statistics that are the mean over normalised image batches.

    Raises:
      ValueError: no batches.
    """
    plain = spec.replace(bn_decay=0.0, dropout=0.0, drop_path=0.0)  # each batch's own statistics
    run = jax.jit(lambda images: functional.apply(plain, variables, images, train=True)[1])
    total = count = 0
    for images in batches:
        stats = run(images)
        total = jax.tree.map(jnp.add, total, stats) if count else stats
        count += 1
    if not count:
        raise ValueError("calibrate: got no batches")
    return variables | {"batch_stats": jax.tree.map(lambda x: x / count, total)}
