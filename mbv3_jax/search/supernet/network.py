"""The shared network: every network of a space is a masked part of the largest one.

A part consists of the first channels of each layer, the middle of each kernel, and the first blocks
of each stage. Which part is computed is an input, the switches, so that one compiled program serves
all networks. BatchNorm normalises by the batch, as in TuNAS: running statistics would mix networks.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbv3_jax.arch.activations import ACTIVATIONS, GATES
from mbv3_jax.arch.spec import BlockSpec, NetSpec, make_divisible
from mbv3_jax.nn import ops
from mbv3_jax.nn.modules import DTYPES, Compute
from mbv3_jax.search.space import Point, Space

Tree = dict[str, Any]  # nested dicts of arrays


def largest(space: Space) -> NetSpec:
    """Returns the largest network: the widest, with the largest kernels and all blocks.

    Raises:
      ValueError: The space has drop-path, or squeeze-and-excite in its last layer, or a block that
        expands in some networks but not in the largest.
    """
    if space.base.drop_path:
        raise ValueError(f"{space.name}: drop_path: got {space.base.drop_path}, expected 0")
    if space.base.last.se:
        raise ValueError(f"{space.name}: last.se: got {space.base.last.se}, expected None")
    blocks: list[BlockSpec] = []
    room = space.base.stem.out
    inputs: tuple[int, ...] = (room,)
    for stage in space.stages:
        can_skip = 0 in stage.depth  # its output is then its input
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
                    f"{space.name}: block {len(blocks)} has an expansion layer in some networks, "
                    "but not in the largest; expected expansions of 1 alone, or a larger one"
                )
            room = after
        inputs = (*stage.out, *inputs) if can_skip else stage.out
    last = space.base.last
    if space.last_factor is not None:
        last = dataclasses.replace(last, out=make_divisible(space.last_factor * max(inputs)))
    return space.base.replace(name=f"{space.name}_largest", blocks=tuple(blocks), last=last)


def switches(space: Space, points: Sequence[Point]) -> Tree:
    """Returns the inputs of `apply` that select points: float32 arrays whose first axis is [N].

    Each block has masks of channels, 1 or 0, for "expansion", "squeeze" and "out", the mask
    "kernel" [k, k, 1, 1], and flags: "there" (the block exists), "expand", "se", "shortcut", and
    "act" (the index of the stage's choice). "last" is the mask of the last layer's channels.
    """
    whole, acts = largest(space), _acts(space)
    trees = [_switches(space, whole, acts, point) for point in points]
    return jax.tree.map(lambda *x: np.stack(x).astype(np.float32), *trees)


def _acts(space: Space) -> list[tuple[str, ...]]:
    """The nonlinearities that each block of the largest network chooses from."""
    return [stage.act for stage in space.stages for _ in range(max(stage.depth))]


def _switches(space: Space, whole: NetSpec, acts: list[tuple[str, ...]], point: Point) -> Tree:
    spec = space.to_spec(point)
    tree: Tree = {"last": _first(whole.last.out, spec.last.out)}
    indices = {slot: index for index, slot in enumerate(space.slots(point))}
    for slot, room in enumerate(whole.blocks):
        widest_input = whole.block_inputs()[slot]
        squeeze_room = (
            room.se.channels(expansion=room.expansion, block_input=widest_input) if room.se else 0
        )
        if slot in indices:
            part = _block_switches(spec, indices[slot], acts[slot], room, squeeze_room)
        else:
            part = {"there": False, "expand": False, "shortcut": False, "se": False, "act": 0}
            part |= {"expansion": _first(room.expansion, 0), "squeeze": _first(squeeze_room, 0)}
            part |= {"out": _first(room.out, 0), "kernel": _middle(room.kernel, 0)}
        tree[f"block{slot + 1}"] = part
    return tree


def _block_switches(
    spec: NetSpec, index: int, acts: tuple[str, ...], room: BlockSpec, squeeze_room: int
) -> Tree:
    """The switches of a block that exists; `room` is its block of the largest network."""
    block, squeeze = spec.blocks[index], 0
    if block.se:
        block_input = spec.block_inputs()[index]
        squeeze = block.se.channels(expansion=block.expansion, block_input=block_input)
    return {
        "there": True,
        "expand": spec.has_expand(index),
        "shortcut": spec.has_shortcut(index),
        "se": bool(block.se),
        "act": acts.index(block.act),
        "expansion": _first(room.expansion, block.expansion),
        "squeeze": _first(squeeze_room, squeeze),
        "out": _first(room.out, block.out),
        "kernel": _middle(room.kernel, block.kernel),
    }


def _first(size: int, used: int) -> np.ndarray:
    return np.arange(size) < used


def _middle(size: int, used: int) -> np.ndarray:
    if not used:
        return np.zeros((size, size, 1, 1), bool)
    at = np.abs(np.arange(size) - size // 2) <= (used - 1) // 2
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
      space: The space of the network.
      params: Parameters of `largest(space)`, as `functional.init` returns them.
      images: Normalised images [batch, height, width, 3].
      switches: The switches of one point, without the axis of points.
      train: Whether to use dropout, which needs a key.
      key: Randomness.
      compute: Types and forms of the computation.

    Returns:
      Float32 logits [batch, num_classes].
    """
    spec, acts = largest(space), _acts(space)
    bn_options = {"eps": space.base.bn_eps, "groups": compute.bn_groups}

    def norm(layer, x, choices, number):
        """BatchNorm, followed by the nonlinearity of this number among the choices."""
        scale, bias = layer["bn"]["scale"], layer["bn"]["bias"]
        if len(choices) == 1:
            act = ACTIVATIONS[choices[0]] if choices[0] else None
            return ops.batch_norm_train(x, scale, bias, act=act, **bn_options)[0]
        x = ops.batch_norm_train(x, scale, bias, **bn_options)[0]
        y = ACTIVATIONS[choices[0]](x)
        for i, name in enumerate(choices[1:], start=1):
            y = jnp.where(number == i, ACTIVATIONS[name](x), y)
        return y

    def squeeze_excite(layer, x, se, mask):
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        squeezed = ACTIVATIONS[se.act](_pointwise(layer["reduce"], pooled)) * mask.astype(x.dtype)
        return GATES[se.gate](_pointwise(layer["expand"], squeezed))

    def bneck(layer, x, block, choices, on, has_expand):
        def masked(x, mask):
            return x * mask.astype(x.dtype)

        y = _fit(x, block.expansion)
        if has_expand:
            z = ops.pointwise_conv(x, layer["expand"]["conv"]["kernel"])
            z = masked(norm(layer["expand"], z, choices, on["act"]), on["expansion"])
            y = jnp.where(on["expand"] > 0, z, y)
        kernel = layer["depthwise"]["conv"]["kernel"] * on["kernel"]
        y = ops.depthwise_conv(
            y, kernel, stride=block.stride, padding=spec.padding, impl=compute.depthwise
        )
        y = masked(norm(layer["depthwise"], y, choices, on["act"]), on["expansion"])
        if block.se:
            gate = squeeze_excite(layer["se"], y, block.se, on["squeeze"])
            y = y * jnp.where(on["se"] > 0, gate, jnp.ones_like(gate))
        y = ops.pointwise_conv(y, layer["project"]["conv"]["kernel"])
        y = masked(norm(layer["project"], y, (None,), None), on["out"])
        if block.stride > 1:
            return y
        before = _fit(x, block.out)
        return jnp.where(on["there"] > 0, y + before * on["shortcut"].astype(x.dtype), before)

    x = images.astype(DTYPES[compute.dtype])
    x = ops.conv(x, params["stem"]["conv"]["kernel"], stride=spec.stem.stride, padding=spec.padding)
    x = norm(params["stem"], x, (spec.stem.act,), None)
    if spec.stem.se:
        x = x * squeeze_excite(params["stem"]["se"], x, spec.stem.se, jnp.ones(()))
    for i, block in enumerate(spec.blocks):
        name = f"block{i + 1}"
        x = bneck(params[name], x, block, acts[i], switches[name], spec.has_expand(i))
    x = norm(params["last"], ops.pointwise_conv(x, params["last"]["conv"]["kernel"]),
             (spec.last.act,), None) * switches["last"].astype(x.dtype)  # fmt: skip
    x = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    if spec.head:
        x = ACTIVATIONS[spec.head.act](_pointwise(params["head"], x))
    if train and spec.dropout:
        if key is None:
            raise ValueError("supernet: dropout in training needs a key")
        keep = jax.random.bernoulli(key, 1 - spec.dropout, x.shape)
        x = jnp.where(keep, x / (1 - spec.dropout), 0)
    return _pointwise(params["logits"], x.astype(jnp.float32))[:, 0, 0]


def _pointwise(layer: Tree, x: jax.Array) -> jax.Array:
    return ops.pointwise_conv(x, layer["kernel"], layer["bias"])


def _fit(x: jax.Array, channels: int) -> jax.Array:
    """Returns the first channels of x, padded with zeros if there are fewer."""
    missing = max(0, channels - x.shape[-1])
    return jnp.pad(x, [(0, 0)] * 3 + [(0, missing)])[..., :channels]
