"""MobileNetV3-Large.

python main.py --config=configs/large.py
  the digits: 82 s on 2 CPU cores, 98.9% top-1 (one seed)
python main.py --config=configs/large.py:imagenet
  75.2% top-1 in the paper; not run here
"""

from configs import recipes


def get_config(argument: str = "digits"):
    """`argument`: digits, clutter, synthetic, imagenet, tfds/NAME, folder=PATH; the last three also
    with ,recipe=paper|slim|garden|timm|modest.
    """
    return recipes.choose("mobilenet_v3_large", argument, recipes.V3)
