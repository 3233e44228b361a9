"""The first layer: section 5.2 of the MobileNetV3 paper.

python launch/sweep.py --sweep=configs/ablations/stem.py
  letters among clutter, V3-Small, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/stem.py:imagenet
  in the paper, V3-Large: 16 filters with h-swish are as accurate as 32 with ReLU or swish, 2 ms
  and 10M multiply-adds less; not run here
"""

from configs.ablations.task import base, variants
from mbv3_jax.sweep.combinators import Sweep

CHOICES = {
    f"{filters}-{act}": {"net.stem_filters": filters, "net.stem_act": act}
    for filters, act in ((32, "relu"), (32, "swish"), (16, "h_swish"), (16, "relu"))
}


def get_sweep(argument: str = "clutter") -> Sweep:
    """`argument`: as for configs/small.py; imagenet is the paper's experiment."""
    return Sweep(base(argument), variants(CHOICES, argument))
