"""Published figures to compare networks and runs with.

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
    """The published figures of `spec`, or None if it is not a published network.

    The number of classes, input channels, padding, BatchNorm constants and dropout may differ from
    the published network's; layers, widths and resolution may not.
    """
    free = ("num_classes", "in_channels", "padding", "bn_eps", "bn_decay", "dropout", "drop_path")
    for (name, width), figures in PUBLISHED.items():
        if name == spec.name:
            plain = build(name, width=width)
            if plain == spec.replace(**{field: getattr(plain, field) for field in free}):
                return figures
    return None


def _figures(
    top1: float | None = None,
    pixel1_ms: float | None = None,
    madds_m: float | None = None,
    *,
    network: str = "V3-Large",
    source: str,
) -> dict:
    values = {"top1": top1, "pixel1_ms": pixel1_ms, "madds_m": madds_m}
    return {**values, "network": network, "source": source}


def _of_table(name: str, width: float, label: str) -> dict:
    row = PUBLISHED[name, width]
    return _figures(row.top1, row.pixel1_ms, row.madds_m, network=label, source=row.source)


_LARGE = _of_table("mobilenet_v3_large", 1.0, "V3-Large")
_TABLE_3 = {
    "v3_large": _LARGE,
    "v3_large-0.75": _of_table("mobilenet_v3_large", 0.75, "V3-Large 0.75"),
    "mnasnet_a1": _of_table("mnasnet_a1", 1.0, "MnasNet-A1"),
    "v2": _of_table("mobilenet_v2", 1.0, "V2"),
    "v3_small": _of_table("mobilenet_v3_small", 1.0, "V3-Small"),
    "v3_small-0.75": _of_table("mobilenet_v3_small", 0.75, "V3-Small 0.75"),
    "v2-0.35": _of_table("mobilenet_v2", 0.35, "V2 0.35"),
}
_TABLE_4 = {
    "v3_large": (73.8, 44, "V3-Large"),
    "v2": (70.9, 52, "V2"),
    "v3_small": (64.9, 15.5, "V3-Small"),
    "v2-0.35": (57.2, 16.7, "V2 0.35"),
}
# Sweep of configs/ablations -> group of its trials -> published figures.
ABLATIONS: dict[str, dict[str, dict]] = {
    "nonlinearity": {
        "v3": _figures(75.2, 51.4, source="P table 5"),
        "relu": _figures(74.5, 50.5, source="P table 5"),
        "h_swish@16": _figures(75.4, 53.5, source="P table 5"),
        "h_swish@112": _figures(75.0, 51, source="P table 5"),
    },
    "stem": {"16-h_swish": _LARGE},
    "last_stage": {"efficient": _LARGE},
    "squeeze_excite": {"expansion": _LARGE},
    "components": {"mnasnet_a1": _TABLE_3["mnasnet_a1"], "netadapt_widths": _LARGE},
    "width": {
        "large-width=0.75": _TABLE_3["v3_large-0.75"],
        "large-width=1.0": _LARGE,
        "small-width=0.75": _TABLE_3["v3_small-0.75"],
        "small-width=1.0": _TABLE_3["v3_small"],
    },
    "resolution": {"large-resolution=224": _LARGE},
    "v2_vs_v3": _TABLE_3,
    "quantized": {f"{name}-float": _TABLE_3[name] for name in _TABLE_4}
    | {
        f"{name}-int8": _figures(top1, ms, network=label, source="P table 4")
        for name, (top1, ms, label) in _TABLE_4.items()
    },
}


def ablation(sweep: str, group: str) -> dict | None:
    """The published figures that correspond to a group of a sweep's trials.

    They are for ImageNet at 224 pixels and for the network that "network" names, whatever the
    sweep trained.

    Args:
      sweep: the name of a file in configs/ablations, without ".py".
      group: the name of the trials, without the seed.

    Returns:
      {"top1" in percent, "pixel1_ms", "madds_m", "network", "source"}, with None for figures that
      the paper does not give; or None if it gives none of them.
    """
    figures = ABLATIONS.get(sweep, {}).get(group)
    return dict(figures) if figures else None
