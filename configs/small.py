"""MobileNetV3-Small.

python main.py --config=configs/small.py
  the digits: 31 s on 2 CPU cores, 98.2% top-1 (mean of 3 seeds)
python main.py --config=configs/small.py:imagenet
  67.4% top-1 in the paper; not run here
"""

from configs import recipes


def get_config(argument: str = "digits"):
    """`argument`: digits, clutter, synthetic, imagenet, tfds/NAME, folder=PATH; the last three also
    with ,recipe=paper|slim|garden|timm|modest.
    """
    return recipes.choose("mobilenet_v3_small", argument, recipes.V3)
