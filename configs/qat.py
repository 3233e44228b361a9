"""Quantization-aware training: from a trained float network to one for int8.

python main.py --config=configs/qat.py --config.init=runs/small --workdir=runs/small-int8
  Trains on the digits for 10 epochs, a third of the float run in runs/small.
python main.py --config=configs/qat.py:imagenet --config.init=DIR
  DIR is a run folder or an import folder; not run here.
"""

from configs import recipes


def get_config(argument: str = "digits"):
    """Returns the configuration.

    Args:
      argument: the data that the float network was trained on, as for configs/small.py.
    """
    return recipes.qat(argument)
