"""The last stage: section 5.1 and figure 5 of the MobileNetV3 paper.

python launch/sweep.py --sweep=configs/ablations/last_stage.py
  letters among clutter, V3-Small, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/last_stage.py:imagenet
  in the paper, V3-Large: the efficient one takes 7 ms (11%) and 30M multiply-adds less at almost
  no loss of accuracy; not run here
"""

from configs.ablations.task import base, variants
from mbv3_jax.sweep.combinators import Sweep

CHOICES = {choice: {"net.last_stage": choice} for choice in ("efficient", "original")}


def get_sweep(argument: str = "clutter") -> Sweep:
    """`argument`: as for configs/small.py; imagenet is the paper's experiment."""
    return Sweep(base(argument), variants(CHOICES, argument))
