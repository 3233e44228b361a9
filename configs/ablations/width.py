"""Width multipliers: figure 7 of the MobileNetV3 paper.

python launch/sweep.py --sweep=configs/ablations/width.py
  letters among clutter, V3-Small, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/width.py:imagenet
  V3-Large; in the paper 75.2% top-1 at 1.0 and 73.3 at 0.75; not run here
"""

from configs.ablations.task import base, is_paper, variants
from mbv3_jax.sweep.combinators import Sweep

WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.25)


def get_sweep(argument: str = "clutter") -> Sweep:
    """`argument`: as for configs/small.py; imagenet is the paper's experiment."""
    name = "large" if is_paper(argument) else "small"
    choices = {f"{name}-width={width}": {"net.width": width} for width in WIDTHS}
    return Sweep(base(argument), variants(choices, argument))
