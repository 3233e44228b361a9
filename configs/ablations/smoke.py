"""Two short trials, to see that an executor works.

python launch/sweep.py --sweep=configs/ablations/smoke.py
  the digits, MobileNetV3-Small, 2 epochs
"""

from mbv3_jax.sweep.combinators import Sweep, axis, product, trial


def get_sweep(argument: str = "digits") -> Sweep:
    """`argument`: as for configs/small.py."""
    short = trial("short", {"total_epochs": 2.0})
    return Sweep(f"configs/small.py:{argument}", product(short, axis("net.width", 0.35, 0.5)))
