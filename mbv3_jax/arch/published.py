"""Published figures to hold networks and runs against.

Sources: [P] "Searching for MobileNetV3", arXiv 1905.02244, table 3 (224 pixels, float, one large
core of a Pixel 1, TFLite); [S] TensorFlow models, research/slim/nets/mobilenet README.
"""

import dataclasses

from mbv3_jax.arch.build import build
from mbv3_jax.arch.spec import NetSpec


@dataclasses.dataclass(frozen=True)
class Published:
    """Top-1 in percent, multiply-adds and parameters in millions, Pixel-1 latency in ms."""

    top1: float
    madds_m: float
    params_m: float
    pixel1_ms: float
    source: str


# (table name, width) at 224 pixels.
PUBLISHED = {
    ("mobilenet_v3_large", 1.0): Published(75.2, 219, 5.4, 51, "P table 3"),
    ("mobilenet_v3_large", 0.75): Published(73.3, 155, 4.0, 39, "P table 3"),
    ("mobilenet_v3_small", 1.0): Published(67.4, 56, 2.5, 15.8, "P table 3"),
    ("mobilenet_v3_small", 0.75): Published(65.4, 44, 2.0, 12.8, "P table 3"),
    ("mobilenet_v3_large_minimalistic", 1.0): Published(72.3, 209, 3.9, 44.1, "S"),
    ("mobilenet_v3_small_minimalistic", 1.0): Published(61.9, 65, 2.0, 12.2, "S"),
    ("mobilenet_v2", 1.0): Published(72.0, 300, 3.4, 64, "P table 3"),
    ("mobilenet_v2", 0.35): Published(60.8, 59.2, 1.6, 16.6, "P table 3"),
    ("mnasnet_a1", 1.0): Published(75.2, 315, 3.9, 71, "P table 3"),
}


def published(spec: NetSpec) -> Published | None:
    """The published figures of `spec`, if it is one of the published networks.

    Classes, input channels, padding, BatchNorm constants and dropout may differ; layers, widths
    and resolution may not.
    """
    free = ("num_classes", "in_channels", "padding", "bn_eps", "bn_decay", "dropout", "drop_path")
    for (name, width), figures in PUBLISHED.items():
        if name == spec.name:
            plain = build(name, width=width)
            if plain == spec.replace(**{field: getattr(plain, field) for field in free}):
                return figures
    return None
