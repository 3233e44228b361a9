"""The same networks as one would write them in Flax: nnx.Conv, nnx.BatchNorm, optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.task import Task
from mbv3_jax.arch import NetSpec, build

_ACTS = {"relu": nnx.relu, "relu6": nnx.relu6, "h_swish": nnx.hard_swish, "swish": nnx.silu}


class _ConvBN(nnx.Module):
    def __init__(self, kernel, inputs, out, *, act, rngs, stride=1, groups=1, dtype):
        self.conv = nnx.Conv(
            inputs,
            out,
            (kernel, kernel),
            strides=stride,
            feature_group_count=groups,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(out, momentum=0.99, epsilon=1e-3, dtype=dtype, rngs=rngs)
        self.act = act

    def __call__(self, x, train):
        x = self.bn(self.conv(x), use_running_average=not train)
        return _ACTS[self.act](x) if self.act else x


class _Block(nnx.Module):
    def __init__(self, spec: NetSpec, index: int, rngs, dtype):
        block, inputs = spec.blocks[index], spec.block_inputs()[index]
        exp, common = block.expansion, {"rngs": rngs, "dtype": dtype}
        self.has_expand, self.has_se = spec.has_expand(index), block.se is not None
        if self.has_expand:
            self.expand = _ConvBN(1, inputs, exp, act=block.act, **common)
        self.depthwise = _ConvBN(
            block.kernel, exp, exp, act=block.act, stride=block.stride, groups=exp, **common
        )
        if self.has_se:
            squeezed = block.se.channels(expansion=exp, block_input=inputs)
            self.reduce = nnx.Conv(exp, squeezed, (1, 1), **common)
            self.restore = nnx.Conv(squeezed, exp, (1, 1), **common)
            self.gate = nnx.hard_sigmoid if block.se.gate == "hard_sigmoid" else nnx.sigmoid
        self.project = _ConvBN(1, exp, block.out, act=None, **common)
        self.shortcut = spec.has_shortcut(index)

    def __call__(self, x, train):
        y = self.expand(x, train) if self.has_expand else x
        y = self.depthwise(y, train)
        if self.has_se:
            pooled = jnp.mean(y, axis=(1, 2), keepdims=True)
            y = y * self.gate(self.restore(nnx.relu(self.reduce(pooled))))
        y = self.project(y, train)
        return x + y if self.shortcut else y


class _Net(nnx.Module):
    def __init__(self, spec: NetSpec, dtype, rngs):
        common = {"rngs": rngs, "dtype": dtype}
        self.stem = _ConvBN(3, 3, spec.stem.out, act=spec.stem.act, stride=2, **common)
        self.blocks = nnx.List([_Block(spec, i, rngs, dtype) for i in range(len(spec.blocks))])
        self.last = _ConvBN(1, spec.blocks[-1].out, spec.last.out, act=spec.last.act, **common)
        width, self.has_head = spec.last.out, spec.head is not None
        if self.has_head:
            self.head, width = nnx.Linear(width, spec.head.out, **common), spec.head.out
        self.dropout = nnx.Dropout(spec.dropout, rngs=rngs)
        self.logits = nnx.Linear(width, spec.num_classes, **common)

    def __call__(self, x, train):
        x = self.stem(x, train)
        for block in self.blocks:
            x = block(x, train)
        x = jnp.mean(self.last(x, train), axis=(1, 2))
        if self.has_head:
            x = nnx.hard_swish(self.head(x))
        return self.logits(self.dropout(x, deterministic=not train))


def setup(task: Task):
    """See `benchmarks.contenders`."""
    spec = build(task.network, resolution=task.resolution)
    model = _Net(spec, jnp.dtype(task.dtype), nnx.Rngs(0))
    generator = np.random.default_rng(0)
    shape = (task.batch, task.resolution, task.resolution, 3)
    images = jax.device_put(generator.normal(size=shape).astype(np.float32))
    labels = jax.device_put(generator.integers(0, 1000, task.batch))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    info = f"flax modules, jax {jax.__version__} {jax.devices()[0].device_kind}"
    if task.kind == "infer":
        forward = jax.jit(lambda p, r, x: nnx.merge(graphdef, p, r)(x, train=False))

        def infer(steps: int) -> None:
            for _ in range(steps):
                forward(params, rest, images).block_until_ready()

        return infer, info

    tx = optax.rmsprop(
        1e-4, decay=0.9, eps=0.002, initial_scale=1.0, eps_in_sqrt=True, momentum=0.9
    )

    @jax.jit(donate_argnums=(0, 1, 2))
    def step(params, rest, opt_state, images, labels):
        def loss_of(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            logits = model(images, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), nnx.split(model, nnx.Param, ...)[2]

        grads, rest = jax.grad(loss_of, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), rest, opt_state

    now = [params, rest, tx.init(params)]

    def train(steps: int) -> None:
        for _ in range(steps):
            now[:] = step(*now, images, labels)
        jax.block_until_ready(now)

    return train, info
