"""What the folders under tests/compat were made with; see README.md. It is never changed."""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common
from mbv3_jax.arch.spec import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec
from mbv3_jax.arch.tables import TABLES

# Every kind of layer: strides, a block without and one with expansion, squeeze-and-excite, a
# shortcut, a head; few weights.
SPEC = NetSpec(
    name="tiny_v1",
    stem=ConvSpec(kernel=3, out=8, act="h_swish", stride=2),
    blocks=(
        BlockSpec(kernel=3, expansion=8, out=8, act="relu", stride=2, se=SESpec()),
        BlockSpec(kernel=5, expansion=16, out=8, act="h_swish"),
    ),
    last=ConvSpec(kernel=1, out=16, act="h_swish"),
    head=HeadSpec(out=16, act="h_swish"),
    resolution=32,
    num_classes=10,
)
TABLES[SPEC.name] = lambda: dataclasses.replace(SPEC)


def get_config(argument: str = "run"):
    """`argument`: run, trial, tune, int8, search, supernet."""
    kinds = (run, trial, tune, int8, search, supernet)
    return {kind.__name__: kind for kind in kinds}[argument]()


def run() -> ConfigDict:
    config = common.default(SPEC.name)
    config.seed = 3
    config.net.update(resolution=32, num_classes=10, bn_decay=0.9, dropout=0.1)
    config.data.update(name="synthetic", num_examples=50)
    config.batch_size = 8
    config.total_steps = 48
    config.optimizer.update(name="adamw", b1=0.9)
    config.schedule.update(base_lr=0.03, warmup_steps=4)
    config.ema_decay = 0.9
    config.log_every_steps = 8
    config.eval_batch_size = 16
    config.eval_every_steps = 16
    config.checkpoint_every_steps = 24
    config.keep_checkpoints = 1
    config.keep_best = True
    config.save_predictions = True
    return config


def trial() -> ConfigDict:
    """Of the sweep."""
    config = run()
    config.seed = 0
    config.ema_decay = None
    config.keep_best = config.save_predictions = False
    return config


def tune() -> ConfigDict:
    """From --config.init, as that folder has it."""
    config = _brief(run(), steps=2)
    with config.unlocked():
        for field, kind in {"resolution": int, "dropout": float, "bn_decay": float}.items():
            _clear(config.net, field, kind)
        _clear(config.augment, "normalize", str)
    _clear_name(config)
    return config


def int8() -> ConfigDict:
    """From --config.init, for int8, with the stem frozen."""
    config = tune()
    config.total_steps = 10
    config.optimizer.update(name="sgd", momentum=0.9, b1=None)
    config.schedule.base_lr = 0.01
    config.finetune.update(frozen="stem", backbone_lr_factor=0.5)
    config.quant.update(enabled=True, delay_steps=2, freeze_steps=8)
    config.ema_decay = 0.9
    config.log_every_steps = 5
    config.eval_every_steps = 8
    config.checkpoint_every_steps = 5
    return config


def search() -> ConfigDict:
    """By a surrogate, with a latency table, toy.json where the command runs, and NetAdapt."""
    config = ConfigDict()
    config.program = "search"
    config.seed = 0
    config.space = dict(name="toy", resolution=32, num_classes=10, bn_decay=0.9)
    config.cost = "ms"
    config.latency = dict(
        table=placeholder(str), target=placeholder(str), networks=2, check=1, threads=1
    )
    config.latency.table = "toy.json"
    config.relative_to = placeholder(str)
    config.relative_to = "space"
    config.targets = dict(one=0.75)
    config.reward = dict(form="absolute", exponent=-0.5)
    config.evaluator = "surrogate"
    config.check = 1
    config.rounds = dict(first=2, per_round=2, rounds=1)
    config.controller = dict(
        points=2, learning_rate=placeholder(object), policy="factorised", steps=20, batch=4
    )
    config.netadapt = dict(
        enabled=True, start=1.1, steps=2, delta=0.05, max_proposals=placeholder(int)
    )
    config.netadapt.max_proposals = 2
    config.netadapt.eval_split = placeholder(str)
    config.references = ("tiny_v1",)
    config.shared = _found(8)
    config.brief = _found(2)
    config.final = _found(4)
    config.final.optimizer.update(name="sgd", momentum=0.0, b1=None)  # its state is nothing
    return config.lock()


def supernet() -> ConfigDict:
    """By shared weights and multiply-adds; weights stay as they were made, see make_fixtures.py."""
    config = search()
    config.evaluator = "supernet"
    config.cost = "madds"
    config.latency.table = None
    config.netadapt.enabled = False
    config.references = ()
    config.shared.optimizer.update(name="sgd", momentum=0.0, b1=None)
    config.shared.schedule.base_lr = 0.0
    return config


def get_sweep(argument: str = ""):
    from mbv3_jax.sweep.combinators import Sweep, chain, trial

    short = {"total_steps": 24, "eval_every_steps": 12}
    rmsprop = {"optimizer.name": "rmsprop_tf", "optimizer.b1": None}
    return Sweep(
        f"{__file__}:trial",
        chain(
            trial("plain", {"net.nonlinearity": "relu"}),
            trial("started-seed3", {"init": "runs/finished", "seed": 3, "ema_decay": 0.9}),
            trial("pair", {"seeds": (0, 1), "checkpoint_every_steps": 4, **short, **rmsprop}),
        ),
    )


def _found(steps: int) -> ConfigDict:
    """Of a network from a file."""
    config = _brief(run(), steps=steps)
    _clear_name(config)
    return config


def _brief(config: ConfigDict, steps: int) -> ConfigDict:
    config.total_steps = config.eval_every_steps = config.checkpoint_every_steps = steps
    config.schedule.warmup_steps = 0
    config.ema_decay = None
    config.keep_best = config.save_predictions = False
    return config


def _clear_name(config: ConfigDict) -> None:
    with config.unlocked():
        _clear(config.net, "name", str)


def _clear(group: ConfigDict, field: str, kind: type) -> None:
    del group[field]  # a placeholder would otherwise keep its place, not its kind
    group[field] = placeholder(kind)
