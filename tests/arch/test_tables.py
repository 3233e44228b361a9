"""The tables, against the papers' columns typed in a second time, and their published counts."""

import pytest

from mbv3_jax.arch import build, cost
from mbv3_jax.arch.tables import TABLES

# Column by column; blocks count from 1. SE, h-swish and stride 2 as the blocks that have them.
LARGE = {
    "kernel": "3 3 3 5 5 5 3 3 3 3 3 3 5 5 5",
    "expansion": "16 64 72 72 120 120 240 200 184 184 480 672 672 960 960",
    "out": "16 24 24 40 40 40 80 80 80 80 112 112 160 160 160",
    "se": "4 5 6 11 12 13 14 15",
    "h_swish": "7 8 9 10 11 12 13 14 15",
    "stride_2": "2 4 7 13",
    "ends": (16, "h_swish", 960, 1280),
}
SMALL = {
    "kernel": "3 3 3 5 5 5 5 5 5 5 5",
    "expansion": "16 72 88 96 240 240 120 144 288 576 576",
    "out": "16 24 24 40 40 40 48 48 96 96 96",
    "se": "1 4 5 6 7 8 9 10 11",
    "h_swish": "4 5 6 7 8 9 10 11",
    "stride_2": "1 2 4 9",
    "ends": (16, "h_swish", 576, 1024),
}
PLAIN = {"se": "", "h_swish": ""}
COLUMNS = {
    "mobilenet_v3_large": LARGE,
    "mobilenet_v3_small": SMALL,
    "mobilenet_v3_large_minimalistic": LARGE
    | PLAIN
    | {"kernel": "3 " * 15, "ends": (16, "relu", 960, 1280)},
    "mobilenet_v3_small_minimalistic": SMALL
    | PLAIN
    | {"kernel": "3 " * 11, "ends": (16, "relu", 576, 1024)},
    "mobilenet_v2": PLAIN
    | {
        "kernel": "3 " * 17,
        "expansion": "32 96 144 144 192 192 192 384 384 384 384 576 576 576 960 960 960",
        "out": "16 24 24 32 32 32 64 64 64 64 96 96 96 160 160 160 320",
        "stride_2": "2 4 7 14",
        "ends": (32, "relu6", 1280, None),
    },
    "mnasnet_a1": PLAIN
    | {
        "kernel": "3 3 3 5 5 5 3 3 3 3 3 3 5 5 5 3",
        "expansion": "32 96 144 72 120 120 240 480 480 480 480 672 672 960 960 960",
        "out": "16 24 24 40 40 40 80 80 80 80 112 112 160 160 160 320",
        "se": "4 5 6 11 12 13 14 15",
        "stride_2": "2 4 7 13",
        "ends": (32, "relu", 1280, None),
    },
}


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split()]


def test_every_table_is_checked():
    assert set(COLUMNS) <= set(TABLES)
    assert {name for name in TABLES if name.startswith(("mobilenet", "mnasnet"))} == set(COLUMNS)


@pytest.mark.parametrize("name", COLUMNS)
def test_rows(name):
    spec, columns = build(name), COLUMNS[name]
    for column in ("kernel", "expansion", "out"):
        assert [getattr(b, column) for b in spec.blocks] == numbers(columns[column]), column

    def those(condition):
        return [i for i, b in enumerate(spec.blocks, start=1) if condition(b)]

    stem, act, last, head = columns["ends"]
    rectifier = "relu6" if name == "mobilenet_v2" else "relu"
    assert those(lambda b: b.se) == numbers(columns["se"])
    assert those(lambda b: b.act == "h_swish") == numbers(columns["h_swish"])
    assert {b.act for b in spec.blocks} <= {"h_swish", rectifier}
    assert those(lambda b: b.stride == 2) == numbers(columns["stride_2"])
    assert those(lambda b: b.stride not in (1, 2)) == []
    assert all(b.shortcut for b in spec.blocks)
    assert (spec.stem.kernel, spec.stem.stride, spec.stem.out, spec.stem.act) == (3, 2, stem, act)
    assert (spec.last.kernel, spec.last.stride, spec.last.out, spec.last.act) == (1, 1, last, act)
    assert (spec.head and (spec.head.out, spec.head.act)) == (head and (head, act))
    assert spec.stem.se is None and spec.last.se is None
    assert (spec.bn_eps, spec.bn_decay, spec.dropout, spec.padding) == (1e-3, 0.99, 0.2, "same")


def test_expansion_is_absent_where_it_equals_the_input():
    for name in COLUMNS:
        spec = build(name)
        assert [i for i in range(len(spec.blocks)) if not spec.has_expand(i)] == [0]


def test_shortcuts_where_stride_is_1_and_channels_agree():
    def shortcuts(name, **options):
        spec = build(name, **options)
        return [i + 1 for i in range(len(spec.blocks)) if spec.has_shortcut(i)]

    assert shortcuts("mobilenet_v3_large") == [1, 3, 5, 6, 8, 9, 10, 12, 14, 15]
    assert shortcuts("mobilenet_v3_small") == [3, 5, 6, 8, 10, 11]
    assert shortcuts("mobilenet_v2") == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
    assert shortcuts("mobilenet_v3_large", shortcut=False) == []


def test_squeezed_widths():
    def squeezed(name):
        spec = build(name)
        return [
            b.se.channels(expansion=b.expansion, block_input=inputs)
            for b, inputs in zip(spec.blocks, spec.block_inputs(), strict=True)
            if b.se
        ]

    # A quarter of the expansion, to the next multiple of 8 that keeps 90% of it.
    assert squeezed("mobilenet_v3_large") == [24, 32, 32, 120, 168, 168, 240, 240]
    assert squeezed("mobilenet_v3_small") == [8, 24, 64, 64, 32, 40, 72, 144, 144]
    # A quarter of the input, plainly rounded.
    assert squeezed("mnasnet_a1") == [6, 10, 10, 20, 28, 28, 40, 40]


# Counted in torchvision 0.28 and timm 1.0 (mobilenetv3_large_100 ... semnasnet_100,
# tf_mobilenetv3_large_minimal_100 ...), at 1000 classes.
PARAMS = {
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large_minimalistic": 3_924_288,
    "mobilenet_v3_small_minimalistic": 2_044_736,
    "mobilenet_v2": 3_504_872,
    "mnasnet_a1": 3_887_038,
}


@pytest.mark.parametrize("name", COLUMNS)
def test_params(name):
    assert cost.params(build(name)) == PARAMS[name]


def test_classes_and_channels_change_only_their_layer():
    spec = build("mobilenet_v3_small")
    assert cost.params(spec.replace(num_classes=10)) == PARAMS[spec.name] - 990 * 1025
    assert cost.params(spec.replace(in_channels=1)) == PARAMS[spec.name] - 2 * 9 * 16
