import pytest

from mbv3_jax.arch import cost
from mbv3_jax.arch.tables import mnasnet_a1, mobilenet_v3_large, mobilenet_v3_small
from mbv3_jax.search.netadapt.masks import DELTA, bottlenecks, proposals

LARGE = mobilenet_v3_large()


def test_bottlenecks_follow_the_shortcuts_of_table_1():
    assert bottlenecks(LARGE) == [
        (0, 1),
        (2, 3),
        (4, 5, 6),
        (7, 8, 9, 10),
        (11, 12),
        (13, 14, 15),
    ]


@pytest.mark.parametrize("make", [mobilenet_v3_large, mobilenet_v3_small, mnasnet_a1])
def test_every_proposal_saves_enough_and_keeps_the_shortcuts(make):
    spec = make()
    cut = DELTA * cost.madds(spec)
    found = proposals(spec, cost.madds, cut)
    assert len({p.change for p in found}) == len(found) > len(spec.blocks) / 2
    for p in found:
        assert p.saved == cost.madds(spec) - cost.madds(p.spec) >= cut
        assert bottlenecks(p.spec) == bottlenecks(spec)
        assert len(p.spec.blocks) == len(spec.blocks)


def test_the_least_narrowing_is_proposed():
    madds = cost.madds(LARGE)
    changes = {p.change: p for p in proposals(LARGE, cost.madds, 1)}
    assert "block1 expansion" not in " ".join(changes)  # it has no expansion layer
    assert changes["block3 expansion 72 -> 64"].spec.blocks[2].expansion == 64
    wide = changes["bottleneck of block4, block5, block6 40 -> 32"].spec
    assert [b.out for b in wide.blocks[3:6]] == [32, 32, 32]
    first = changes["bottleneck of stem, block1 16 -> 8"].spec
    assert (first.stem.out, first.blocks[0].expansion, first.blocks[0].out) == (8, 8, 8)
    more = {p.change for p in proposals(LARGE, cost.madds, 0.02 * madds)}
    assert not any(c.startswith("block3 expansion 72 -> 64") for c in more)


def test_no_narrowing_makes_a_shortcut():
    # Block 7 of Small at 40 channels would be as wide as its input.
    changes = [p.change for p in proposals(mobilenet_v3_small(), cost.madds, 1)]
    assert "bottleneck of block7, block8 48 -> 32" in changes


def test_a_step_that_cuts_nothing_is_refused():
    with pytest.raises(ValueError, match="cut: got 0, expected a number above zero"):
        proposals(LARGE, cost.madds, 0)
