"""features and embed: the network as a backbone; BatchNorm that stays as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_net import random_variables
from small_net import NET, apply, random_images

from mbv3_jax.arch import build
from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute

VARIABLES = random_variables(functional.shapes(NET))
features = jax.jit(functional.features, static_argnums=0, static_argnames=("stages", "compute"))


def test_strides_of_the_published_networks():
    large = build("mobilenet_v3_large").strides()
    assert list(large) == ["stem", *(f"block{i}" for i in range(1, 16)), "last"]
    assert [large[f"block{i}"] for i in (1, 2, 3, 4, 6, 7, 12, 13, 15)] == [
        *(2, 4, 4, 8, 8, 16, 16, 32, 32),
    ]
    assert set(build("mobilenet_v3_small").strides().values()) == {2, 4, 8, 16, 32}


@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
def test_the_last_map_of_each_stride_unless_told(size):
    images = jnp.asarray(random_images(NET, batch=2, size=64))[:, : size[0], : size[1]]
    found = features(NET, VARIABLES, images)
    assert [(f.stage, f.stride) for f in found] == [("block1", 2), ("last", 4)]
    for f, channels in zip(found, (8, 24), strict=True):
        height, width = (-(-side // f.stride) for side in size)
        assert f.values.shape == (2, height, width, channels)


def test_defaults_of_large():
    spec = build("mobilenet_v3_large")
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    made = functools.partial(functional.features, spec)
    found = jax.eval_shape(made, functional.shapes(spec), images)
    assert [(f.stage, f.stride, f.values.shape[1:]) for f in found] == [
        ("block1", 2, (112, 112, 16)),
        ("block3", 4, (56, 56, 24)),
        ("block6", 8, (28, 28, 40)),
        ("block12", 16, (14, 14, 112)),
        ("last", 32, (7, 7, 960)),
    ]


def test_the_last_map_and_the_embedding_lead_to_the_logits():
    images = random_images(NET, batch=2)
    logits, _ = apply(NET, VARIABLES, images)
    embedding = jax.jit(functional.embed, static_argnums=0)(NET, VARIABLES, images)
    assert (embedding.shape, embedding.dtype) == ((2, 20), jnp.float32)
    layer = VARIABLES["params"]["logits"]
    np.testing.assert_allclose(
        embedding @ layer["kernel"][0, 0] + layer["bias"], logits, rtol=1e-5, atol=1e-5
    )
    (last,) = features(NET, VARIABLES, images, stages=("last",))
    head = VARIABLES["params"]["head"]
    mean = jnp.mean(last.values, (1, 2)) @ head["kernel"][0, 0] + head["bias"]
    np.testing.assert_allclose(embedding, ACTIVATIONS["h_swish"](mean), rtol=1e-5, atol=1e-5)


def test_stages_come_as_asked_and_the_rest_is_not_computed():
    images = random_images(NET, batch=2)
    found = features(NET, VARIABLES, images, stages=("block2", "stem"))
    assert [(f.stage, f.stride) for f in found] == [("block2", 4), ("stem", 2)]
    unused = jax.tree.map(jnp.zeros_like, VARIABLES)
    for kind in ("params", "batch_stats"):
        for stage in ("stem", "block1", "block2"):
            unused[kind][stage] = VARIABLES[kind][stage]
    again = features(NET, unused, images, stages=("block2",))
    np.testing.assert_array_equal(again[0].values, found[0].values)
    with pytest.raises(ValueError, match=r"stages: got 'block4', expected one of 'stem', 'block1'"):
        functional.features(NET, VARIABLES, images, stages=("block4",))
    with pytest.raises(ValueError, match=r"images: got shape \(2, 32, 32, 1\), expected"):
        functional.features(NET, VARIABLES, images[..., :1])


# BatchNorm that stays as it is


def test_frozen_statistics_are_used_and_kept():
    images = random_images(NET, batch=4)
    every = Compute(frozen_bn=tuple(NET.strides()))
    logits, stats = apply(NET, VARIABLES, images, train=True, compute=every)
    want, _ = apply(NET, VARIABLES, images)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
    for got, old in zip(*map(jax.tree.leaves, (stats, VARIABLES["batch_stats"])), strict=True):
        np.testing.assert_array_equal(got, old)


def test_frozen_statistics_of_some_stages():
    images = random_images(NET, batch=4)
    some = Compute(frozen_bn=("stem", "block2"))
    _, stats = apply(NET, VARIABLES, images, train=True, compute=some)
    old = VARIABLES["batch_stats"]
    kept = {
        stage: all(map(np.array_equal, *map(jax.tree.leaves, (stats[stage], old[stage]))))
        for stage in old
    }
    assert kept == {"stem": True, "block1": False, "block2": True, "block3": False, "last": False}
    with pytest.raises(ValueError, match=r"compute.frozen_bn: got 'head', expected one of 'stem'"):
        functional.apply(NET, VARIABLES, images, compute=Compute(frozen_bn=("head",)))
