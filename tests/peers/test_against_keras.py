"""Networks with TF padding against keras.applications on the JAX backend."""

import pytest
from peer_compare import IMAGE_SHAPE, check_forward, check_shapes, keras_peers

from mbv3_jax.arch.build import build

NETWORKS = {
    "mobilenet_v3_large": ("MobileNetV3Large", {}),
    "mobilenet_v3_small": ("MobileNetV3Small", {}),
    "mobilenet_v3_large_minimalistic": ("MobileNetV3Large", {"minimalistic": True}),
    "mobilenet_v3_small_minimalistic": ("MobileNetV3Small", {"minimalistic": True}),
    "mobilenet_v2": ("MobileNetV2", {}),
}
FORWARD = [
    *((network, 1.0) for network in NETWORKS),
    ("mobilenet_v3_large", 0.75),
    ("mobilenet_v3_small", 0.75),
    ("mobilenet_v2", 0.35),
    ("mobilenet_v2", 1.4),
]
SHAPES = [
    *((f"mobilenet_v3_{size}", width) for size in ("large", "small") for width in (0.5, 1.25)),
    ("mobilenet_v3_large_minimalistic", 0.75),
    ("mobilenet_v2", 0.75),
]


def _pair(network: str, width: float):
    name, options = NETWORKS[network]
    peer = keras_peers().KerasPeer(name, IMAGE_SHAPE, alpha=width, **options)
    return peer, build(network, width=width, width_rule="keras")


@pytest.mark.parametrize(("network", "width"), FORWARD)
def test_forward_equals_keras(network, width):
    peer, spec = _pair(network, width)
    check_shapes(peer, spec)
    print(network, width, check_forward(peer, spec))


@pytest.mark.parametrize(("network", "width"), SHAPES)
def test_shapes_equal_keras(network, width):
    check_shapes(*_pair(network, width))
