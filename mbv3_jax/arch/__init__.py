"""Networks as data: specs, the published tables, edits of them, and what they cost."""

from mbv3_jax.arch.build import build
from mbv3_jax.arch.spec import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec, from_json, to_json

__all__ = [
    "BlockSpec",
    "ConvSpec",
    "HeadSpec",
    "NetSpec",
    "SESpec",
    "build",
    "from_json",
    "to_json",
]
