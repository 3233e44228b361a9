"""Where h-swish pays: section 5.2 and table 5 of the MobileNetV3 paper.

python launch/sweep.py --sweep=configs/ablations/nonlinearity.py
  letters among clutter, V3-Small, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/nonlinearity.py:imagenet
  in the paper, V3-Large: V3 75.2% top-1, all ReLU 74.5, h-swish from 16 channels on 75.4, from 112
  on 75.0; swish has no figure there; not run here
"""

from configs.ablations.task import base, variants
from mbv3_jax.sweep.combinators import Sweep

FIELD = "net.nonlinearity"
CHOICES = {
    "v3": {},
    "relu": {FIELD: "relu"},
    "h_swish@16": {FIELD: "h_swish@16"},
    "h_swish@112": {FIELD: "h_swish@112"},
    "swish": {FIELD: "swish_for_h_swish"},
}


def get_sweep(argument: str = "clutter") -> Sweep:
    """`argument`: as for configs/small.py; imagenet is the paper's experiment."""
    return Sweep(base(argument), variants(CHOICES, argument))
