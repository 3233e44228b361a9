"""V3 beside its predecessors: table 3 of the MobileNetV3 paper.

python launch/sweep.py --sweep=configs/ablations/v2_vs_v3.py
  letters among clutter, all networks of it that are built here, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/v2_vs_v3.py:imagenet
  top-1 in the paper: V3-Large 75.2%, 0.75 73.3, MnasNet-A1 75.2, V2 72.0, V3-Small 67.4, 0.75
  65.4, V2 0.35 60.8; not run here
"""

from configs.ablations.task import recipe_of, variants
from mbv3_jax.sweep.combinators import Sweep

NETWORKS = {
    "v3_large": ("large", "mobilenet_v3_large", 1.0),
    "v3_large-0.75": ("large", "mobilenet_v3_large", 0.75),
    "mnasnet_a1": ("mnasnet_a1", "mnasnet_a1", 1.0),
    "v2": ("v2", "mobilenet_v2", 1.0),
    "v3_small": ("small", "mobilenet_v3_small", 1.0),
    "v3_small-0.75": ("small", "mobilenet_v3_small", 0.75),
    "v2-0.35": ("v2", "mobilenet_v2", 0.35),
}


def get_sweep(argument: str = "clutter") -> Sweep:
    """`argument`: as for configs/small.py. Every network is trained by its own recipe."""
    choices = {
        name: {
            **recipe_of(file, argument, of="large"),
            "net.name": network,
            "net.width": width,
        }
        for name, (file, network, width) in NETWORKS.items()
    }
    return Sweep(f"configs/large.py:{argument}", variants(choices, argument))
