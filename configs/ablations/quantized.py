"""Float networks whose 8-bit forms table 4 of the MobileNetV3 paper has.

python launch/sweep.py --sweep=configs/ablations/quantized.py
  letters among clutter, the four networks of it, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/quantized.py:imagenet
  top-1 in the paper, float and 8-bit: V3-Large 75.2% and 73.8, V2 72.0 and 70.9, V3-Small 67.4 and
  64.9, V2 0.35 60.8 and 57.2; not run here
"""

from configs.ablations.task import recipe_of, variants
from mbv3_jax.sweep.combinators import Sweep

NETWORKS = {
    "v3_large": ("large", "mobilenet_v3_large", 1.0),
    "v2": ("v2", "mobilenet_v2", 1.0),
    "v3_small": ("small", "mobilenet_v3_small", 1.0),
    "v2-0.35": ("v2", "mobilenet_v2", 0.35),
}


def get_sweep(argument: str = "clutter") -> Sweep:
    """`argument`: as for configs/small.py. Every network is trained by its own recipe."""
    choices = {
        name + "-float": {
            **recipe_of(file, argument, of="large"),
            "net.name": network,
            "net.width": width,
        }
        for name, (file, network, width) in NETWORKS.items()
    }
    return Sweep(f"configs/large.py:{argument}", variants(choices, argument))
