"""Trained weights, and images of one's own to go on with.

python main.py --config=configs/finetune.py:folder=/photographs --config.init=DIR
  DIR is a run folder, or an import folder made by `python -m mbv3_jax import`
"""

from configs import common, recipes


def get_config(argument: str):
    """`argument`: folder=PATH, tfds/NAME or imagenet."""
    return recipes.finetune(common.default("mobilenet_v3_small"), argument)
