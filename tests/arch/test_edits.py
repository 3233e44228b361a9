"""Every ablation: what it changes in the spec, what that costs, and what it refuses."""

import re

import pytest

from mbv3_jax.arch import SESpec, build, cost, edits

LARGE, SMALL, V2, A1 = "mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2", "mnasnet_a1"
NETWORKS = (LARGE, SMALL, f"{LARGE}_minimalistic", f"{SMALL}_minimalistic", V2, A1)


def acts(spec) -> list[str]:
    """Nonlinearities from the stem to the head."""
    head = [spec.head.act] if spec.head else []
    return [spec.stem.act, *(b.act for b in spec.blocks), spec.last.act, *head]


def costs(name, **options):
    spec = build(name, **options)
    return cost.params(spec), cost.madds(spec)


def added(name, **options):
    """Parameters and multiply-adds on top of the plain network's."""
    plain, edited = costs(name), costs(name, **options)
    return edited[0] - plain[0], edited[1] - plain[1]


# Nonlinearity


@pytest.mark.parametrize("act", ["relu", "relu6", "swish", "h_swish"])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_nonlinearity_everywhere(name, act):
    assert set(acts(build(name, nonlinearity=act))) == {act}
    assert added(name, nonlinearity=act) == (0, 0)


def test_swish_for_h_swish_leaves_relu_alone():
    assert acts(build(LARGE, nonlinearity="swish_for_h_swish")) == (
        ["swish"] + ["relu"] * 6 + ["swish"] * 11
    )
    assert build(V2, nonlinearity="swish_for_h_swish") == build(V2)


@pytest.mark.parametrize(
    ("channels", "relus"),
    # Rows 1 to 6 of table 1 have under 80 output channels, 1 to 10 under 112.
    [(16, 0), (40, 3), (80, 6), (112, 10), (160, 12), (960, 15)],
)
def test_h_swish_from_n_channels_on(channels, relus):
    spec = build(LARGE, nonlinearity=f"h_swish@{channels}")
    assert acts(spec) == ["h_swish"] + ["relu"] * relus + ["h_swish"] * (17 - relus)


def test_h_swish_at_80_is_the_papers_layout_of_large():
    assert build(LARGE, nonlinearity="h_swish@80") == build(LARGE)
    assert build(SMALL, nonlinearity="h_swish@40") == build(SMALL)
    assert build(LARGE, nonlinearity="h_swish@16") == build(LARGE, nonlinearity="h_swish")


def test_h_swish_at_n_elsewhere():
    """The stem keeps its own nonlinearity; what was no h-swish before N stays what it was."""
    assert acts(build(V2, nonlinearity="h_swish@64")) == ["relu6"] * 7 + ["h_swish"] * 12
    minimalistic = build(f"{LARGE}_minimalistic", nonlinearity="h_swish@112")
    assert acts(minimalistic) == ["relu"] * 11 + ["h_swish"] * 7
    # The stem has 32 channels here, so it is the first layer with that many.
    assert set(acts(build(V2, nonlinearity="h_swish@32"))) == {"h_swish"}
    wide_stem = build(LARGE, nonlinearity="h_swish@32", stem_filters=32, stem_act="relu")
    assert acts(wide_stem) == ["relu"] + ["h_swish"] * 17


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("elu", "nonlinearity: got 'elu', expected one of 'paper', 'relu', 'relu6', 'h_swish', "),
        ("h_swish@", "nonlinearity: got 'h_swish@', expected one of"),
        ("h_swish@N", "nonlinearity: 'h_swish@N' needs a number for N, as in 'h_swish@112'"),
        ("h_swish@961", f"nonlinearity: no layer of {LARGE} has 961 channels or more; the layers"),
        (None, "nonlinearity: got None, expected one of"),
    ],
)
def test_unknown_nonlinearity(choice, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        build(LARGE, nonlinearity=choice)


# Stem


def test_stem_of_32_filters_costs_10m():
    params, madds = added(LARGE, stem_filters=32, stem_act="relu")
    assert params == 16 * (27 + 2) + 16 * (9 + 2) + 16 * 16  # stem, depthwise, projection
    assert madds == 112 * 112 * (27 + 9 + 16) * 16  # 10.4M; the paper: 10M (section 5.2)
    spec = build(LARGE, stem_filters=32, stem_act="relu")
    assert (spec.stem.out, spec.stem.act, spec.blocks[0].expansion) == (32, "relu", 32)
    assert not spec.has_expand(0) and spec.blocks[1:] == build(LARGE).blocks[1:]


def test_stem_nonlinearity_has_the_last_word():
    spec = build(LARGE, stem_act="swish", nonlinearity="relu")
    assert acts(spec) == ["swish"] + ["relu"] * 17
    assert added(LARGE, stem_act="swish") == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem_filters": 0}, "stem_filters: got 0, expected a whole number of at least 1"),
        ({"stem_filters": 16.0}, "stem_filters: got 16.0, expected a whole number of at least 1"),
        ({"stem_act": "gelu"}, "stem_act: got 'gelu', expected one of 'relu', 'relu6', 'h_swish'"),
        ({"stem_act": ""}, "stem_act: got '', expected one of"),
        ({"head_filters": -1}, "head_filters: got -1, expected a whole number of at least 1"),
        ({"kernels": "4x4"}, "kernels: got '4x4', expected one of 'paper', '3x3', '5x5', '7x7'"),
        ({"kernels": 3}, "kernels: got 3, expected one of 'paper'"),
        ({"shortcut": 0}, "shortcut: got 0, expected True or False"),
        ({"shortcut": "no"}, "shortcut: got 'no', expected True or False"),
        ({"last_stage": "new"}, "last_stage: got 'new', expected one of 'paper', 'efficient', 'o"),
        ({"resolution": 31}, "resolution: got 31, expected a whole number of at least 32"),
        ({"num_classes": 0}, "num_classes: got 0, expected a whole number of at least 1"),
        ({"padding": "SAME"}, "padding: got 'SAME', expected one of 'same', 'symmetric'"),
        ({"bn_decay": 1}, "bn_decay: got 1, expected a number from 0 to below 1"),
        ({"name": "resnet"}, "name: got 'resnet', expected one of 'mobilenet_v3_large', "),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        build(**{"name": SMALL, **options})


# Last stage


def test_original_last_stage_of_large():
    spec = build(LARGE, last_stage="original")
    final = spec.blocks[-1]
    assert (final.kernel, final.expansion, final.out, final.stride) == (3, 960, 320, 1)
    assert (spec.last.out, spec.head, len(spec.blocks)) == (1280, None, 16)
    # At 7x7: filtering and projection of that block, the widening; the latter leaves 1x1.
    assert added(LARGE, last_stage="original")[1] == (
        49 * (9 * 960 + 960 * 320 + 320 * 1280) - 960 * 1280
    )  # 34.3M; the paper: 30M (section 5.1)


def test_efficient_last_stage_of_the_seed():
    spec = build(A1, last_stage="efficient")
    assert (spec.last.out, spec.head.out, len(spec.blocks)) == (960, 1280, 15)
    assert added(A1, last_stage="efficient")[1] == -added(LARGE, last_stage="original")[1]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("act", [None, "swish"])
def test_the_last_stages_invert_each_other(name, act):
    spec = build(name)
    if act and spec.head:  # a head whose nonlinearity is not the last 1x1's, SE on the latter
        spec = edits.last_se(edits.nonlinearity(spec, "relu"), True)
        spec = spec.replace(head=type(spec.head)(out=1000, act=act))
    if spec.head:
        there, back = "original", "efficient"
    else:
        there, back = "efficient", "original"
    assert edits.last_stage(spec, back) == edits.last_stage(spec, "paper") == spec
    assert edits.last_stage(spec, there) != spec
    assert edits.last_stage(edits.last_stage(spec, there), back) == spec


def test_last_stage_refuses_a_strided_last_block():
    v2 = build(V2)
    cut = v2.replace(blocks=v2.blocks[:14])
    with pytest.raises(ValueError, match="last block of mobilenet_v2 has stride 2"):
        edits.last_stage(cut, "efficient")


# Kernels, shortcut


def test_kernels():
    assert {b.kernel for b in build(LARGE, kernels="5x5").blocks} == {5}
    assert build(V2, kernels="3x3") == build(V2)
    fives = [b.expansion for b in build(LARGE).blocks if b.kernel == 5]
    params, madds = added(LARGE, kernels="3x3")
    assert params == -16 * sum(fives) == -16 * 2904
    pixels = [28 * 28, 28 * 28, 28 * 28, 49, 49, 49]
    assert madds == -16 * sum(c * p for c, p in zip(fives, pixels, strict=True))
    bare = build(LARGE, kernels="3x3", se="none", nonlinearity="relu", stem_act="relu")
    assert bare == build(f"{LARGE}_minimalistic").replace(name=LARGE)


def test_without_shortcuts_nothing_else_changes():
    for name in NETWORKS:
        assert added(name, shortcut=False) == (0, 0)
        spec = build(name, shortcut=False)
        assert not any(spec.has_shortcut(i) for i in range(len(spec.blocks)))


# Together


def test_edits_count_channels_at_width_1():
    """The width multiplier comes last, over whatever the edits made."""
    spec = build(LARGE, width=0.5, stem_filters=32, head_filters=1024, width_rule="torchvision")
    assert (spec.stem.out, spec.blocks[0].expansion, spec.head.out) == (16, 16, 512)
    halved = build(LARGE, width=0.5, last_stage="original")
    # 160 -> 80, its ratio 960/160 kept; 320 -> 160; the widest layer is not scaled below 1280.
    assert (halved.blocks[-1].expansion, halved.blocks[-1].out, halved.last.out) == (480, 160, 1280)
    assert acts(build(LARGE, width=0.5, nonlinearity="h_swish@112")) == acts(
        build(LARGE, nonlinearity="h_swish@112")
    )
    thin = build(SMALL, width=0.5, se="everywhere", kernels="7x7", shortcut=False)
    assert {(b.kernel, b.se, b.shortcut) for b in thin.blocks} == {(7, SESpec(), False)}


def test_plain_build_is_the_table():
    for name in NETWORKS:
        spec = build(name)
        assert spec == build(name, nonlinearity="paper", se="paper", last_stage="paper", width=1)
        assert spec.name == name
