"""A whole network as a Flax module, built from its spec."""

import jax
import jax.numpy as jnp
from flax import nnx

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.nn.activations import ACTIVATIONS
from mbv3_jax.nn.blocks import DTYPES, Bneck, Compute, Conv, ConvBNSE


class MobileNet(nnx.Module):
    """Stem, block1 ... blockN, last 1x1, pooling, head, dropout, logits, as `spec` says."""

    def __init__(self, spec: NetSpec, compute: Compute):
        common = {"spec": spec, "compute": compute}
        self.spec, self.compute = spec, compute
        self.stem = ConvBNSE(spec.stem, spec.in_channels, **common)
        count = len(spec.blocks)
        for i, (block, inputs) in enumerate(zip(spec.blocks, spec.block_inputs(), strict=True)):
            module = Bneck(
                block,
                inputs,
                expand=spec.has_expand(i),
                shortcut=spec.has_shortcut(i),
                drop_path_rate=spec.drop_path * i / max(count - 1, 1),
                **common,
            )
            setattr(self, f"block{i + 1}", module)
        self.last = ConvBNSE(spec.last, spec.blocks[-1].out, **common)
        width = spec.last.out
        if spec.head:
            self.head = Conv(1, width, spec.head.out, bias=True)
            width = spec.head.out
        self.logits = Conv(1, width, spec.num_classes, bias=True)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Normalised [N, H, W, in_channels] -> float32 logits [N, num_classes].

        Raises:
          ValueError: the images have another number of channels; or a key is needed (training
            with dropout or drop-path) and absent.
        """
        spec = self.spec
        if images.ndim != 4 or images.shape[3] != spec.in_channels:
            raise ValueError(
                f"images: got shape {images.shape}, expected [N, H, W, {spec.in_channels}]"
            )
        if train and key is None and (spec.dropout or spec.drop_path):
            raise ValueError("key: training with dropout or drop_path needs a random key")
        x = self.stem(images.astype(DTYPES[self.compute.dtype]), train)
        for i in range(len(spec.blocks)):
            block_key = None if key is None else jax.random.fold_in(key, i + 1)
            x = getattr(self, f"block{i + 1}")(x, train, block_key)
        x = self.last(x, train)
        x = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        if spec.head:
            x = ACTIVATIONS[spec.head.act](self.head.pointwise(x))
        if train and spec.dropout:
            keep = jax.random.bernoulli(jax.random.fold_in(key, 0), 1 - spec.dropout, x.shape)
            x = jnp.where(keep, x / (1 - spec.dropout), 0)
        return self.logits.pointwise(x.astype(jnp.float32))[:, 0, 0]
