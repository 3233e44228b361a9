"""MobileNetV2, the baseline.

python main.py --config=configs/v2.py
  the digits: 68 s on 2 CPU cores, 99.2% top-1 (one seed)
python main.py --config=configs/v2.py:imagenet
  72.0% top-1 in the paper; not run here
"""

from configs import recipes


def get_config(argument: str = "digits"):
    """`argument`: digits, clutter, synthetic, imagenet, tfds/NAME, folder=PATH; the last three also
    with ,recipe=paper|slim|garden|modest.
    """
    return recipes.choose("mobilenet_v2", argument, recipes.V2)
