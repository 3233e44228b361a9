"""MnasNet-A1, the seed of V3-Large.

python main.py --config=configs/mnasnet_a1.py
  the digits: 84 s on 2 CPU cores, 98.4% top-1 (one seed)
python main.py --config=configs/mnasnet_a1.py:imagenet
  75.2% top-1 in the paper; not run here
"""

from configs import recipes


def get_config(argument: str = "digits"):
    """`argument`: digits, clutter, synthetic, imagenet, tfds/NAME, folder=PATH; the last three also
    with ,recipe=paper|slim|garden|modest.
    """
    return recipes.choose("mnasnet_a1", argument, recipes.MNASNET)
