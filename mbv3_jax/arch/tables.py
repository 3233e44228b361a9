"""The published networks, typed in as their papers print them, at width 1.0 and 224 pixels."""

from collections.abc import Sequence

from mbv3_jax.arch.spec import BlockSpec, ConvSpec, HeadSpec, NetSpec, SESpec

# Columns of the bneck tables: kernel, expansion, out, squeeze-and-excite, nonlinearity, stride.
RE, HS, SE, NO = "relu", "h_swish", True, False


Row = tuple[int, int, int, bool, str, int]


def _bnecks(rows: Sequence[Row], se: SESpec | None) -> tuple[BlockSpec, ...]:
    return tuple(
        BlockSpec(kernel=k, expansion=exp, out=out, se=se if has_se else None, act=nl, stride=s)
        for k, exp, out, has_se, nl, s in rows
    )


# "Searching for MobileNetV3" (arXiv 1905.02244), table 1.
_LARGE_ROWS = (
    # k  exp  out  SE  NL  s    input
    (3, 16, 16, NO, RE, 1),  # 112
    (3, 64, 24, NO, RE, 2),  # 112
    (3, 72, 24, NO, RE, 1),  # 56
    (5, 72, 40, SE, RE, 2),  # 56
    (5, 120, 40, SE, RE, 1),  # 28
    (5, 120, 40, SE, RE, 1),  # 28
    (3, 240, 80, NO, HS, 2),  # 28
    (3, 200, 80, NO, HS, 1),  # 14
    (3, 184, 80, NO, HS, 1),  # 14
    (3, 184, 80, NO, HS, 1),  # 14
    (3, 480, 112, SE, HS, 1),  # 14
    (3, 672, 112, SE, HS, 1),  # 14
    (5, 672, 160, SE, HS, 2),  # 14
    (5, 960, 160, SE, HS, 1),  # 7
    (5, 960, 160, SE, HS, 1),  # 7
)

# Table 2. The paper ticks SE on the last 1x1, and an earlier version had a head of 1280; slim,
# Keras, torchvision and timm all have no SE there and a head of 1024. `build` can make either.
_SMALL_ROWS = (
    # k  exp  out  SE  NL  s    input
    (3, 16, 16, SE, RE, 2),  # 112
    (3, 72, 24, NO, RE, 2),  # 56
    (3, 88, 24, NO, RE, 1),  # 28
    (5, 96, 40, SE, HS, 2),  # 28
    (5, 240, 40, SE, HS, 1),  # 14
    (5, 240, 40, SE, HS, 1),  # 14
    (5, 120, 48, SE, HS, 1),  # 14
    (5, 144, 48, SE, HS, 1),  # 14
    (5, 288, 96, SE, HS, 2),  # 14
    (5, 576, 96, SE, HS, 1),  # 7
    (5, 576, 96, SE, HS, 1),  # 7
)

# MobileNetV2 (arXiv 1801.04381), table 2, and MnasNet-A1 (arXiv 1807.11626), figure 7.
# Columns: kernel, expansion factor, out, squeeze-and-excite, repeats, stride of the first.
_V2_STAGES = (
    (3, 1, 16, NO, 1, 1),  # 112
    (3, 6, 24, NO, 2, 2),  # 112
    (3, 6, 32, NO, 3, 2),  # 56
    (3, 6, 64, NO, 4, 2),  # 28
    (3, 6, 96, NO, 3, 1),  # 14
    (3, 6, 160, NO, 3, 2),  # 14
    (3, 6, 320, NO, 1, 1),  # 7
)
_MNASNET_A1_STAGES = (
    (3, 1, 16, NO, 1, 1),  # 112, SepConv: a block without expansion
    (3, 6, 24, NO, 2, 2),  # 112
    (5, 3, 40, SE, 3, 2),  # 56
    (3, 6, 80, NO, 4, 2),  # 28
    (3, 6, 112, SE, 2, 1),  # 14
    (5, 6, 160, SE, 3, 2),  # 14
    (3, 6, 320, NO, 1, 1),  # 7
)


def _stages(
    stages: Sequence[tuple[int, int, int, bool, int, int]], stem: int, act: str, se: SESpec | None
) -> tuple[BlockSpec, ...]:
    rows: list[Row] = []
    channels = stem
    for kernel, factor, out, has_se, repeats, stride in stages:
        for i in range(repeats):
            rows.append((kernel, channels * factor, out, has_se, act, 1 if i else stride))
            channels = out
    return _bnecks(rows, se)


def mobilenet_v3_large() -> NetSpec:
    """MobileNetV3-Large: 75.2% top-1, 219M MAdds, 5.4M parameters (table 3)."""
    return NetSpec(
        name="mobilenet_v3_large",
        stem=ConvSpec(kernel=3, out=16, act=HS, stride=2),
        blocks=_bnecks(_LARGE_ROWS, SESpec()),
        last=ConvSpec(kernel=1, out=960, act=HS),
        head=HeadSpec(out=1280, act=HS),
    )


def mobilenet_v3_small() -> NetSpec:
    """MobileNetV3-Small: 67.4% top-1, 56M MAdds, 2.5M parameters (table 3)."""
    return NetSpec(
        name="mobilenet_v3_small",
        stem=ConvSpec(kernel=3, out=16, act=HS, stride=2),
        blocks=_bnecks(_SMALL_ROWS, SESpec()),
        last=ConvSpec(kernel=1, out=576, act=HS),
        head=HeadSpec(out=1024, act=HS),
    )


def _minimalistic(name: str, rows: Sequence[Row], last: int, head: int) -> NetSpec:
    plain = [(3, exp, out, NO, RE, s) for _, exp, out, _, _, s in rows]
    return NetSpec(
        name=name,
        stem=ConvSpec(kernel=3, out=16, act=RE, stride=2),
        blocks=_bnecks(plain, None),
        last=ConvSpec(kernel=1, out=last, act=RE),
        head=HeadSpec(out=head, act=RE),
    )


def mobilenet_v3_large_minimalistic() -> NetSpec:
    """Large without SE, h-swish and 5x5 kernels (slim mobilenet README): 72.3% top-1."""
    return _minimalistic("mobilenet_v3_large_minimalistic", _LARGE_ROWS, 960, 1280)


def mobilenet_v3_small_minimalistic() -> NetSpec:
    """Small without SE, h-swish and 5x5 kernels (slim mobilenet README): 61.9% top-1."""
    return _minimalistic("mobilenet_v3_small_minimalistic", _SMALL_ROWS, 576, 1024)


def mobilenet_v2() -> NetSpec:
    """MobileNetV2: 72.0% top-1, 300M MAdds, 3.4M parameters."""
    return NetSpec(
        name="mobilenet_v2",
        stem=ConvSpec(kernel=3, out=32, act="relu6", stride=2),
        blocks=_stages(_V2_STAGES, 32, "relu6", None),
        last=ConvSpec(kernel=1, out=1280, act="relu6"),
        head=None,
    )


def mnasnet_a1() -> NetSpec:
    """MnasNet-A1, from which V3-Large was searched: 75.2% top-1, 312M MAdds, 3.9M parameters.

    Its squeeze-and-excite has a quarter of the channels of the block's input, not of its expansion,
    with plain rounding and a sigmoid gate.
    """
    return NetSpec(
        name="mnasnet_a1",
        stem=ConvSpec(kernel=3, out=32, act=RE, stride=2),
        blocks=_stages(_MNASNET_A1_STAGES, 32, RE, SESpec(of="input", divisor=1, gate="sigmoid")),
        last=ConvSpec(kernel=1, out=1280, act=RE),
        head=None,
    )


TABLES = {
    f.__name__: f
    for f in (
        mobilenet_v3_large,
        mobilenet_v3_small,
        mobilenet_v3_large_minimalistic,
        mobilenet_v3_small_minimalistic,
        mobilenet_v2,
        mnasnet_a1,
    )
}
