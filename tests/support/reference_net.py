"""A network from its spec in plain NumPy and float64, written from the papers' rules.

Slow, without gradients, and sharing no code with mbv3_jax.nn: what the tests hold it to.
"""

import numpy as np


def random_variables(shapes: dict, seed: int = 0) -> dict:
    """Float32 values for every leaf, such that signals keep their size and no BatchNorm is idle."""
    rng = np.random.default_rng(seed)

    def fill(tree):
        return {k: fill(v) if isinstance(v, dict) else draw(k, v.shape) for k, v in tree.items()}

    def draw(kind, shape):
        noise = rng.standard_normal(shape)
        if kind == "kernel":
            value = noise * np.sqrt(2 / np.prod(shape[:3]))
        elif kind == "scale":
            value = 1 + 0.1 * noise
        elif kind == "var":
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = 0.1 * noise
        return value.astype(np.float32)

    return fill(shapes)


ACTS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "h_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
}


class Reference:
    """One pass: `logits` is its result, `batch_stats` the statistics after it."""

    def __init__(self, spec, variables, images, *, train: bool = False):
        self.spec, self.train = spec, train
        self.batch_stats = {}
        params, stats = variables["params"], variables["batch_stats"]
        x = np.asarray(images, np.float64)

        def conv_bn_act(x, layer, act, **how):
            """The layer of this name, "block1/expand"; its statistics go to `batch_stats`."""
            p, s = _at(params, layer), _at(stats, layer)["bn"]
            x = convolve(x, np.asarray(p["conv"]["kernel"], np.float64), spec.padding, **how)
            x, new = self._batch_norm(x, p["bn"], s)
            self.batch_stats[layer] = new
            return ACTS[act](x) if act else x

        def with_se(x, layer, se):
            return squeeze_excite(x, _at(params, layer)["se"], se.gate) if se else x

        x = conv_bn_act(x, "stem", spec.stem.act, stride=spec.stem.stride)
        x = with_se(x, "stem", spec.stem.se)
        for i, block in enumerate(spec.blocks, start=1):
            name, y = f"block{i}", x
            if block.expansion != x.shape[3]:
                y = conv_bn_act(y, f"{name}/expand", block.act)
            how = {"stride": block.stride, "depthwise": True}
            y = conv_bn_act(y, f"{name}/depthwise", block.act, **how)
            y = with_se(y, name, block.se)
            y = conv_bn_act(y, f"{name}/project", None)
            is_residual = block.shortcut and block.stride == 1 and y.shape == x.shape
            x = x + y if is_residual else y
        x = with_se(conv_bn_act(x, "last", spec.last.act), "last", spec.last.se)
        x = x.mean(axis=(1, 2))
        if spec.head:
            x = ACTS[spec.head.act](dense(x, params["head"]))
        self.logits = dense(x, params["logits"])

    def _batch_norm(self, x, p, s):
        mean, var = np.asarray(s["mean"], np.float64), np.asarray(s["var"], np.float64)
        new = {"mean": mean, "var": var}
        if self.train:
            batch = {"mean": x.mean(axis=(0, 1, 2)), "var": x.var(axis=(0, 1, 2))}
            keep = self.spec.bn_decay
            new = {k: keep * new[k] + (1 - keep) * batch[k] for k in new}
            mean, var = batch["mean"], batch["var"]
        return (x - mean) / np.sqrt(var + self.spec.bn_eps) * p["scale"] + p["bias"], new


def _at(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return tree


def dense(x, p):
    """[N, in] -> [N, out] by a 1x1 kernel [1, 1, in, out] and a bias."""
    return x @ np.asarray(p["kernel"], np.float64)[0, 0] + p["bias"]


def squeeze_excite(x, p, gate):
    """[N, H, W, C] scaled by channel."""
    squeezed = np.maximum(dense(x.mean(axis=(1, 2)), p["reduce"]), 0)
    return x * ACTS[gate](dense(squeezed, p["expand"]))[:, None, None]


def convolve(x, kernel, padding, *, stride=1, depthwise=False):
    """[N, H, W, in] by [k, k, in, out], or [k, k, 1, in] for depthwise, sum over taps."""
    k = kernel.shape[0]
    rows, columns = (-(-size // stride) for size in x.shape[1:3])

    def before_and_after(size, outputs):
        if padding == "symmetric":
            return k // 2, k // 2
        total = max((outputs - 1) * stride + k - size, 0)
        return total // 2, total - total // 2  # TensorFlow: the odd one after

    pads = [before_and_after(*s) for s in zip(x.shape[1:3], (rows, columns), strict=True)]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    total = 0.0
    for i in range(k):
        for j in range(k):
            view = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            view = view[:, :rows, :columns]
            total = total + (view * kernel[i, j, 0] if depthwise else view @ kernel[i, j])
    return total
