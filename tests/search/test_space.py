import dataclasses
import itertools

import numpy as np
import pytest

from mbv3_jax.arch import build, cost
from mbv3_jax.arch.spec import SESpec
from mbv3_jax.search.presets import PRESETS, preset
from mbv3_jax.search.space import Space, Stage, combinations, network_count

TOY = preset("toy")


def with_stages(*stages, **fields) -> Space:
    return Space(name="mine", base=TOY.base, stages=stages, **fields)


@pytest.mark.parametrize(
    ("network", "space"),
    [
        ("mobilenet_v3_large", "mobilenetv3_like"),
        ("mobilenet_v3_small", "small"),
        ("mnasnet_a1", "mnasnet"),
    ],
)
def test_the_published_networks_are_points(network, space):
    spec, space = build(network), preset(space)
    assert space.to_spec(space.encode(spec), name=network) == spec
    other = spec.replace(resolution=160, num_classes=10, dropout=0.0)
    own = space.replace(resolution=160, num_classes=10, dropout=0.0)
    assert own.to_spec(own.encode(other), name=network) == other


@pytest.mark.parametrize("name", PRESETS)
def test_samples_come_back_from_their_networks(name):
    space, rng = preset(name), np.random.default_rng(0)
    points = space.sample(rng, 20)
    assert len(set(points)) > 10
    for point in points:
        spec = space.to_spec(point)
        assert space.to_spec(space.encode(spec)) == spec
        assert space.canonical(point) == point
        mutant = space.mutate(point, rng)
        assert mutant != point and space.canonical(mutant) == mutant
        slots = space.slots(point)
        assert len(slots) == len(spec.blocks) and list(slots) == sorted(set(slots))
    assert space.sample(np.random.default_rng(0), 20) == points


def test_what_is_no_point_is_refused_with_where():
    large, space = build("mobilenet_v3_large"), preset("mobilenetv3_like")
    with pytest.raises(ValueError, match=r"not in the space mobilenetv3_like: at block 4"):
        blocks = list(large.blocks)
        blocks[3] = dataclasses.replace(blocks[3], kernel=9)
        space.encode(large.replace(blocks=tuple(blocks)))
    with pytest.raises(ValueError, match="resolution: got 96, expected 224"):
        space.encode(large.replace(resolution=96))
    with pytest.raises(ValueError, match="at block 4"):  # its squeeze-and-excite is another
        space.encode(build("mobilenet_v3_large", se_of="input"))
    with pytest.raises(ValueError, match=r"stage1/width: got 2, expected 0 to 1, for \(8, 24\)"):
        TOY.to_spec((0, 2, 0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="got 2 indices, expected 7"):
        TOY.to_spec((0, 0))
    with pytest.raises(ValueError, match="'mnasnet', 'mobilenetv3_like'"):
        preset("huge")


@pytest.mark.parametrize(
    "fields", [{"out": ()}, {"depth": (0, 1), "stride": 2}, {"act": ("tanh",)}, {"kernel": (3, 3)}]
)
def test_a_stage_that_cannot_be_is_refused(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))}|^depth"):
        Stage(**{"out": (8,), **fields})


SMALL_SPACES = {
    "depths": with_stages(
        Stage(out=(8,), depth=(1, 2, 3), kernel=(3, 5), expansion=(2, 3), per_block=("kernel",))
    ),
    # 16 channels times 2 and 2.3 are 32 and 40; 8 times them are 16 both.
    "rounding": with_stages(
        Stage(out=(8, 16), depth=(1, 2), expansion=(1, 2, 2.3), per_block=("expansion",)),
        Stage(out=(16,), expansion=(2, 2.3), se=(False, True)),
    ),
    # The same blocks can be the end of one stage or the beginning of the next.
    "ambiguous": with_stages(
        Stage(out=(8, 16), depth=(1, 2), kernel=(3, 5)),
        Stage(out=(8, 16), depth=(0, 1, 2), kernel=(3, 5), per_block=("kernel",)),
    ),
    "optional": with_stages(
        Stage(out=(8,), depth=(0, 1), kernel=(3, 5)),
        Stage(out=(8, 16), depth=(1, 2)),
        Stage(out=(8, 16), depth=(0, 2)),
    ),
    "toy": TOY,
}


@pytest.mark.parametrize("name", SMALL_SPACES)
def test_sizes_are_those_of_enumeration(name):
    space = SMALL_SPACES[name]
    every = itertools.product(*(range(len(d.choices)) for d in space.decisions))
    seen = {space.to_spec(point).blocks for point in every}
    assert network_count(space) == len(seen)
    assert combinations(space) >= len(seen)
    points = list(space.points())
    assert len(points) == len(seen) == len({space.to_spec(p).blocks for p in points})
    with pytest.raises(ValueError, match="at least one must have blocks"):
        with_stages(Stage(out=(8,), depth=(0, 1)))


def test_sizes_by_hand():
    assert network_count(TOY) == combinations(TOY) == 128
    # Depths 1 to 3 of blocks with 2 kernels each, an expansion for all: 2 * (2 + 4 + 8).
    assert network_count(SMALL_SPACES["depths"]) == 28
    assert combinations(SMALL_SPACES["depths"]) == 3 * 2 * 2**3
    # ProxylessNAS: 6 blocks a place; four stages of 1 to 4 blocks, and one of 1.
    assert network_count(preset("proxylessnas")) == (6 + 6**2 + 6**3 + 6**4) ** 5 * 6


def test_one_hot_has_a_one_for_each_active_decision():
    space = SMALL_SPACES["depths"]
    points = list(space.points())
    encoded = space.one_hot(points)
    assert encoded.shape == (28, 3 + 2 + 2 * 3)
    assert encoded.sum(1).tolist() == [sum(space.active(p)) for p in points]
    assert len({tuple(row) for row in encoded}) == 28


def test_squeeze_and_excite_and_last_follow_the_space():
    se = SESpec(of="input", divisor=1)
    space = with_stages(Stage(out=(16, 24), se=(True,)), squeeze_excite=se, last_factor=6)
    spec = space.to_spec((1,))
    assert spec.blocks[0].se == se and spec.last.out == 144
    assert space.encode(spec) == (1,)


@pytest.mark.parametrize("name", ["accel_nasbench", "mobilenetv3_like", "mnasnet", "small", "toy"])
def test_counts_are_those_of_the_networks(name):
    """Widths, depths of 0 and last layers that depend on the space, counted stage by stage."""
    space = preset(name)
    points = space.sample(np.random.default_rng(0), 40)
    specs = [space.to_spec(p) for p in points]
    expected = [[cost.madds(s), cost.params(s)] for s in specs]
    np.testing.assert_array_equal(space.counts(points), expected)
    np.testing.assert_array_equal(space.counts(points[:2]), expected[:2])  # by what is known now
    assert space.counts([]).shape == (0, 2)


def test_counts_know_a_stage_that_is_left_out():
    space = Space(
        name="own", base=preset("toy").base,
        stages=(Stage(out=(8, 16)), Stage(out=(16, 24), depth=(0, 1)), Stage(out=(32,))),
    )  # fmt: skip
    points = list(space.points())
    expected = [cost.madds(space.to_spec(p)) for p in points]
    np.testing.assert_array_equal(space.counts(points)[:, 0], expected)
