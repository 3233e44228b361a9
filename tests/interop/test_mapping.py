"""Every variable has its tensor, and axes lie as each library lays them."""

import jax
import numpy as np
import pytest

from mbv3_jax.core.errors import UsageError
from mbv3_jax.interop import mapping, networks
from mbv3_jax.nn import functional

# One for each way of naming layers.
KINDS = [
    ("timm", "mobilenetv3_small_050", 1.0),
    ("timm", "mobilenetv3_rw", 1.0),
    ("timm", "semnasnet_050", 1.0),
    ("torchvision", "mobilenet_v3_small", 0.5),
    ("torchvision", "mobilenet_v2", 0.35),
    ("torchvision", "mnasnet0_5", 1.0),
    ("keras", "MobileNetV3Small", 0.75),
    ("keras", "MobileNetV2", 0.35),
]


def _tensors(table, start=0):
    """Tensors of their shapes, all values different."""
    tensors = {}
    for pair in table:
        if pair.theirs is not None:
            size = int(np.prod(pair.their_shape))
            values = np.arange(start, start + size, dtype=np.float32)
            tensors[pair.theirs], start = values.reshape(pair.their_shape), start + size
    return tensors


@pytest.mark.parametrize(("library", "name", "width"), KINDS)
def test_there_and_back_is_the_same_bits(library, name, width):
    spec = networks.get(library, name, width=width).spec.replace(num_classes=7)
    table = mapping.pairs(library, spec)
    tensors = _tensors(table)
    variables = mapping.to_ours(table, tensors)
    functional.check(spec, variables)  # every variable, each of its shape
    back = mapping.to_theirs(table, variables)
    assert list(back) == [p.theirs for p in table if p.theirs]
    assert all(np.array_equal(back[n], tensors[n]) for n in tensors)


def test_pairs_hold_every_variable_of_every_network():
    seen = set()
    for library in networks.LIBRARIES:
        for network in networks.candidates(library):
            table = mapping.pairs(library, network.spec)
            names = [p.theirs for p in table if p.theirs]
            assert len(set(names)) == len(names) == len(table) - (network.name == "mobilenetv3_rw")
            if (network.spec.name, library) in seen:
                continue
            seen.add((network.spec.name, library))
            leaves = jax.tree_util.tree_leaves_with_path(functional.shapes(network.spec))
            wanted = {
                jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
                for path, x in leaves
            }
            assert {p.ours: p.shape for p in table} == wanted
    assert len(seen) == 20


def test_torch_kernels_lie_oihw_and_dense_ones_out_by_in():
    table = {p.theirs: p for p in mapping.pairs("timm", networks.get("timm", "semnasnet_100").spec)}
    conv = table["blocks.1.0.conv_pw.weight"]
    assert (conv.ours, conv.shape) == ("params/block2/expand/conv/kernel", (1, 1, 16, 96))
    theirs = np.random.default_rng(0).normal(size=conv.their_shape)
    assert theirs.shape == (96, 16, 1, 1)
    assert conv.to_ours(theirs)[0, 0, 3, 5] == theirs[5, 3, 0, 0]
    depthwise = table["blocks.2.0.conv_dw.weight"]
    theirs = np.random.default_rng(0).normal(size=depthwise.their_shape)
    assert theirs.shape == (72, 1, 5, 5)
    assert depthwise.to_ours(theirs)[1, 4, 0, 60] == theirs[60, 0, 1, 4]
    dense = table["classifier.weight"]
    theirs = np.random.default_rng(0).normal(size=dense.their_shape)
    assert theirs.shape == (1000, 1280)
    assert dense.to_ours(theirs)[0, 0, 7, 9] == theirs[9, 7]


def test_keras_depthwise_kernels_have_their_channels_third():
    spec = networks.get("keras", "MobileNetV2").spec
    table = {p.theirs: p for p in mapping.pairs("keras", spec)}
    depthwise = table["layers/depthwise_conv2d_1/vars/0"]
    assert depthwise.ours == "params/block2/depthwise/conv/kernel"
    theirs = np.random.default_rng(0).normal(size=depthwise.their_shape)
    assert theirs.shape == (3, 3, 96, 1)
    assert depthwise.to_ours(theirs)[1, 2, 0, 60] == theirs[1, 2, 60, 0]
    assert table["layers/dense/vars/0"].their_shape == (1280, 1000)


def test_all_problems_are_listed_at_once_with_both_shapes():
    table = mapping.pairs("timm", networks.get("timm", "mobilenetv3_small_050").spec)
    tensors = _tensors(table)
    del tensors["blocks.0.0.se.conv_reduce.bias"]
    tensors["blocks.9.0.conv.weight"] = np.zeros((3, 2))
    tensors["classifier.bias"] = np.zeros(999)
    with pytest.raises(UsageError) as caught:
        mapping.to_ours(table, tensors)
    assert str(caught.value).splitlines()[1:] == [
        "  blocks.0.0.se.conv_reduce.bias (params/block1/se/reduce/bias): missing, expected (8,)",
        "  blocks.9.0.conv.weight: surplus, has (3, 2)",
        "  classifier.bias (params/logits/bias): has (999,), expected (1000,)",
    ]


def test_a_bias_that_they_do_not_have_must_be_zero():
    table = mapping.pairs("timm", networks.get("timm", "mobilenetv3_rw").spec)
    variables = mapping.to_ours(table, _tensors(table))
    assert variables["params"]["head"]["bias"].shape == (1280,)
    variables["params"]["head"]["bias"][3] = 1e-3
    with pytest.raises(UsageError, match="params/head/bias is not zero"):
        mapping.to_theirs(table, variables)
