"""Published latencies of a phone, and how well a fit to MobileNetV2 transfers to MobileNetV3.

Source: TensorFlow models, research/slim/nets/mobilenet README: float TFLite, batch 1, the large
core of a Pixel 1; V3 at 224 pixels. `V2_OF_THE_PAPER` is of "Searching for MobileNetV3", table 3:
the same networks on the same phone are 13 to 16% faster there than in slim's older table of V2, so
a fit to slim's V2 predicts V3 too slow for that reason alone.
"""

import dataclasses

from mbv3_jax.arch.build import build
from mbv3_jax.arch.spec import NetSpec

# Width multiplier: {resolution: milliseconds}.
V2 = {
    1.4: {224: 138.0},
    1.3: {224: 123.0},
    1.0: {224: 73.8, 192: 55.1, 160: 40.2, 128: 27.6, 96: 17.6},
    0.75: {224: 55.8, 192: 41.6, 160: 30.4, 128: 21.9, 96: 14.2},
    0.5: {224: 28.7, 192: 21.1, 160: 14.9, 128: 9.9, 96: 6.4},
    0.35: {224: 19.7, 192: 14.6, 160: 10.5, 128: 6.9, 96: 4.5},
}
V2_OF_THE_PAPER = {1.0: {224: 64.0}, 0.35: {224: 16.6}}
# (network, width multiplier): milliseconds.
V3 = {
    ("mobilenet_v3_large", 1.0): 51.2,
    ("mobilenet_v3_large", 0.75): 39.8,
    ("mobilenet_v3_small", 1.0): 15.8,
    ("mobilenet_v3_small", 0.75): 12.8,
    ("mobilenet_v3_large_minimalistic", 1.0): 44.1,
    ("mobilenet_v3_small_minimalistic", 1.0): 12.2,
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A network and its latency in milliseconds."""

    name: str
    spec: NetSpec
    ms: float


def v2(table=V2) -> list[Published]:
    """The 22 of MobileNetV2, or those of another table."""
    return [
        Published(f"V2 {width} {side}", build("mobilenet_v2", width=width, resolution=side), ms)
        for width, sides in table.items()
        for side, ms in sides.items()
    ]


def v3() -> list[Published]:
    """The 6 of MobileNetV3, float."""
    return [
        Published(f"{name} {width}", build(name, width=width), ms)
        for (name, width), ms in V3.items()
    ]
