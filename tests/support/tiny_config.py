"""A run of seconds: a network of two blocks on computed images, with every part of a real one."""

import dataclasses

from configs import common
from mbv3_jax.arch.spec import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec
from mbv3_jax.arch.tables import TABLES

SPEC = NetSpec(
    name="tiny",
    stem=ConvSpec(kernel=3, out=8, act="h_swish", stride=2),
    blocks=(
        BlockSpec(kernel=3, expansion=16, out=8, act="relu", stride=2, se=SESpec()),
        BlockSpec(kernel=3, expansion=16, out=8, act="h_swish"),
    ),
    last=ConvSpec(kernel=1, out=16, act="h_swish"),
    head=HeadSpec(out=16, act="h_swish"),
    resolution=32,
    num_classes=10,
)
TABLES["tiny"] = lambda: dataclasses.replace(SPEC)


def get_config(argument: str = ""):
    config = common.default("tiny")
    config.net.update(resolution=32, num_classes=10, bn_decay=0.9, dropout=0.2)
    config.data.update(name="synthetic", num_examples=50)
    config.augment.update(rotate_degrees=10.0)
    config.batch_size = 8
    config.total_steps = 24
    config.optimizer.update(name="rmsprop_tf")
    config.schedule.update(name="cosine", base_lr=0.01, warmup_steps=4)
    config.ema_decay = 0.9
    config.log_every_steps = 5
    config.eval_batch_size = 16
    config.eval_every_steps = 12
    config.checkpoint_every_steps = 6
    return config
