"""A search for a small and a large network, from the space to two trained networks.

python main.py --config=configs/search/small.py
  Letters among clutter at 32 pixels, on 2 CPU cores (docs/architecture_search.md). Run the same
  command again to resume.
python main.py --config=configs/search/small.py --config.cost=madds
  For multiply-adds.
python main.py --config=configs/search/small.py --config.searcher.name=evolution
  Regularised evolution in place of the policy gradient; local_search, random and nsga2 too.
python main.py --config=configs/search/small.py --config.evaluator=supernet \
    --config.space.name=letters
  With weights that all networks share. With --config.controller.points=2 a controller for each
  target decides which of them are trained, as in TuNAS.
python main.py --config=configs/search/small.py:imagenet
  TuNAS's space at 224 pixels, for about the latency of MobileNetV3-Small and -Large. It has not
  been run yet.
"""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from configs import found


def get_config(argument: str = "clutter"):
    """`argument`: clutter (default) or imagenet."""
    if argument not in ("clutter", "imagenet"):
        raise ValueError(f"argument {argument!r}: expected clutter or imagenet")
    config = ConfigDict()
    config.program = "search"  # what main.py runs
    config.seed = 0
    side = FieldReference(32, field_type=object)  # or (height, width)
    # A preset (python -m mbv3_jax search spaces), with the constants of its networks.
    config.space = dict(name="tiny", resolution=side, num_classes=15, bn_decay=0.9)
    # The cost: "madds", or "ms" by a latency table. The table is measured first, or is the file
    # latency.table from `latency measure`, or from a phone's figures by `latency csv`.
    config.cost = "ms"
    # target: litert or xla; None: LiteRT if it is installed. networks, check: how many random
    # networks are measured to fit the model to and to check it on. threads: that run them.
    config.latency = dict(
        table=placeholder(str), target=placeholder(str), networks=12, check=8, threads=1
    )
    # The mean error, in percent on the `check` networks, above which the search stops.
    config.latency.max_error = 10.0
    # The cost of each network to find, as a fraction of the median cost in the space ("space") or
    # of the cost of a published network, by name; with None in ms or multiply-adds.
    config.relative_to = placeholder(str)
    config.relative_to = "space"
    # By the name of the network.
    config.targets = dict(small=0.5, large=1.6)
    # Networks for 15 letters differ by 10 points and more at equal cost, not by ImageNet's one or
    # two. With TuNAS's -0.07 the cost would hardly count.
    config.reward = dict(form="absolute", exponent=-0.5)
    # "surrogate": a predictor that is fitted to trainings of candidates, in rounds.
    # "supernet": weights that all networks share.
    config.evaluator = "surrogate"
    # For the surrogate: the number of random networks at first, the number that a searcher proposes
    # in each round, and the number of rounds. The random ones cost up to the fraction `within` more
    # or less than what is searched for; None draws them from the whole space.
    config.rounds = dict(first=8, per_round=2, rounds=10, within=placeholder(float))
    config.rounds.within = 0.15
    # For a supernet: the number of random networks that are trained to check and to correct its
    # estimates.
    config.check = 24
    config.finalists = 3  # for a supernet: how many of the best for each target are trained too
    # points: networks that each controller of a supernet draws in a step, to learn from; with 0
    # networks are drawn uniformly, and the finished weights are searched. learning_rate: None suits
    # the number of steps, "tunas" is TuNAS's. policy, steps, batch: the policy gradient on a
    # surrogate or on finished weights, unless `searcher` says otherwise.
    config.controller = dict(
        points=0, learning_rate=placeholder(object), policy="factorised", steps=300, batch=16
    )
    # What searches on the finished surrogate or the finished shared weights: policy_gradient,
    # evolution, local_search, random, or nsga2, which finds the front of accuracy and cost and
    # takes the best network on it for each target. None: the policy gradient; with a supernet whose
    # controllers draw points, what they end at is refined. steps, batch: updates, and networks in
    # each (None: those of `controller`). policy: factorised or lstm. population, tournament: for
    # evolution. changes: the most decisions that local search changes at a time.
    config.searcher = dict(
        name=placeholder(str),
        steps=placeholder(int),
        batch=placeholder(int),
        policy=placeholder(str),
        population=placeholder(int),
        tournament=placeholder(int),
        changes=placeholder(int),
    )
    # The search aims at `start` times the target, and NetAdapt goes the rest of the way. It chooses
    # by the split eval_split, or by a fraction of the training images that is held out from it.
    config.netadapt = dict(
        enabled=True, start=1.1, steps=30, delta=0.02, max_proposals=placeholder(int)
    )
    config.netadapt.eval_split = placeholder(str)
    config.netadapt.split_fraction = placeholder(float)
    # Published networks that are trained like the chosen ones, to compare with. fit_references:
    # with fewer strides and another width, for each target, as fit_reference of search/objective.py
    # describes.
    config.references = ("mobilenet_v3_small",)
    config.fit_references = True  # else the references are as published
    # How the shared weights, the candidates and the final networks are trained; configs/common.py
    # has the fields.
    config.shared = found.get_config(f"spec=,{argument}")
    config.brief = found.get_config(f"spec=,{argument}")
    config.final = found.get_config(f"spec=,{argument}")
    runs = (config.shared, config.brief, config.final)
    with config.shared.unlocked(), config.brief.unlocked(), config.final.unlocked():
        if argument == "clutter":
            config.shared.total_epochs = 45.0
            # After 20 epochs the order is still that of who learns fast.
            config.brief.total_epochs = 60.0
            config.final.total_epochs = 60.0
            config.netadapt.eval_split = "validation"  # test is for the end
            config.netadapt.start = 1.05  # in narrow networks its steps are coarse
            for run in (config.shared, config.brief):
                run.data.eval_split = "validation"
            for run in runs:
                run.net.resolution = 32
                run.save_predictions = False
                run.eval_every_epochs = run.checkpoint_every_epochs = 20.0
            config.shared.checkpoint_every_epochs = 5.0
        else:
            config.evaluator = "supernet"
            config.references = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
            config.fit_references = False
            config.space.update(name="mobilenetv3_like", resolution=224, num_classes=1000)
            config.space.bn_decay = 0.99
            # V3-Large has 219 million multiply-adds, V3-Small 56 million.
            config.relative_to = "mobilenet_v3_large"
            config.targets.update(small=0.33, large=1.0)
            config.latency.update(networks=40, check=20)
            config.reward.exponent = -0.07
            config.check, config.finalists = 8, 1
            config.controller.points = 2
            config.rounds.update(first=128, per_round=64, rounds=4)
            config.controller.steps = 2000
            config.netadapt.update(steps=2000, delta=0.01)
            config.shared.total_epochs = 90.0
            config.brief.total_epochs = 5.0
            # The fraction of the training images to choose by: the results are on the others.
            config.netadapt.split_fraction = 0.04
            for run in (config.shared, config.brief):
                run.data.split_fraction = 0.04
    return config.lock()
