"""Squeeze-and-excite: section 5.3 of the MobileNetV3 paper.

python launch/sweep.py --sweep=configs/ablations/squeeze_excite.py
  letters among clutter, V3-Small, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/squeeze_excite.py:imagenet
  in the paper, V3-Large: a quarter of the expansion everywhere raises accuracy at no discernible
  latency; it prints no figures; not run here
"""

from configs.ablations.task import base, variants
from mbv3_jax.sweep.combinators import Sweep

CHOICES = {
    "none": {"net.se": "none"},
    "input": {"net.se_of": "input"},  # MnasNet's size
    "expansion": {},
    "expansion-sigmoid": {"net.se_gate": "sigmoid"},
    "everywhere": {"net.se": "everywhere"},
    "everywhere-sigmoid": {"net.se": "everywhere", "net.se_gate": "sigmoid"},
}


def get_sweep(argument: str = "clutter") -> Sweep:
    """`argument`: as for configs/small.py; imagenet is the paper's experiment."""
    return Sweep(base(argument), variants(CHOICES, argument))
