"""Networks with symmetric padding against torchvision and timm; with TF padding against timm."""

import pytest
from peer_compare import check_forward, check_shapes, torch_peers

from mbv3_jax.arch.build import build

# Peer, network, width, width rule. timm's names that begin with tf_ pad as TensorFlow does.
# Neighbours whose specs are equal share a compilation.
FORWARD = [
    ("timm/mobilenetv3_large_100", "mobilenet_v3_large", 1.0, "timm"),
    ("torchvision/mobilenet_v3_large", "mobilenet_v3_large", 1.0, "torchvision"),
    ("torchvision/mobilenet_v3_large", "mobilenet_v3_large", 0.75, "torchvision"),
    ("timm/mobilenetv3_small_100", "mobilenet_v3_small", 1.0, "timm"),
    ("torchvision/mobilenet_v3_small", "mobilenet_v3_small", 1.0, "torchvision"),
    ("torchvision/mobilenet_v3_small", "mobilenet_v3_small", 0.75, "torchvision"),
    ("timm/mobilenetv3_small_075", "mobilenet_v3_small", 0.75, "timm"),
    ("timm/mobilenetv3_small_050", "mobilenet_v3_small", 0.5, "timm"),
    ("timm/mobilenetv2_100", "mobilenet_v2", 1.0, "timm"),
    ("torchvision/mobilenet_v2", "mobilenet_v2", 1.0, "torchvision"),
    ("timm/mobilenetv2_050", "mobilenet_v2", 0.5, "timm"),
    ("timm/mobilenetv2_140", "mobilenet_v2", 1.4, "timm"),
    ("timm/semnasnet_100", "mnasnet_a1", 1.0, "timm"),
    ("timm/semnasnet_075", "mnasnet_a1", 0.75, "timm"),
    ("timm/tf_mobilenetv3_large_100", "mobilenet_v3_large", 1.0, "timm"),
    ("timm/tf_mobilenetv3_large_075", "mobilenet_v3_large", 0.75, "timm"),
    ("timm/tf_mobilenetv3_small_100", "mobilenet_v3_small", 1.0, "timm"),
    ("timm/tf_mobilenetv3_small_075", "mobilenet_v3_small", 0.75, "timm"),
    ("timm/tf_mobilenetv3_large_minimal_100", "mobilenet_v3_large_minimalistic", 1.0, "timm"),
    ("timm/tf_mobilenetv3_small_minimal_100", "mobilenet_v3_small_minimalistic", 1.0, "timm"),
]
SHAPES = [
    ("timm/mobilenetv3_large_075", "mobilenet_v3_large", 0.75, "timm"),
    ("timm/mobilenetv2_035", "mobilenet_v2", 0.35, "timm"),
    ("timm/mobilenetv2_075", "mobilenet_v2", 0.75, "timm"),
    ("timm/semnasnet_050", "mnasnet_a1", 0.5, "timm"),
    ("timm/semnasnet_140", "mnasnet_a1", 1.4, "timm"),
    *(
        (f"torchvision/{name}", name, width, "torchvision")
        for name in ("mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2")
        for width in (0.35, 0.5, 0.75, 1.25, 1.4)
    ),
]


def _name(case) -> str:
    return f"{case[0]}-{case[2]}"


@pytest.mark.parametrize("case", FORWARD, ids=_name)
def test_forward_equals_torch(case):
    name, network, width, rule = case
    padding = "same" if name.startswith("timm/tf_") else "symmetric"
    spec = build(network, width=width, width_rule=rule, padding=padding)
    peer = torch_peers().TorchPeer(name, width)
    check_shapes(peer, spec)
    print(name, width, check_forward(peer, spec))


@pytest.mark.parametrize("case", SHAPES, ids=_name)
def test_shapes_equal_torch(case):
    name, network, width, rule = case
    peer = torch_peers().TorchPeer(name, width)
    check_shapes(peer, build(network, width=width, width_rule=rule))
