"""The preset spaces: published ones, and four of this project."""

import dataclasses
from collections.abc import Callable

from mbv3_jax.arch.spec import NetSpec, SESpec
from mbv3_jax.arch.tables import mnasnet_a1, mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small
from mbv3_jax.core.checks import choose
from mbv3_jax.search.space import OF_BLOCKS, Space, Stage

_RELUS = ("relu", "h_swish")
# Whole factors as in TuNAS, and the uneven ones of MobileNetV3, which NetAdapt produced.
_FINE = (1, 2, 2.3, 2.5, 3, 3.67, 4, 4.5, 5, 6)
# TuNAS (arXiv 2008.06120): the widths of a stage, as factors of its width in the base network.
_WIDTHS = (0.5, 0.625, 0.75, 1, 1.25, 1.5, 2)
_PER_BLOCK = ("kernel", "expansion", "se")


def _around(width: int, factors=_WIDTHS) -> tuple[int, ...]:
    return tuple(dict.fromkeys(max(8, int(width * f + 4) // 8 * 8) for f in factors))


def mnasnet() -> Space:
    """The space of MnasNet (section 4.1), in which all blocks of a stage are alike.

    It has separable and inverted residual blocks, kernels 3 and 5, optional squeeze-and-excite,
    widths 0.75, 1 and 1.25 times MobileNetV2's (and MnasNet-A1's 112), and one block more or fewer
    than MobileNetV2. It contains MnasNet-A1. The paper's plain convolution and its pooling in place
    of a shortcut are left out.
    """
    rows = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
    stages = []
    for width, depth, stride in rows:
        out = _around(width, (0.75, 1, 1.25))
        stages.append(
            Stage(
                out=(*out, 112) if width == 96 else out,
                stride=stride,
                depth=tuple(d for d in (depth - 1, depth, depth + 1) if d),
                kernel=(3, 5),
                expansion=(1, 3, 6),
                se=(False, True),
            )
        )
    se = SESpec(of="input", divisor=1, gate="sigmoid")
    return Space(name="mnasnet", base=mnasnet_a1(), stages=tuple(stages), squeeze_excite=se)


def mobilenetv3_like() -> Space:
    """TuNAS's largest space, around MobileNetV3-Large, which it contains.

    Every block chooses its kernel (3, 5, 7), expansion and squeeze-and-excite, and every stage its
    width, depth (up to 4) and nonlinearity, which TuNAS fixes. TuNAS's expansions are the whole
    factors from 1 to 6; here they are finer, as MobileNetV3's are.
    """
    first = Stage(out=_around(16, (1, 1.5, 2)), kernel=(3, 5, 7), expansion=(1,), act=_RELUS)
    rest = [_free(width, stride) for width, stride in ((24, 2), (40, 2), (80, 2), (112, 1))]
    return Space(
        name="mobilenetv3_like",
        base=mobilenet_v3_large(),
        stages=(first, *rest, _free(160, 2)),
        last_factor=6,
    )


def _free(width: int, stride: int) -> Stage:
    return Stage(
        out=_around(width),
        stride=stride,
        depth=(1, 2, 3, 4),
        kernel=(3, 5, 7),
        expansion=_FINE,
        se=(False, True),
        act=_RELUS,
        per_block=_PER_BLOCK,
    )


def small() -> Space:
    """The same decisions around MobileNetV3-Small, which it contains; 1 to 3 blocks a stage."""
    first = Stage(
        out=(8, 16, 24), stride=2, kernel=(3, 5), expansion=(1,), se=(False, True), act=_RELUS
    )
    rest = [
        Stage(
            out=_around(width, (0.75, 1, 1.25)),
            stride=stride,
            depth=(1, 2, 3),
            kernel=(3, 5, 7),
            expansion=_FINE,
            se=(False, True),
            act=_RELUS,
            per_block=_PER_BLOCK,
        )
        for width, stride in ((24, 2), (40, 2), (48, 1), (96, 2))
    ]
    return Space(name="small", base=mobilenet_v3_small(), stages=(first, *rest), last_factor=6)


def proxylessnas() -> Space:
    """The space of ProxylessNAS (arXiv 1812.00332).

    Every block chooses kernel 3, 5 or 7 and expansion 3 or 6. Widths are fixed, and a stage has up
    to 4 blocks.
    """
    rows = ((24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
    stages = [Stage(out=(16,), expansion=(1,), act=("relu6",))]
    stages += [
        Stage(
            out=(width,),
            stride=stride,
            depth=tuple(range(1, depth + 1)),
            kernel=(3, 5, 7),
            expansion=(3, 6),
            act=("relu6",),
            per_block=OF_BLOCKS[:2],
        )
        for width, depth, stride in rows
    ]
    return Space(name="proxylessnas", base=mobilenet_v2(), stages=tuple(stages))


def accel_nasbench() -> Space:
    """The space of Accel-NASBench, whose table has 5,138 results (`search/accel_nasbench.py`).

    It is that of MnasNet with fixed widths: every stage chooses depth, kernel, expansion and
    squeeze-and-excite for all its blocks. The parameters of every network in the table are the
    published ones; the published MACs also count other operations.
    """
    rows = ((16, 1), (24, 2), (40, 2), (80, 2), (112, 1), (192, 2), (320, 1))
    stages = tuple(
        Stage(
            out=(width,),
            stride=stride,
            depth=(1, 2, 3, 4) if width == 192 else (1, 2, 3),
            kernel=(3, 5),
            expansion=(1, 4, 6),
            se=(False, True),
        )
        for width, stride in rows
    )
    return Space(
        name="accel_nasbench",
        base=mnasnet_a1().replace(padding="symmetric"),
        stages=stages,
        squeeze_excite=SESpec(of="input", divisor=1),
    )


def letters() -> Space:
    """A space for 32 pixels and a laptop, whose shared weights learn within minutes.

    It has three stages after the stem, which leave 4 pixels a side. The shared weights of `small`,
    a space made for ImageNet, take much longer to learn.
    """
    base = mobilenet_v3_small().replace(resolution=32, num_classes=15, bn_decay=0.9, dropout=0.0)
    base = base.replace(
        stem=_with_out(base.stem, 8), last=_with_out(base.last, 64), head=_with_out(base.head, 64)
    )
    plain = Stage(out=(8, 16, 24), kernel=(3, 5), se=(False, True), act=_RELUS)
    early = dataclasses.replace(plain, stride=2, depth=(1, 2), expansion=(2, 3))
    middle = dataclasses.replace(
        plain,
        out=(16, 24, 32),
        stride=2,
        depth=(1, 2, 3),
        expansion=(2, 4, 6),
        per_block=_PER_BLOCK,
    )
    late = dataclasses.replace(
        plain, out=(32, 48, 64), depth=(1, 2), expansion=(2, 4), per_block=("kernel",)
    )
    return Space(name="letters", base=base, stages=(early, middle, late))


def tiny() -> Space:
    """A space for 32 pixels and a laptop, with networks of 3 to 8 blocks that learn in a minute.

    It has three stages after the stem, which leave 4 pixels a side. All blocks of a stage are
    alike, so that few trainings suffice to compare the choices of a stage.
    """
    base = mobilenet_v3_small().replace(resolution=32, num_classes=15, bn_decay=0.9, dropout=0.0)
    base = base.replace(
        stem=_with_out(base.stem, 8), last=_with_out(base.last, 64), head=_with_out(base.head, 64)
    )
    middle = Stage(
        out=(16, 24, 32, 40),
        stride=2,
        depth=(1, 2, 3),
        kernel=(3, 5),
        expansion=(1, 2, 3, 4, 6),
        se=(False, True),
        act=_RELUS,
    )
    early = dataclasses.replace(middle, out=(8, 16, 24), depth=(1, 2))
    late = dataclasses.replace(middle, out=(16, 32, 48, 64), stride=1)
    return Space(name="tiny", base=base, stages=(early, middle, late))


def toy() -> Space:
    """A space of 128 networks for 32 pixels, in which a search can be tried within minutes."""
    base: NetSpec = mobilenet_v3_small().replace(
        resolution=32, num_classes=15, bn_decay=0.9, dropout=0.0
    )
    base = base.replace(
        stem=_with_out(base.stem, 8), last=_with_out(base.last, 48), head=_with_out(base.head, 48)
    )
    early = Stage(
        out=(8, 24), stride=2, depth=(1, 2), kernel=(3, 5), expansion=(3,), act=("h_swish",)
    )
    late = Stage(
        out=(16, 48),
        stride=2,
        depth=(1, 2),
        expansion=(2, 6),
        se=(False, True),
        act=("h_swish",),
    )
    return Space(name="toy", base=base, stages=(early, late))


def _with_out(layer, out: int):
    return dataclasses.replace(layer, out=out)


PRESETS: dict[str, Callable[[], Space]] = {
    f.__name__: f
    for f in (mnasnet, mobilenetv3_like, proxylessnas, accel_nasbench, small, letters, tiny, toy)
}


def preset(name: str) -> Space:
    """Returns the space of this name.

    Raises:
      ValueError: The name is unknown; the message lists the names.
    """
    return PRESETS[choose("space", name, PRESETS)]()
