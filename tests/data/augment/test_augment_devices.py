"""One compiled program on two devices, for TPU and for CUDA; nothing moves between devices."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mbv3_jax.data import augment

EVERYTHING = {
    "flip": True,
    "rotate_degrees": 10.0,
    "zoom": 0.1,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "erase_prob": 0.5,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "num_classes": 10,
}
POLICIES = {
    "randaugment": {"policy": "randaugment", "randaugment_layers": 1},
    "autoaugment_v0": {"policy": "autoaugment_v0"},
    "augmix": {"policy": "augmix"},
}
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (8, 24, 24, 3), np.uint8),
    "label": RNG.integers(0, 10, 8).astype(np.int32),
}
QUICKLY = {"xla_backend_optimization_level": 0}  # of LLVM alone


@pytest.mark.parametrize("policy", [POLICIES["randaugment"], POLICIES["augmix"]])
def test_two_devices_exchange_nothing_and_give_the_same(policy):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    preprocess, _ = augment.make_preprocess(**EVERYTHING, **policy)
    key = jax.random.key(0)
    on_two = jax.jit(preprocess, in_shardings=(split, whole), out_shardings=split)
    compiled = on_two.lower(BATCH, key).compile(QUICKLY)
    collectives = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    assert re.findall(collectives, compiled.as_text()) == []
    images, labels = compiled(jax.device_put(BATCH, split), jax.device_put(key, whole))
    on_one = jax.jit(preprocess).lower(BATCH, key).compile(QUICKLY)(BATCH, key)
    np.testing.assert_allclose(labels, on_one[1], atol=1e-6)
    far = np.abs(np.asarray(images) - np.asarray(on_one[0])).max(-1) > 1e-4
    assert far.mean() < 0.002  # a last bit can move a pixel


@pytest.mark.parametrize("policy", POLICIES)
def test_lowers_for_tpu_and_cuda(policy):
    options = EVERYTHING | POLICIES[policy]
    preprocess, _ = augment.make_preprocess(**options)
    key = jax.random.key_data(jax.random.key(0))
    program = jax.jit(lambda batch, key: preprocess(batch, jax.random.wrap_key_data(key)))
    for platform in ("tpu", "cuda"):
        exported = jax.export.export(program, platforms=[platform])(BATCH, key)
        assert exported.platforms == (platform,)
        text = exported.mlir_module()
        assert ("stablehlo.scatter" in text) == (platform == "cuda")
