import pytest

from mbv3_jax.sweep.combinators import (
    Trial,
    axis,
    chain,
    group_of,
    product,
    seeds,
    trial,
    zip_,
)


def as_pairs(trials):
    return [(t.name, dict(t.overrides)) for t in trials]


def test_product_varies_the_last_fastest():
    trials = product(axis("net.width", 0.5, 1.0), seeds(2))
    assert as_pairs(trials) == [
        ("width=0.5-seed0", {"net.width": 0.5, "seed": 0}),
        ("width=0.5-seed1", {"net.width": 0.5, "seed": 1}),
        ("width=1.0-seed0", {"net.width": 1.0, "seed": 0}),
        ("width=1.0-seed1", {"net.width": 1.0, "seed": 1}),
    ]


def test_zip_pairs():
    trials = zip_(axis("net.resolution", 128, 224), axis("batch_size", 512, 256))
    assert as_pairs(trials) == [
        ("resolution=128-batch_size=512", {"net.resolution": 128, "batch_size": 512}),
        ("resolution=224-batch_size=256", {"net.resolution": 224, "batch_size": 256}),
    ]
    with pytest.raises(ValueError, match="lists of 2, 3 trials"):
        zip_(seeds(2), axis("net.width", 1, 2, 3))


def test_they_nest():
    trials = product(chain(trial("a"), trial("b", {"net.se": "none"})), seeds([7, 9]))
    assert [t.name for t in trials] == ["a-seed7", "a-seed9", "b-seed7", "b-seed9"]
    assert [t.overrides["seed"] for t in trials] == [7, 9, 7, 9]
    assert chain() == () and product(seeds(2), ()) == ()


def test_a_field_is_set_once():
    with pytest.raises(ValueError, match="'seed0' and 'seed1' both set seed"):
        product(seeds(1), seeds([1]))


@pytest.mark.parametrize(
    ("name", "overrides", "group"),
    [
        ("relu-seed1", {"seed": 1}, "relu"),
        ("seed1", {"seed": 1}, "all"),
        ("seed1-relu", {"seed": 1}, "relu"),
        ("seed12-seed1", {"seed": 1}, "seed12"),
        ("relu-seed1", {}, "relu-seed1"),
    ],
)
def test_groups_are_names_without_the_seed(name, overrides, group):
    assert group_of(Trial(name, overrides)) == group
