"""The analytic counts, against sums written out by hand on small networks.

tests/nn/test_cost_of_program.py holds them against the traced program of every network.
"""

import dataclasses

import pytest

from mbv3_jax.arch import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec, build, cost
from mbv3_jax.arch.traversal import strided_size

NET = NetSpec(
    name="net",
    stem=ConvSpec(kernel=3, out=8, act="relu", stride=2),
    blocks=(
        BlockSpec(kernel=3, expansion=8, out=8, act="relu"),
        BlockSpec(kernel=5, expansion=24, out=16, act="relu", stride=2, se=SESpec()),
    ),
    last=ConvSpec(kernel=1, out=32, act="relu"),
    head=HeadSpec(out=40, act="relu"),
    resolution=33,
    num_classes=10,
)


def test_layers_by_hand():
    rows = [dataclasses.astuple(layer)[1:] for layer in cost.layers(NET)]
    # 33 -> 17 -> 9 rows: strides round up. SE of 24 channels squeezes to 8.
    assert rows == [
        ("stem", 3, 2, (33, 33, 3), (17, 17, 8), 9 * 24 + 16, 9 * 24 * 289),
        ("block1/depthwise", 3, 1, (17, 17, 8), (17, 17, 8), 72 + 16, 72 * 289),
        ("block1/project", 1, 1, (17, 17, 8), (17, 17, 8), 64 + 16, 64 * 289),
        ("block2/expand", 1, 1, (17, 17, 8), (17, 17, 24), 192 + 48, 192 * 289),
        ("block2/depthwise", 5, 2, (17, 17, 24), (9, 9, 24), 600 + 48, 600 * 81),
        ("block2/se/reduce", 1, 1, (1, 1, 24), (1, 1, 8), 192 + 8, 192),
        ("block2/se/expand", 1, 1, (1, 1, 8), (1, 1, 24), 192 + 24, 192),
        ("block2/project", 1, 1, (9, 9, 24), (9, 9, 16), 384 + 32, 384 * 81),
        ("last", 1, 1, (9, 9, 16), (9, 9, 32), 512 + 64, 512 * 81),
        ("head", 1, 1, (1, 1, 32), (1, 1, 40), 1280 + 40, 1280),
        ("logits", 1, 1, (1, 1, 40), (1, 1, 10), 400 + 10, 400),
    ]
    assert cost.params(NET) == sum(row[5] for row in rows)
    assert cost.madds(NET) == sum(row[6] for row in rows)
    parts = ["stem", "block1", "block2", "last", "head", "logits"]
    assert list(dict.fromkeys(layer.part for layer in cost.layers(NET))) == parts


def test_activations():
    layers = {layer.name: layer for layer in cost.layers(NET)}
    assert layers["stem"].activations == 17 * 17 * 8
    assert layers["block2/se/expand"].activations == 24


def test_peak_activations_by_hand():
    # Block 2's expansion: its input 17x17x8 and its output 17x17x24.
    assert cost.peak_activations(NET) == 289 * (8 + 24)
    # With a block 1 sixteen times as wide: its depthwise layer, while the shortcut waits or not.
    wide = BlockSpec(kernel=3, expansion=128, out=8, act="relu")
    with_shortcut = NET.replace(blocks=(wide, NET.blocks[1]))
    assert cost.peak_activations(with_shortcut) == 289 * (8 + 128 + 128)
    without = BlockSpec(kernel=3, expansion=128, out=8, act="relu", shortcut=False)
    assert cost.peak_activations(NET.replace(blocks=(without, NET.blocks[1]))) == 289 * 256
    # The depthwise layer of MobileNetV2's block 2 reads 112x112x96 and writes 56x56x96.
    assert cost.peak_activations(build("mobilenet_v2")) == (112**2 + 56**2) * 96


def test_madds_scale_with_the_area():
    """Everything before pooling; a resolution of 112 halves each map."""
    for name in ("mobilenet_v3_large", "mobilenet_v2"):
        full, half = (cost.layers(build(name, resolution=r)) for r in (224, 112))
        for a, b in zip(full, half, strict=True):
            is_pooled = a.inputs[0] == 1
            assert a.madds == (1 if is_pooled else 4) * b.madds or a.outputs[0] == 7, a.name
            assert a.params == b.params


@pytest.mark.parametrize(("size", "stride", "rows"), [(224, 2, 112), (7, 2, 4), (7, 1, 7)])
def test_strided_size(size, stride, rows):
    assert strided_size(size, stride) == rows
