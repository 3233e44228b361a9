"""Networks that timm and torchvision have weights for and the papers' tables do not print.

Each is a stack of inverted residuals, so a `NetSpec` says it; they are here to be imported.
"""

import dataclasses

from mbv3_jax.arch import edits
from mbv3_jax.arch.spec import BlockSpec, ConvSpec, NetSpec, SESpec
from mbv3_jax.arch.tables import TABLES
from mbv3_jax.arch.width import scale_width

# MnasNet's squeeze-and-excite, see `arch.tables.mnasnet_a1`.
_MNASNET_SE = SESpec(of="input", divisor=1, gate="sigmoid")

# Columns: kernel, expansion factor, out, squeeze-and-excite, repeats, stride of the first.
# tensorflow/tpu models/official/mnasnet `mnasnet_b1` and `mnasnet_small`.
_B1 = (
    (3, 1, 16, False, 1, 1),
    (3, 3, 24, False, 3, 2),
    (5, 3, 40, False, 3, 2),
    (5, 6, 80, False, 3, 2),
    (3, 6, 96, False, 2, 1),
    (5, 6, 192, False, 4, 2),
    (3, 6, 320, False, 1, 1),
)
_SMALL = (
    (3, 1, 8, False, 1, 1),
    (3, 3, 16, False, 1, 2),
    (3, 6, 16, False, 2, 2),
    (5, 6, 32, True, 4, 2),
    (3, 6, 32, True, 3, 1),
    (5, 6, 88, True, 3, 2),
    (3, 6, 144, False, 1, 1),
)

# How many blocks each stage has, for names that count them: timm's and torchvision's MnasNet's.
STAGES = {
    "mobilenet_v3_large": (1, 2, 3, 4, 2, 3),
    "mobilenet_v3_large_minimalistic": (1, 2, 3, 4, 2, 3),
    "mobilenet_v3_rw": (1, 2, 3, 4, 2, 3),
    "mobilenet_v3_small": (1, 2, 3, 2, 3),
    "mobilenet_v3_small_minimalistic": (1, 2, 3, 2, 3),
    "mobilenet_v2": (1, 2, 3, 4, 3, 3, 1),
    "mobilenet_v2_110d": (1, 3, 4, 5, 4, 4, 1),
    "mobilenet_v2_120d": (1, 3, 5, 6, 5, 5, 1),
    "mnasnet_a1": (1, 2, 3, 4, 2, 3, 1),
    "mnasnet_b1": tuple(row[4] for row in _B1),
    "mnasnet_small": tuple(row[4] for row in _SMALL),
}


def _mnasnet(name: str, rows, stem: int) -> NetSpec:
    blocks, channels = [], stem
    for kernel, factor, out, has_se, repeats, stride in rows:
        for i in range(repeats):
            blocks.append(
                BlockSpec(
                    kernel=kernel,
                    expansion=channels * factor,
                    out=out,
                    act="relu",
                    stride=1 if i else stride,
                    se=_MNASNET_SE if has_se else None,
                )
            )
            channels = out
    return NetSpec(
        name=name,
        stem=ConvSpec(kernel=3, out=stem, act="relu", stride=2),
        blocks=tuple(blocks),
        last=ConvSpec(kernel=1, out=1280, act="relu"),
        head=None,
    )


def mnasnet_b1(width: float = 1.0) -> NetSpec:
    """MnasNet-B1: no squeeze-and-excite; 1280 features at every width."""
    return _fixed_last(scale_width(_mnasnet("mnasnet_b1", _B1, 32), width), 1280)


def mnasnet_small() -> NetSpec:
    """MnasNet-Small."""
    return _mnasnet("mnasnet_small", _SMALL, 8)


def mobilenet_v3_rw() -> NetSpec:
    """timm's first MobileNetV3-Large, made before the authors' code was public.

    Its squeeze-and-excite rounds plainly and has the block's nonlinearity inside; the first block
    has no shortcut; the head has no bias (here it is zero).
    """
    large = TABLES["mobilenet_v3_large"]()
    blocks = [
        dataclasses.replace(b, se=b.se and SESpec(divisor=1, act=b.act)) for b in large.blocks
    ]
    blocks[0] = dataclasses.replace(blocks[0], shortcut=False)
    return large.replace(name="mobilenet_v3_rw", blocks=tuple(blocks))


def deep_v2(name: str, width: float) -> NetSpec:
    """timm's MobileNetV2 with more blocks a stage, wider but for stem and last 1x1."""
    plain = TABLES["mobilenet_v2"]()
    blocks, start = [], 0
    for old, new in zip(STAGES["mobilenet_v2"], STAGES[name], strict=True):
        stage = plain.blocks[start : start + old]
        blocks += stage + stage[-1:] * (new - old)
        start += old
    wide = scale_width(plain.replace(name=name, blocks=tuple(blocks)), width)
    return _fixed_last(edits.stem(wide, plain.stem.out), plain.last.out)


def _fixed_last(spec: NetSpec, out: int) -> NetSpec:
    return spec.replace(last=dataclasses.replace(spec.last, out=out))
