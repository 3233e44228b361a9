"""Quantization-aware training: from a trained float network to one for int8.

python main.py --config=configs/qat.py --config.init=runs/small --workdir=runs/small-int8
  the digits; DIR of --config.init is a run folder or an import folder
python main.py --config=configs/qat.py:imagenet --config.init=DIR
  not run here
"""

from configs import recipes


def get_config(argument: str = "digits"):
    """`argument`: as for configs/small.py, of the task that the float network was trained on."""
    return recipes.qat(argument)
