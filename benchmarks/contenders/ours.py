"""mbv3_jax: the train step that `main.py` runs, and `functional.apply` jitted."""

import jax
import numpy as np

from benchmarks.task import Task
from mbv3_jax.arch import build
from mbv3_jax.data.augment import make_preprocess
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute
from mbv3_jax.train import schedules
from mbv3_jax.train.optimizers import make_optimizer
from mbv3_jax.train.sharding import make_mesh, put_batch
from mbv3_jax.train.state import create_state
from mbv3_jax.train.step import make_train_step


def setup(task: Task):
    """See `benchmarks.contenders`. Training starts from uint8 images, as in a real run."""
    spec = build(task.network, resolution=task.resolution, width=task.width)
    compute = Compute(dtype=task.dtype)
    generator = np.random.default_rng(0)
    shape = (task.batch, task.resolution, task.resolution, 3)
    info = f"jax {jax.__version__} {jax.devices()[0].device_kind}"
    if task.kind == "infer":
        variables = functional.init(spec, jax.random.key(0))
        images = jax.device_put(generator.normal(size=shape).astype(np.float32))
        forward = jax.jit(lambda v, x: functional.apply(spec, v, x, compute=compute)[0])

        def infer(steps: int) -> None:
            for _ in range(steps):
                forward(variables, images).block_until_ready()

        return infer, info

    mesh = make_mesh(jax.devices()[:1])
    schedule = schedules.make_schedule(
        "constant", base_lr=1e-4, total_steps=10**6, steps_per_epoch=1e3
    )
    tx = make_optimizer("rmsprop_tf", schedule, weight_decay=1e-5)
    preprocess, _ = make_preprocess()
    step = make_train_step(
        spec, tx, schedule, preprocess=preprocess, mesh=mesh, seed=0, compute=compute
    )
    batch = {
        "image": generator.integers(0, 256, shape, np.uint8),
        "label": generator.integers(0, 1000, task.batch, np.int32),
    }
    now = [jax.jit(lambda: create_state(spec, tx, seed=0, with_ema=False))()]

    def train(steps: int) -> None:
        for _ in range(steps):
            now[0], metrics = step(now[0], put_batch(batch, mesh))
        jax.block_until_ready((now[0], metrics))

    return train, info
