import jax
import jax.numpy as jnp
import numpy as np
import pytest
from supernet_parts import extract

from mbv3_jax.nn import functional
from mbv3_jax.search.presets import preset, toy
from mbv3_jax.search.space import Space, Stage
from mbv3_jax.search.supernet import network


def _space() -> Space:
    """Every kind of choice, in few layers."""
    stages = (
        Stage(out=(8, 16), kernel=(3, 5), expansion=(1, 3), act=("relu", "h_swish")),
        Stage(out=(8, 24), depth=(0, 1, 2), expansion=(2.3, 4), se=(False, True),
              act=("relu", "h_swish"), kernel=(3, 5, 7),
              per_block=("kernel", "expansion", "se")),
        Stage(out=(16, 32), stride=2, depth=(1, 2), expansion=(1, 6), se=(True,), act=("h_swish",)),
    )  # fmt: skip
    return Space(name="all", base=toy().base, stages=stages, last_factor=6)


def _noisy(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.random(x.shape, np.float32), tree)


@pytest.fixture(scope="module")
def case():
    space = _space()
    spec = network.largest(space)
    params = _noisy(functional.init(spec, jax.random.key(0))["params"], 1)
    images = np.random.default_rng(2).standard_normal((8, 32, 32, 3)).astype(np.float32)
    run = jax.jit(lambda params, switches: network.apply(space, params, images, switches))
    return space, params, images, run


def _one(space, point):
    return jax.tree.map(lambda x: x[0], network.switches(space, [point]))


def test_a_masked_network_is_the_extracted_one(case):
    space, params, images, run = case
    own = jax.jit(lambda spec, v: functional.apply(spec, v, images, train=True), static_argnums=0)
    rng = np.random.default_rng(3)
    points = space.sample(rng, 7)
    ends = [
        space.canonical([0] * len(space.decisions)),
        tuple(len(d.choices) - 1 for d in space.decisions),
    ]
    for point in [*ends, *points]:
        masked = run(params, _one(space, point))
        spec = space.to_spec(point)
        variables = extract(space, params, point)
        functional.check(spec, variables)
        expected, _ = own(spec, variables)
        assert np.std(expected) > 1e-3
        np.testing.assert_allclose(masked, expected, rtol=1e-4, atol=1e-4, err_msg=str(point))
    assert run._cache_size() == 1  # one program for all


def test_only_the_weights_of_the_part_learn(case):
    space, params, _, run = case
    point = space.canonical([0] * len(space.decisions))
    switches = _one(space, point)
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(run(p, switches))))(params)
    own = extract(space, grads, point)["params"]
    part = sum(float(jnp.sum(jnp.abs(x))) for x in jax.tree.leaves(own))
    whole = sum(float(jnp.sum(jnp.abs(x))) for x in jax.tree.leaves(grads))
    assert part == pytest.approx(whole, rel=1e-5)
    assert part > 0


@pytest.mark.parametrize("name", ["mnasnet", "mobilenetv3_like", "proxylessnas", "small", "toy"])
def test_every_preset_has_a_largest_network_that_holds_all(name):
    space = preset(name)
    shapes = functional.shapes(network.largest(space))["params"]
    params = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    for point in space.sample(np.random.default_rng(0), 5):
        assert network.switches(space, [point])["last"].sum() == space.to_spec(point).last.out
        jax.eval_shape(lambda p, point=point: extract(space, p, point), params)


def test_spaces_that_cannot_share_weights_are_refused():
    space = _space()
    with pytest.raises(ValueError, match=r"drop_path: got 0\.1, expected 0"):
        network.largest(space.replace(drop_path=0.1))
