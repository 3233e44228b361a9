"""Fine-tunes trained weights on images of your own.

python main.py --config=configs/finetune.py:folder=/photographs --config.init=DIR
  DIR is a run folder, or an import folder made by `python -m mbv3_jax import`. The run takes 20
  epochs; its time and its accuracy depend on the images.
"""

from configs import common, recipes


def get_config(argument: str):
    """Returns the configuration.

    Args:
      argument: the data: folder=PATH, table=PATH, huggingface=PATH, webdataset=PATH, tfds/NAME,
        imagenet, or FILE.py:NAME for a source of encoded images of your own.
        --config.init=DIR is needed besides.
    """
    return recipes.finetune(common.default("mobilenet_v3_small"), argument)
