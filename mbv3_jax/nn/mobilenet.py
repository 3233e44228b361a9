"""A whole network as a Flax module, built from its spec."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from mbv3_jax.arch.spec import NetSpec, choose
from mbv3_jax.nn.activations import ACTIVATIONS
from mbv3_jax.nn.blocks import DTYPES, BatchNorm, Bneck, Compute, Conv, ConvBNSE


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
        for stage in compute.frozen_bn:
            choose("compute.frozen_bn", stage, spec.strides())
            for _, module in nnx.iter_modules(getattr(self, stage)):
                if isinstance(module, BatchNorm):
                    module.frozen = True

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Normalised [N, H, W, in_channels] -> float32 logits [N, num_classes].

        Raises:
          ValueError: the images have another number of channels; or a key is needed (training
            with dropout or drop-path) and absent.
        """
        spec = self.spec
        if train and key is None and (spec.dropout or spec.drop_path):
            raise ValueError("key: training with dropout or drop_path needs a random key")
        *_, (_, x) = self.maps(images, train=train, key=key)
        x = self.embed(x)
        if train and spec.dropout:
            keep = jax.random.bernoulli(jax.random.fold_in(key, 0), 1 - spec.dropout, x.shape)
            x = jnp.where(keep, x / (1 - spec.dropout), 0)
        return self.logits.pointwise(x.astype(jnp.float32))[:, 0, 0]

    def maps(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """The output [N, H', W', C] of each stage of `spec.strides()`, by name, as it is made."""
        if images.ndim != 4 or images.shape[3] != self.spec.in_channels:
            raise ValueError(
                f"images: got shape {images.shape}, expected [N, H, W, {self.spec.in_channels}]"
            )
        x = self.stem(images.astype(DTYPES[self.compute.dtype]), train)
        yield "stem", x
        for i in range(1, len(self.spec.blocks) + 1):
            block_key = None if key is None else jax.random.fold_in(key, i)
            x = getattr(self, f"block{i}")(x, train, block_key)
            yield f"block{i}", x
        yield "last", self.last(x, train)

    def embed(self, x: jax.Array) -> jax.Array:
        """The map of "last" [N, H, W, C] -> what the logits are computed from, [N, 1, 1, C']."""
        x = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        if not self.spec.head:
            return x
        return ACTIVATIONS[self.spec.head.act](self.head.pointwise(x))
