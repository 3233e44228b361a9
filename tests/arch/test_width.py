"""Width multipliers against what the code bases that the rules are named after build."""

import pytest

from mbv3_jax.arch import build, cost
from mbv3_jax.arch.spec import make_divisible
from mbv3_jax.arch.width import WIDTH_RULES, scale_width

LARGE, SMALL, V2 = "mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2"

# Trainable parameters at 1000 classes, counted in keras.applications 3.15, torchvision 0.28 and
# timm 1.0.31.
PARAMS = {
    "keras": {
        LARGE: {
            0.35: 2_132_216,
            0.5: 2_689_904,
            0.75: 3_993_528,
            1.0: 5_483_032,
            1.25: 8_255_784,
        },
        SMALL: {
            0.35: 1_350_344,
            0.5: 1_593_224,
            0.75: 2_041_872,
            1.0: 2_542_856,
            1.25: 3_645_312,
        },
        "mobilenet_v3_large_minimalistic": {0.75: 3_050_312},
        "mobilenet_v3_small_minimalistic": {0.75: 1_732_512},
        V2: {0.35: 1_677_128, 0.5: 1_968_680, 0.75: 2_636_424, 1.25: 5_050_376},
    },
    "torchvision": {
        LARGE: {0.35: 997_064, 0.5: 1_734_576, 0.75: 3_377_576, 1.25: 8_164_744, 1.4: 9_989_328},
        SMALL: {0.35: 558_744, 0.5: 917_264, 0.75: 1_653_920, 1.25: 3_644_912, 1.4: 4_373_824},
        V2: {0.35: 1_677_128, 0.5: 1_968_680, 0.75: 2_636_424, 1.25: 5_050_376, 1.4: 6_108_776},
    },
    "timm": {
        LARGE: {0.75: 3_993_528},
        SMALL: {0.5: 1_593_224, 0.75: 2_041_872},
        V2: {0.35: 1_677_128, 0.5: 1_968_680, 0.75: 2_636_424, 1.4: 6_108_776},
        "mnasnet_a1": {0.5: 2_082_006, 0.75: 2_912_278, 1.4: 6_105_992},
    },
}


@pytest.mark.parametrize(
    ("rule", "name", "width", "params"),
    [
        (rule, name, width, params)
        for rule, networks in PARAMS.items()
        for name, widths in networks.items()
        for width, params in widths.items()
    ],
)
def test_params(rule, name, width, params):
    assert cost.params(build(name, width=width, width_rule=rule)) == params


@pytest.mark.parametrize(
    ("value", "divisor", "expected"),
    [
        (16, 8, 16),
        (8.4, 8, 8),  # loses under a tenth
        (11.2, 8, 16),  # 8 would lose more
        (12, 8, 16),  # half rounds up
        (18, 8, 24),  # 16 would lose more than a tenth
        (20, 8, 24),
        (67.2, 8, 64),
        (5.6, 8, 8),  # never below one divisor
        (6, 1, 6),
        (5.5, 1, 6),
        (0.2, 1, 1),
        (19, 4, 20),
    ],
)
def test_make_divisible(value, divisor, expected):
    assert make_divisible(value, divisor) == expected
    assert make_divisible(value, divisor) >= 0.9 * value


def widths(spec):
    blocks = [(b.expansion, b.out) for b in spec.blocks]
    return spec.stem.out, blocks, spec.last.out, spec.head and spec.head.out


def test_rules_written_out():
    """Small at 0.5: where each rule differs."""

    def small(rule, width=0.5):
        return widths(build(SMALL, width=width, width_rule=rule))

    # Expansions as ratios of the rounded input: 72/16 * 8 = 36 -> 40; 88/24 * 16 = 58.7 -> 56.
    outs = [8, 16, 16, 24, 24, 24, 24, 24, 48, 48, 48]
    ratio = [8, 40, 56, 64, 144, 144, 72, 72, 144, 288, 288]
    assert small("slim") == (8, list(zip(ratio, outs, strict=True)), 288, 1024)
    # alpha * expansion: 36 -> 40, 44 -> 48, 48, 120, ...
    absolute = [8, 40, 48, 48, 120, 120, 64, 72, 144, 288, 288]
    assert small("torchvision") == (8, list(zip(absolute, outs, strict=True)), 288, 512)
    # Stem 16: block 1 keeps no expansion, block 2 reads 8.
    fixed = [16, *ratio[1:]]
    assert small("keras") == small("timm") == (16, list(zip(fixed, outs, strict=True)), 288, 1024)
    assert small("timm", 0.75)[0] == small("slim", 0.75)[0] == 16  # 12 -> 16 for all
    assert small("keras", 1.25)[0] == 16 and small("timm", 1.25)[0] == 24
    heads = {rule: small(rule, 1.25)[3] for rule in WIDTH_RULES}
    assert heads == {"slim": 1280, "keras": 1280, "torchvision": 1280, "timm": 1024}


def test_networks_without_a_head_scale_alike_under_every_rule():
    for name in (V2, "mnasnet_a1"):
        for width in (0.35, 1.4):
            assert len({build(name, width=width, width_rule=rule) for rule in WIDTH_RULES}) == 1
    assert [build(V2, width=w).last.out for w in (0.35, 1.0, 1.4)] == [1280, 1280, 1792]


@pytest.mark.parametrize("rule", WIDTH_RULES)
@pytest.mark.parametrize("name", [LARGE, SMALL, V2, "mnasnet_a1"])
@pytest.mark.parametrize("width", [0.25, 0.35, 0.5, 0.75, 1.25, 1.4, 2])
def test_every_width_is_a_multiple_of_8_and_keeps_the_structure(rule, name, width):
    before, after = build(name), build(name, width=width, width_rule=rule)
    stem, blocks, last, head = widths(after)
    assert all(c % 8 == 0 for c in [stem, *sum(blocks, ()), last, head or 8])
    for i, (old, new) in enumerate(zip(before.blocks, after.blocks, strict=True)):
        assert (old.kernel, old.act, old.stride, old.se) == (
            new.kernel,
            new.act,
            new.stride,
            new.se,
        )
        assert 0.9 * width * old.out <= new.out
        assert before.has_expand(i) or not after.has_expand(i)
        assert after.has_shortcut(i) or not before.has_shortcut(i) or i == 0
    assert scale_width(before, 1, rule) == before


def test_a_width_that_would_round_to_twice_itself_is_refused():
    with pytest.raises(ValueError, match=r"^width: 0\.2 gives the narrowest layer of mobilenet_v3"):
        build(SMALL, width=0.2)
    with pytest.raises(ValueError, match=r"3\.2 channels.*smallest valid width is 0\.25$"):
        build(SMALL, width=0.2)
    assert build(SMALL, width=0.25).stem.out == 8


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf"), "0.5", True, None])
def test_widths_that_are_no_positive_number(width):
    with pytest.raises(ValueError, match=f"^width: got {width!r}, expected a positive number$"):
        build(SMALL, width=width)


def test_unknown_rule():
    listed = "'slim', 'keras', 'torchvision', 'timm'"
    with pytest.raises(ValueError, match=f"^width_rule: got 'tf', expected one of {listed}$"):
        build(SMALL, width_rule="tf")
