"""MobileNetV3-Small.

python main.py --config=configs/small.py
  Trains on the digits in about half a minute to a minute and a half on two CPU cores; 98.2%
  top-1 (mean of seeds 0, 1 and 2).
python main.py --config=configs/small.py:imagenet
  Reaches 67.4% top-1 in the paper; not run here.
"""

from configs import recipes


def get_config(argument: str = "digits"):
    """Returns the configuration.

    Args:
      argument: the data: digits, clutter, synthetic, imagenet, tfds/NAME, folder=PATH,
        table=PATH, huggingface=PATH, webdataset=PATH, or FILE.py:NAME for a source of your own.
        imagenet and those after it also take ",recipe=" and "modest" or a name that
        `mbv3 recipes` lists.
    """
    return recipes.choose("mobilenet_v3_small", argument, recipes.V3)
