"""Squeeze-and-excite as an ablation, and the printed variants of Small."""

import re

import pytest

from mbv3_jax.arch import SESpec, build, cost, edits

LARGE, SMALL, V2, A1 = "mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2", "mnasnet_a1"
NETWORKS = (LARGE, SMALL, f"{LARGE}_minimalistic", f"{SMALL}_minimalistic", V2, A1)


def added(name, **options):
    """Parameters and multiply-adds on top of the plain network's."""
    plain, edited = build(name), build(name, **options)
    return cost.params(edited) - cost.params(plain), cost.madds(edited) - cost.madds(plain)


def places(spec):
    return [i for i, b in enumerate(spec.blocks, start=1) if b.se]


@pytest.mark.parametrize("name", NETWORKS)
def test_se_none_and_everywhere(name):
    without, everywhere = build(name, se="none"), build(name, se="everywhere")
    assert places(without) == [] and len(places(everywhere)) == len(everywhere.blocks)
    assert without == build(name) or name in (LARGE, SMALL, A1)
    assert cost.params(without) <= cost.params(build(name)) < cost.params(everywhere)
    assert edits.squeeze_excite(everywhere, "none") == without


def test_se_cost_written_out():
    """Two 1x1 with bias on pooled features for each block that has SE."""

    def se_params(widths):
        return sum(2 * w * s + w + s for w, s in widths)

    large = [(72, 24), (120, 32), (120, 32), (480, 120), (672, 168), (672, 168)] + [(960, 240)] * 2
    biases = sum(w + s for w, s in large)
    assert added(LARGE, se="none") == (-se_params(large), -(se_params(large) - biases))
    rest = [(16, 8), (64, 16), (72, 24), (240, 64), (200, 48), (184, 48), (184, 48)]
    assert added(LARGE, se="everywhere")[0] == se_params(rest)


def test_se_everywhere_follows_the_networks_own_kind():
    assert {b.se for b in build(A1, se="everywhere").blocks} == {
        SESpec(of="input", divisor=1, gate="sigmoid")
    }
    assert {b.se for b in build(V2, se="everywhere").blocks} == {SESpec()}


def test_se_ratio_source_and_gate():
    def squeezed(**options):
        spec = build(SMALL, **options)
        se = spec.blocks[5].se  # expansion 240, input 40
        return se.channels(expansion=240, block_input=40), se.gate

    assert squeezed() == (64, "hard_sigmoid")
    assert squeezed(se_ratio=0.5) == (120, "hard_sigmoid")
    assert squeezed(se_of="input") == (16, "hard_sigmoid")  # 10 -> 8 would lose a fifth
    assert squeezed(se_of="input", se_ratio=1.0) == (40, "hard_sigmoid")
    assert squeezed(se_gate="sigmoid") == (64, "sigmoid")
    assert added(SMALL, se_gate="sigmoid") == (0, 0)
    assert added(SMALL, se_of="input")[0] < 0 < added(SMALL, se_ratio=0.5)[0]
    assert places(build(SMALL, se_ratio=0.5)) == places(build(SMALL))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (SMALL, {"se": "all"}, "se: got 'all', expected one of 'paper', 'none', 'everywhere'"),
        (SMALL, {"se_ratio": 5.0}, "se_ratio: got 5.0, expected above 0 and at most 1"),
        (SMALL, {"se_of": "x"}, "se_of: got 'x', expected one of 'expansion', 'input'"),
        (SMALL, {"se_gate": "tanh"}, "se_gate: got 'tanh', expected one of 'hard_sigmoid', 'sigm"),
        (V2, {"se_gate": "tanh"}, "se_gate: got 'tanh', expected one of"),
        (
            SMALL,
            {"se": "none", "se_ratio": 0.5, "se_gate": "sigmoid"},
            "se: 'none' leaves no use for se_ratio, se_gate",
        ),
        (
            V2,
            {"se_ratio": 0.5},
            "se: mobilenet_v2 has no squeeze-and-excite for se_ratio to change; se='everywhere' ad",
        ),
        (SMALL, {"last_se": 1}, "last_se: got 1, expected True or False"),
    ],
)
def test_se_options_without_meaning(name, options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        build(name, **options)


def test_printed_variants_of_small():
    """SE on the last 1x1 (576 -> 144 -> 576) as table 2 ticks it; a head of 1280."""
    assert build(SMALL, last_se=True).last.se == SESpec()
    both = 2 * 576 * 144
    assert added(SMALL, last_se=True) == (both + 576 + 144, both)
    assert added(SMALL, head_filters=1280) == (256 * (576 + 1 + 1000), 256 * (576 + 1000))
    earlier = cost.params(build(SMALL, head_filters=1280))
    assert round(earlier / 1e6, 2) == 2.95  # 2.9M in the earlier print
    assert build(V2, head_filters=1024).last.out == 1024
