"""A search for a small and a large network, from the space to two trained networks.

python main.py --config=configs/search/small.py
  on letters among clutter at 32 pixels; README, "Architecture search", has what it takes. The same
  command again goes on.
python main.py --config=configs/search/small.py:imagenet
  TuNAS's space at 224 pixels, towards the multiply-adds of MobileNetV3-Small and -Large; not run
  here
"""

from ml_collections import ConfigDict

from configs import found


def get_config(argument: str = "clutter"):
    """`argument`: clutter (default) or imagenet."""
    if argument not in ("clutter", "imagenet"):
        raise ValueError(f"argument {argument!r}: expected clutter or imagenet")
    config = ConfigDict()
    config.program = "search"
    config.seed = 0
    # A preset (python -m mbv3_jax search spaces), with the constants of its networks.
    config.space = dict(name="small", resolution=32, num_classes=15, bn_decay=0.9)
    # Multiply-adds of what is looked for; V3-Small has 2.2 million at 32 pixels.
    config.targets = dict(small=1.0e6, large=1.8e6)
    # Brief trainings of 15 letters differ by 10 points and more, not by ImageNet's one or two:
    # TuNAS's -0.07 would let the cost go where it likes.
    config.reward = dict(form="absolute", exponent=-0.5)
    # The surrogate's: random networks at first, then networks in each round, half of them random.
    config.rounds = dict(first=12, per_round=8, rounds=2)
    config.controller = dict(policy="factorised", steps=300, batch=16)
    # The trainings of candidates, and of the two that are found: see configs/common.py.
    config.brief = found.get_config(f"spec=,{argument}")
    config.final = found.get_config(f"spec=,{argument}")
    with config.brief.unlocked(), config.final.unlocked():
        if argument == "clutter":
            config.brief.total_epochs = 3.0
            config.brief.schedule.warmup_epochs = 0.5
            config.brief.data.eval_split = "validation"  # test is for the two at the end
            config.final.total_epochs = 10.0
            for run in (config.brief, config.final):
                run.net.resolution = 32
                run.save_predictions = False
        else:
            config.space.update(name="mobilenetv3_like", resolution=224, num_classes=1000)
            config.space.bn_decay = 0.99
            config.targets.update(small=66e6, large=219e6)
            config.reward.exponent = -0.07
            config.rounds.update(first=128, per_round=64, rounds=4)
            config.controller.steps = 2000
            config.brief.total_epochs = 5.0
            config.brief.data.split_fraction = 0.04  # of the training images, to choose by
    return config.lock()
