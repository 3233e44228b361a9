"""Compares networks with peers, and skips tests where a peer is not installed.

Tests import peers when they run, because importing Keras or PyTorch takes as long as
collecting all tests.
"""

import importlib
import os

import jax
import numpy as np
import pytest

from mbv3_jax.core.packages import install
from mbv3_jax.interop import mapping
from mbv3_jax.nn import functional

PEERS = ("h5py", "huggingface_hub", "keras", "safetensors", "timm", "torch", "torchvision")
INSTALL = install("peers")
IMAGE_SHAPE = (64, 97, 3)  # the layers see even heights and odd widths: both paddings at once
TOLERANCE = 1e-4  # of the largest value compared

# Much of the running statistics is the batch's own after one step. With random ones, a random
# MobileNetV3 grows from layer to layer until float32 PyTorch is 1e-3 off float64 PyTorch.
BN_DECAY = 0.2

_apply = jax.jit(functional.apply, static_argnums=0, static_argnames="train")


def import_peer(module: str, compared: str):
    """Imports a module that needs a peer; skips the test where it is not installed.

    With MBV3_REQUIRE_PEERS=1 in the environment a missing peer is an error instead.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name not in PEERS or os.environ.get("MBV3_REQUIRE_PEERS", "0") != "0":
            raise
        reason = f"{compared}: not compared, {e.name} is not installed ({INSTALL})"
        pytest.skip(reason)


def keras_peers():
    """`peer_keras`, with Keras itself as `keras`."""
    return import_peer("peer_keras", "networks and weights against keras.applications")


def torch_peers():
    """`peer_torch`, with `torch`, `timm` and `torchvision`."""
    return import_peer("peer_torch", "networks and weights against timm and torchvision")


def to_variables(peer, spec) -> dict:
    """The peer's weights as variables of `spec`, each used once, as an import has them."""
    variables = mapping.to_ours(mapping.pairs(peer.library, spec), peer.tensors())
    functional.check(spec, variables)
    return variables


def check_shapes(peer, spec) -> None:
    """Every weight has its counterpart of the same shape; trainable counts are equal."""
    variables = to_variables(peer, spec)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == peer.trainable()


def check_forward(peer, spec) -> dict[str, float]:
    """A training pass, the running statistics it leaves, then inference with those.

    Returns:
      The largest error of each, relative to the largest value compared.
    """
    spec = spec.replace(bn_decay=BN_DECAY, dropout=0.0)
    rng = np.random.default_rng(0)
    peer.prepare(rng, bn_eps=spec.bn_eps, bn_decay=BN_DECAY)
    images = rng.normal(size=(2, *IMAGE_SHAPE)).astype(np.float32)
    variables = to_variables(peer, spec)

    with jax.default_matmul_precision("highest"):
        theirs = peer.forward(images, train=True)
        ours, statistics = _apply(spec, variables, images, train=True)
        errors = {"train": error(ours, theirs, varied=True)}

        variables = to_variables(peer, spec)
        moved = jax.tree.map(error, statistics, variables["batch_stats"])
        errors["statistics"] = max(jax.tree.leaves(moved))

        theirs = peer.forward(images, train=False)
        ours, _ = _apply(spec, variables, images)
        errors["eval"] = error(ours, theirs, varied=True)
    assert max(errors.values()) < TOLERANCE, errors
    return errors


def error(ours, theirs: np.ndarray, varied: bool = False) -> float:
    """Largest difference over largest value; `varied` wants logits that tell images apart.

    Without that, a network whose logits hardly depend on its input would pass for equal.
    """
    largest = np.abs(theirs).max()
    if varied:
        assert np.abs(theirs - theirs.mean(0)).max() > 0.05 * largest
    return float(np.abs(np.asarray(ours) - theirs).max() / largest)
