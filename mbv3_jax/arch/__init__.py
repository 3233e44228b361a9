"""Networks as data: specs, the published tables, edits of them, and what they cost."""

from mbv3_jax.arch.build import build
from mbv3_jax.arch.spec import (
    BlockSpec,
    ConvSpec,
    HeadSpec,
    NetSpec,
    SESpec,
    spec_from_json,
    spec_to_json,
)

__all__ = [
    "BlockSpec",
    "ConvSpec",
    "HeadSpec",
    "NetSpec",
    "SESpec",
    "build",
    "spec_from_json",
    "spec_to_json",
]
