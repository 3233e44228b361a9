"""The first layer: section 5.2 of the MobileNetV3 paper, on V3-Large.

python launch/sweep.py --sweep=configs/ablations/stem.py
  the digits, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/stem.py:imagenet
  in the paper: 16 filters with h-swish are as accurate as 32 with ReLU or swish; not run here
"""

from mbv3_jax.sweep.combinators import Sweep, chain, product, seeds, trial


def stem(filters: int, act: str):
    """One form of the first layer."""
    return trial(f"{filters}-{act}", {"net.stem_filters": filters, "net.stem_act": act})


def get_sweep(argument: str = "digits") -> Sweep:
    """`argument`: as for configs/large.py."""
    variants = chain(stem(32, "relu"), stem(32, "swish"), stem(16, "h_swish"), stem(16, "relu"))
    return Sweep(
        f"configs/large.py:{argument}", product(variants, seeds(3 if argument == "digits" else 1))
    )
