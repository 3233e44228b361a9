"""A search for a small and a large network, from the space to two trained networks.

python main.py --config=configs/search/small.py
  on letters among clutter at 32 pixels; README, "Architecture search", has what it takes. The same
  command again goes on.
python main.py --config=configs/search/small.py --config.evaluator=surrogate --config.cost=madds
  by a surrogate, and multiply-adds
python main.py --config=configs/search/small.py:imagenet
  TuNAS's space at 224 pixels, towards about the latency of MobileNetV3-Small and -Large; not run
  here
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import found


def get_config(argument: str = "clutter"):
    """`argument`: clutter (default) or imagenet."""
    if argument not in ("clutter", "imagenet"):
        raise ValueError(f"argument {argument!r}: expected clutter or imagenet")
    config = ConfigDict()
    config.program = "search"
    config.seed = 0
    # A preset (python -m mbv3_jax search spaces), with the constants of its networks.
    config.space = dict(name="letters", resolution=32, num_classes=15, bn_decay=0.9)
    # What is paid for: "madds", or "ms", by a latency table that is measured first, or by that of
    # latency.table, which `latency measure` made, or `latency csv` from a phone's figures.
    config.cost = "ms"
    config.latency = dict(
        table=placeholder(str), target=placeholder(str), networks=12, check=8, threads=1
    )
    # What is looked for, in parts of the median cost in the space ("space"), or of a network's, by
    # name; with None in ms, or multiply-adds.
    config.relative_to = placeholder(str)
    config.relative_to = "space"
    config.targets = dict(small=0.75, large=1.25)
    # Brief trainings of 15 letters differ by 10 points and more, not by ImageNet's one or two:
    # TuNAS's -0.07 would let the cost go where it likes.
    config.reward = dict(form="absolute", exponent=-0.5)
    # "supernet": weights that all networks share, and a controller for each target (TuNAS).
    # "surrogate": a predictor that is fitted to brief trainings, in rounds.
    config.evaluator = "supernet"
    # The supernet's: random networks that are trained briefly, to say how far to trust it.
    config.check = 10
    # The surrogate's: random networks at first, then networks in each round, half of them random.
    config.rounds = dict(first=12, per_round=8, rounds=2)
    # points: networks that each controller of a supernet draws a step. learning_rate: None suits
    # the number of steps, "tunas" is TuNAS's. policy, steps and batch are for the surrogate.
    config.controller = dict(
        points=2, learning_rate=placeholder(object), policy="factorised", steps=300, batch=16
    )
    # The search looks for `start` times the target; NetAdapt goes the rest of the way.
    config.netadapt = dict(
        enabled=True, start=1.1, steps=30, delta=0.02, max_proposals=placeholder(int)
    )
    config.netadapt.eval_split = placeholder(str)
    # Trained like what is found, to compare with.
    config.references = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
    # The trainings of shared weights, of candidates, and to the end: see configs/common.py.
    config.shared = found.get_config(f"spec=,{argument}")
    config.brief = found.get_config(f"spec=,{argument}")
    config.final = found.get_config(f"spec=,{argument}")
    runs = (config.shared, config.brief, config.final)
    with config.shared.unlocked(), config.brief.unlocked(), config.final.unlocked():
        if argument == "clutter":
            config.shared.total_epochs = 45.0
            config.shared.checkpoint_every_epochs = 5.0
            config.brief.total_epochs = 20.0
            config.final.total_epochs = 20.0
            config.netadapt.eval_split = "validation"  # test is for the end
            for run in (config.shared, config.brief):
                run.data.eval_split = "validation"
            for run in runs:
                run.net.resolution = 32
                run.save_predictions = False
        else:
            config.space.update(name="mobilenetv3_like", resolution=224, num_classes=1000)
            config.space.bn_decay = 0.99
            # Of V3-Large; its own multiply-adds are 219 million, Small's 56 million.
            config.relative_to = "mobilenet_v3_large"
            config.targets.update(small=0.33, large=1.0)
            config.latency.update(networks=40, check=20)
            config.reward.exponent = -0.07
            config.check = 8
            config.rounds.update(first=128, per_round=64, rounds=4)
            config.controller.steps = 2000
            config.netadapt.update(steps=2000, delta=0.01)
            config.shared.total_epochs = 90.0
            config.brief.total_epochs = 5.0
            for run in (config.shared, config.brief):
                run.data.split_fraction = 0.04  # of the training images, to choose by
    return config.lock()
