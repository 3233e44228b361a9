"""The folded network computes what the network computes, in every form of the activations."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from reference_net import random_variables
from small_net import NET, apply, random_images

from mbv3_jax.arch import build
from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.arch.spec import SESpec
from mbv3_jax.arch.traversal import parameter_paths
from mbv3_jax.nn import functional
from mbv3_jax.nn.folded import INT8, NATIVE, Forms, apply_folded, fold, folded_shapes

SMALL = functools.partial(build, resolution=32, num_classes=10, width=0.5)


def with_act(act, padding="same"):
    blocks = tuple(dataclasses.replace(b, act=act) for b in NET.blocks)
    stem = dataclasses.replace(NET.stem, act=act, se=SESpec(act=act))
    return NET.replace(blocks=blocks, stem=stem, padding=padding)


SPECS = {
    "every part": NET,
    **{act: with_act(act, "symmetric") for act in ACTIVATIONS},
    "no head": NET.replace(head=None),
    "large": SMALL("mobilenet_v3_large"),
    "small, symmetric": SMALL("mobilenet_v3_small", padding="symmetric"),
    "sigmoid gates": SMALL("mobilenet_v3_small", se_gate="sigmoid"),
    "v2": SMALL("mobilenet_v2"),
    "mnasnet": SMALL("mnasnet_a1"),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_equals_the_network(spec):
    variables = random_variables(functional.shapes(spec))
    images = random_images(spec, batch=2, size=33)
    want, _ = apply(spec, variables, images)
    folded = jax.tree.map(np.asarray, fold(spec, variables))
    both = jax.jit(
        lambda folded, x: [apply_folded(spec, folded, x, forms=f) for f in (NATIVE, INT8)]
    )
    for got in both(folded, images):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_shapes_are_those_of_the_list_of_operations(spec):
    shapes = functional.shapes(spec)
    folded = jax.eval_shape(functools.partial(fold, spec), shapes)
    assert folded == folded_shapes(spec)
    leaves = jax.tree_util.tree_leaves_with_path(shapes["params"])
    layers = {jax.tree_util.keystr(p[:-1], simple=True, separator="/") for p, _ in leaves}
    assert layers == set(parameter_paths(spec))


def test_hooks_see_every_tensor_once_and_may_change_it():
    weights, tensors, biases = {}, {}, {}

    def note(into, change=lambda x: x):
        def hook(name, x, *more):
            assert name not in into
            into[name] = (x.shape, *more[:1])
            return change(x)

        return hook

    folded = fold(NET, random_variables(functional.shapes(NET)))
    run = functools.partial(apply_folded, NET, folded, random_images(NET, batch=1), forms=INT8)
    run(
        on_weight=note(weights),
        on_activation=note(tensors),
        on_bias=note(biases),
    )
    assert weights["block2/depthwise/conv"] == ((5, 5, 1, 24), 3)
    assert weights["stem/three"] == ((1, 1, 1, 1), None)
    convolutions = {name for name in weights if not name.endswith("three")}
    assert len(convolutions) == 1 + 2 + 3 + 3 + 2 + 2 + 1 + 2 + 1 + 1
    assert convolutions == set(biases)
    assert biases["block2/se/reduce"][1] == "block2/se/pool"
    assert biases["block2/expand/conv"][1] == "block1"
    assert {"input", "stem/pre", "stem/relu6", "stem", "block1/se/pool", "block1/se"} < set(tensors)
    assert {"block1", "block1/project", "block3", "pool", "head", "logits"} < set(tensors)
    assert "block2/project" in tensors and "block2" not in tensors  # no shortcut, no sum
    assert tensors["block2/se/sigmoid"] == ((1, 1, 1, 24),)
    tensors.clear()
    biases.clear()
    no_pool = run(on_activation=lambda name, x: 0 * x if name == "head" else x)
    np.testing.assert_allclose(no_pool[0], folded["logits"]["bias"], atol=1e-6)


def test_a_wrong_form_and_a_wrong_image_are_refused():
    with pytest.raises(ValueError, match=r"forms\.h_swish: got 'divided', expected one of"):
        Forms(h_swish="divided")
    folded = fold(NET, random_variables(functional.shapes(NET)))
    with pytest.raises(ValueError, match=r"images: got shape .* expected \[N, H, W, 3\]"):
        apply_folded(NET, folded, np.zeros((1, 32, 32, 4)))
