"""The list of operations: written out for one network, and consistent for all."""

import dataclasses

import pytest

from mbv3_jax.arch import build
from mbv3_jax.arch.spec import SESpec
from mbv3_jax.arch.tables import TABLES
from mbv3_jax.arch.traversal import (
    IMAGES,
    ChannelScale,
    Convolution,
    Dropout,
    GlobalPool,
    ResidualAdd,
    convolutions,
    insert,
    lookup,
    parameter_paths,
    stages,
    traverse,
)

SMALL = build("mobilenet_v3_small", drop_path=0.1, last_se=True)


def test_a_block_with_everything():
    """Block 5 of Small: 14x14x40, expansion 240, squeezed to 64, with a shortcut."""
    wide, narrow, pooled = (14, 14, 240), (14, 14, 40), (1, 1, 240)
    block = stages(SMALL)["block5"]
    rows = [(type(op), op.name, op.inputs, op.in_shape, op.out_shape) for op in block]
    assert rows == [
        (Convolution, "block5/expand", ("block4/project",), narrow, wide),
        (Convolution, "block5/depthwise", ("block5/expand",), wide, wide),
        (GlobalPool, "block5/se/pool", ("block5/depthwise",), wide, pooled),
        (Convolution, "block5/se/reduce", ("block5/se/pool",), pooled, (1, 1, 64)),
        (Convolution, "block5/se/expand", ("block5/se/reduce",), (1, 1, 64), pooled),
        (ChannelScale, "block5/se", ("block5/depthwise", "block5/se/expand"), wide, wide),
        (Convolution, "block5/project", ("block5/se",), wide, narrow),
        (ResidualAdd, "block5", ("block4/project", "block5/project"), narrow, narrow),
    ]  # fmt: skip
    expand, depthwise, _, reduce, gate, _, project, add = block
    assert [op.path for op in (expand, depthwise, project)] == [
        f"block5/{name}/conv" for name in ("expand", "depthwise", "project")
    ]
    assert (reduce.path, gate.path) == ("block5/se/reduce", "block5/se/expand")
    acts = [op.act for op in (expand, depthwise, reduce, project)]
    assert acts == ["h_swish", "h_swish", "relu", None]
    assert (gate.act, gate.gate) == (None, "hard_sigmoid")
    assert (depthwise.kernel, depthwise.stride, depthwise.depthwise) == (5, 1, True)
    assert depthwise.kernel_shape == (5, 5, 1, 240) and expand.kernel_shape == (1, 1, 40, 240)
    assert (add.number, add.drop_path) == (5, pytest.approx(0.1 * 4 / 10))


def test_the_ends():
    names = [op.name for op in traverse(SMALL)]
    assert names[:2] == ["stem", "block1/depthwise"]
    assert names[-9:] == [
        "last", "last/se/pool", "last/se/reduce", "last/se/expand", "last/se",
        "pool", "head", "dropout", "logits",
    ]  # fmt: skip
    assert traverse(SMALL)[0].inputs == (IMAGES,)
    assert traverse(SMALL)[-1].out_shape == (1, 1, 1000)
    (dropout,) = (op for op in traverse(SMALL) if isinstance(op, Dropout))
    assert dropout.rate == 0.2
    # Pooled without a head, the logits are computed from the pooled features.
    assert [op.name for op in traverse(build("mobilenet_v2"))][-3:] == ["pool", "dropout", "logits"]


@pytest.mark.parametrize("name", TABLES)
def test_every_operation_reads_what_is_there(name):
    spec = build(name, resolution=95, se="everywhere")
    spec = spec.replace(stem=dataclasses.replace(spec.stem, se=SESpec()))
    shapes = {IMAGES: (95, 95, 3)}
    for op in traverse(spec):
        assert shapes[op.inputs[0]] == op.in_shape
        assert op.name not in shapes
        shapes[op.name] = op.out_shape
    assert list(stages(spec)) == list(dict.fromkeys(op.stage for op in traverse(spec)))
    assert [op for ops in stages(spec).values() for op in ops] == list(traverse(spec))
    adds = [op.number for op in traverse(spec) if isinstance(op, ResidualAdd)]
    assert adds == [i + 1 for i in range(len(spec.blocks)) if spec.has_shortcut(i)]


def test_parameter_paths():
    assert parameter_paths(SMALL, "block1") == [
        "block1/depthwise/conv", "block1/depthwise/bn", "block1/se/reduce", "block1/se/expand",
        "block1/project/conv", "block1/project/bn",
    ]  # fmt: skip
    paths = parameter_paths(SMALL)
    assert paths[:2] == ["stem/conv", "stem/bn"] and paths[-2:] == ["head", "logits"]
    assert [p for p in paths if not p.endswith("/bn")] == [c.path for c in convolutions(SMALL)]


def test_paths_in_trees():
    tree = {}
    insert(tree, "block1/se/reduce", 1)
    insert(tree, "head", 2)
    assert tree == {"block1": {"se": {"reduce": 1}}, "head": 2}
    assert lookup(tree, "block1/se") == {"reduce": 1}
    with pytest.raises(KeyError):
        lookup(tree, "block2/se")
