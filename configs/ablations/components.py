"""From MnasNet-A1 to V3-Large, edit by edit: figure 9 of the MobileNetV3 paper.

python launch/sweep.py --sweep=configs/ablations/components.py
  letters among clutter, MnasNet-A1 to V3-Large, 3 seeds each
python launch/sweep.py --sweep=configs/ablations/components.py:imagenet
  in the paper MnasNet-A1 has 75.2% top-1 in 71 ms and V3-Large 75.2% in 51 ms; the steps between
  are a drawing there, without numbers; not run here
"""

from configs.ablations.task import is_paper, variants
from mbv3_jax.sweep.combinators import Sweep

STEPS = {
    "mnasnet_a1": {"net.name": "mnasnet_a1"},
    "efficient_stem": {"net.stem_filters": 16, "net.stem_act": "h_swish"},
    "efficient_last_stage": {"net.last_stage": "efficient"},
    "h_swish": {"net.nonlinearity": "h_swish@80"},
    "large_se": {"net.se_of": "expansion", "net.se_divisor": 8, "net.se_gate": "hard_sigmoid"},
    "netadapt_widths": {
        # Table 1; the search that found them started from the step before.
        "net.expansions": (16, 64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960)
    },
}


def get_sweep(argument: str = "clutter") -> Sweep:
    """`argument`: as for configs/small.py. All steps have one recipe: V3's on ImageNet, else
    MnasNet-A1's."""
    choices, fields = {}, {}
    for name, edit in STEPS.items():
        fields = {**fields, **edit}
        choices[name] = fields
    file = "large" if is_paper(argument) else "mnasnet_a1"
    return Sweep(f"configs/{file}.py:{argument}", variants(choices, argument))
