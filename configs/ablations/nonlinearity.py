"""Where h-swish pays: section 5.2 and table 5 of the MobileNetV3 paper, on V3-Large.

python launch/sweep.py --sweep=configs/ablations/nonlinearity.py
  the digits, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/nonlinearity.py:imagenet
  in the paper: V3 75.2% top-1, all ReLU 74.5, h-swish from 16 channels on 75.4, from 112 on 75.0;
  not run here
"""

from mbv3_jax.sweep.combinators import Sweep, chain, product, seeds, trial

FIELD = "net.nonlinearity"


def get_sweep(argument: str = "digits") -> Sweep:
    """`argument`: as for configs/large.py."""
    variants = chain(
        trial("v3"),
        trial("relu", {FIELD: "relu"}),
        trial("h_swish@16", {FIELD: "h_swish@16"}),
        trial("h_swish@112", {FIELD: "h_swish@112"}),
        trial("swish", {FIELD: "swish_for_h_swish"}),
    )
    return Sweep(
        f"configs/large.py:{argument}", product(variants, seeds(3 if argument == "digits" else 1))
    )
