"""Resolutions: figure 7 of the MobileNetV3 paper.

python launch/sweep.py --sweep=configs/ablations/resolution.py
  letters among clutter, V3-Small at 32 to 64 pixels, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/resolution.py:imagenet
  V3-Large at the paper's 96 to 256 pixels; 75.2% top-1 at 224; not run here
"""

from configs.ablations.task import base, is_paper, variants
from mbv3_jax.sweep.combinators import Sweep

PAPER = (96, 128, 160, 192, 224, 256)
EMBEDDED = (32, 40, 48, 56, 64)


def get_sweep(argument: str = "clutter") -> Sweep:
    """`argument`: as for configs/small.py; imagenet is the paper's experiment, and other images
    than the embedded ones have the paper's resolutions too."""
    name = "large" if is_paper(argument) else "small"
    sides = EMBEDDED if argument in ("digits", "clutter") else PAPER
    choices = {f"{name}-resolution={side}": {"net.resolution": side} for side in sides}
    return Sweep(base(argument), variants(choices, argument))
