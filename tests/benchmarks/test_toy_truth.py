import jax
import numpy as np
import pytest

from benchmarks import toy_truth
from benchmarks.toy_truth import SPACE
from mbv3_jax.nn import functional


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_a_part_of_the_largest_network_computes_the_smaller_one(train):
    # One block a stage, small kernels and expansions, no squeeze-and-excite.
    point = (0,) * len(SPACE.decisions)
    own = SPACE.to_spec(point)
    large = SPACE.to_spec(toy_truth.largest(SPACE, point))
    assert (len(own.blocks), len(large.blocks)) == (2, 4)
    variables = toy_truth.fresh(own, (1, 2))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: (x + 0.1 * rng.random(x.shape)).astype(np.float32), variables
    )
    placed = toy_truth.place(SPACE, point, variables)
    functional.check(large, placed)
    images = rng.standard_normal((4, 32, 32, 3)).astype(np.float32)
    run = jax.jit(lambda spec, v: functional.apply(spec, v, images, train=train), static_argnums=0)
    (small, _), (part, stats) = run(own, variables), run(large, placed)
    np.testing.assert_allclose(part, small, rtol=1e-4, atol=1e-5)
    assert np.std(small) > 0.01
    idle = stats["block2"]["project"]["bn"]["mean"]
    assert not np.any(idle)


def test_the_mask_has_an_entry_for_every_weight():
    for point in list(SPACE.points())[::17]:
        shapes = functional.shapes(SPACE.to_spec(point))
        ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
        mask = toy_truth.place(SPACE, point, ones, gate=0.0)
        assert sum(map(np.sum, jax.tree.leaves(mask))) == sum(
            x.size for x in jax.tree.leaves(shapes)
        )
        if point == toy_truth.largest(SPACE, point):
            assert min(map(np.min, jax.tree.leaves(mask))) == 1


def test_fresh_weights_are_drawn_as_by_the_package():
    spec = SPACE.to_spec((1,) * len(SPACE.decisions))
    ours, theirs = toy_truth.fresh(spec, (0,)), functional.init(spec, jax.random.key(0))
    for path, theirs_leaf in jax.tree_util.tree_leaves_with_path(theirs):
        node = ours
        for p in path:
            node = node[p.key]
        if node.size > 500:
            assert np.std(node) == pytest.approx(float(np.std(theirs_leaf)), rel=0.15), path
