"""A network of three blocks with every part that a spec can ask for."""

import jax
import numpy as np

from mbv3_jax.arch import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec
from mbv3_jax.nn import functional

MNASNET_SE = SESpec(of="input", divisor=1, gate="sigmoid")
NET = NetSpec(
    name="net",
    stem=ConvSpec(kernel=3, out=8, act="h_swish", stride=2),
    blocks=(
        BlockSpec(kernel=3, expansion=8, out=8, act="relu", se=SESpec()),
        BlockSpec(kernel=5, expansion=24, out=16, act="relu6", stride=2, se=MNASNET_SE),
        BlockSpec(kernel=3, expansion=32, out=16, act="h_swish"),
    ),
    last=ConvSpec(kernel=1, out=24, act="swish", se=SESpec()),
    head=HeadSpec(out=20, act="h_swish"),
    resolution=32,
    num_classes=5,
    dropout=0.0,
)

apply = jax.jit(functional.apply, static_argnums=0, static_argnames=("train", "compute"))


def random_images(spec: NetSpec, batch: int, size: int = 0, seed: int = 1) -> np.ndarray:
    """Standard normal [batch, size, size, in_channels]; `size` 0 means the spec's resolution."""
    side = size or spec.resolution
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, side, side, spec.in_channels)).astype(np.float32)
