"""A small and a large network, found in minutes from what others have trained and measured.

python main.py --config=configs/search/proxy.py
  A reinforcement-learning controller in the space of Accel-NASBench, rewarded by the ImageNet
  accuracy that a proxy predicts, by the latency on this machine and by multiply-adds. It finds
  networks for the costs of MobileNetV3-Small and -Large. No network is trained. The table is
  downloaded (1 MB) unless --config.proxy.archive=FILE has it already.
python main.py --config=configs/search/proxy.py --config.train=True
  Trains the networks and the references on ImageNet afterwards.
python main.py --config=configs/search/proxy.py --config.cost=a100_throughput,madds \
    --config.relative_to=space --config.targets.small=0.5 --config.targets.large=1.0
  For the time on an A100, as a fraction of that of the median network of the space.
python main.py --config=configs/search/proxy.py --config.proxy.table=FILE.json
  With a table of your own (docs/architecture_search.md).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import found


def get_config(argument: str = "imagenet"):
    """`argument`: what the networks are trained on if `train` is True, as for found.py."""
    config = ConfigDict()
    config.program = "search"  # what main.py runs
    config.seed = 0
    config.evaluator = "proxy"  # a predictor that is fitted to a table of networks
    # A table of networks with their space (mbv3 search table): accel_nasbench or a file. archive:
    # the downloaded archive of accel_nasbench. accuracy: a column; None for the first accuracy.
    config.proxy = dict(table="accel_nasbench", archive=placeholder(str), accuracy=placeholder(str))
    # Costs, separated by commas: ms by a latency table, madds, params, or columns of the table. The
    # first is the one that results are reported in.
    config.cost = "ms,madds"
    # Latency on this machine, measured first, or of the file `table`. max_error: the mean error in
    # percent, on networks that the latency model has not seen, above which the search stops.
    config.latency = dict(
        table=placeholder(str),
        target=placeholder(str),
        networks=20,
        check=10,
        threads=1,
        max_error=10.0,
    )
    # The costs of each network to find: those of a published network by its name, or a number: a
    # fraction of the median of the space ("space") or of the network `relative_to`, or, if that is
    # None, in the unit of the cost.
    config.relative_to = placeholder(str)
    # By the name of the network.
    config.targets = dict(small=placeholder(object), large=placeholder(object))
    config.targets.small = "mobilenet_v3_small"
    config.targets.large = "mobilenet_v3_large"
    # Half the cost is 7 to 10 points less accurate here; -0.07 would not keep costs at the targets.
    config.reward = dict(form="absolute", exponent=-0.3)
    # The controller: policy_gradient with policy factorised or lstm; or evolution,
    # local_search, random, nsga2.
    config.searcher = dict(
        name="policy_gradient",
        steps=200,
        batch=16,
        policy="factorised",
        population=placeholder(int),
        tournament=placeholder(int),
        changes=placeholder(int),
    )
    # Afterwards the best network is improved, in this many rounds of 16 networks that differ from
    # the best so far by one or two decisions.
    config.refine_rounds = 100
    # Whether the networks and the references are trained at the end, as `final` says.
    config.train = False
    # NetAdapt narrows trained networks; configs/search/small.py says what the fields mean.
    config.netadapt = dict(
        enabled=False, start=1.1, steps=2000, delta=0.01, max_proposals=placeholder(int)
    )
    config.netadapt.eval_split = placeholder(str)
    config.netadapt.split_fraction = 0.04
    # Published networks to compare with.
    config.references = ("mnasnet_a1", "mobilenet_v3_large", "mobilenet_v3_small")
    config.final = found.get_config(f"spec=,{argument}")
    return config.lock()
