"""init, shapes, check and apply: contracts of the functional core."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_net import Reference, random_variables
from small_net import NET, apply, random_images

from mbv3_jax.arch import ConvSpec, build
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute

VARIABLES = random_variables(functional.shapes(NET))
IMAGES = random_images(NET, batch=4)


def paths(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def to_numpy(tree):
    """Comparing jax arrays of a hundred shapes would compile a hundred programs."""
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope="module")
def fresh():
    return to_numpy(functional.init(build("mobilenet_v3_small"), jax.random.key(0)))


# Shapes and initial values


def test_paths_and_shapes():
    got = {path: x.shape for path, x in paths(functional.shapes(NET)["params"]).items()}
    bn = {"bn/scale", "bn/bias"}
    kernels = {
        "stem/conv/kernel": (3, 3, 3, 8),
        "block1/depthwise/conv/kernel": (3, 3, 1, 8),
        "block1/se/reduce/kernel": (1, 1, 8, 8),
        "block1/se/expand/kernel": (1, 1, 8, 8),
        "block1/project/conv/kernel": (1, 1, 8, 8),
        "block2/expand/conv/kernel": (1, 1, 8, 24),
        "block2/depthwise/conv/kernel": (5, 5, 1, 24),
        "block2/se/reduce/kernel": (1, 1, 24, 2),  # a quarter of the block's input
        "block2/se/expand/kernel": (1, 1, 2, 24),
        "block2/project/conv/kernel": (1, 1, 24, 16),
        "block3/expand/conv/kernel": (1, 1, 16, 32),
        "block3/depthwise/conv/kernel": (3, 3, 1, 32),
        "block3/project/conv/kernel": (1, 1, 32, 16),
        "last/conv/kernel": (1, 1, 16, 24),
        "last/se/reduce/kernel": (1, 1, 24, 8),
        "last/se/expand/kernel": (1, 1, 8, 24),
        "head/kernel": (1, 1, 24, 20),
        "logits/kernel": (1, 1, 20, 5),
    }
    expected = dict(kernels)
    for path, shape in kernels.items():
        layer = path.removesuffix("kernel")
        if layer.endswith("conv/"):
            expected |= {layer.removesuffix("conv/") + name: shape[-1:] for name in bn}
        else:
            expected[layer + "bias"] = shape[-1:]
    assert got == expected
    stats = {path: x.shape for path, x in paths(functional.shapes(NET)["batch_stats"]).items()}
    assert stats == {
        path.removesuffix("scale") + kind: shape
        for path, shape in expected.items()
        if path.endswith("bn/scale")
        for kind in ("mean", "var")
    }


def test_shapes_are_the_callers_own():
    functional.shapes(NET)["params"].clear()
    assert functional.shapes(NET)["params"]


def test_init_fits_and_is_float32(fresh):
    spec = build("mobilenet_v3_small")
    functional.check(spec, fresh)
    assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_init_statistics(fresh):
    """Each kernel's deviation and mean, within five standard errors of what they should be."""
    for path, x in (paths(fresh["params"]) | paths(fresh["batch_stats"])).items():
        kind = path.rsplit("/", 1)[1]
        if kind != "kernel":
            assert np.all(x == (1 if kind in ("scale", "var") else 0)), path
            continue
        if path.startswith(("head", "logits")):
            deviation = 0.01
        else:
            fan_out = x.shape[0] * x.shape[1] * (1 if "depthwise" in path else x.shape[3])
            deviation = math.sqrt(2 / fan_out)
        x = np.float64(x)
        assert abs(x.std() / deviation - 1) < 5 / math.sqrt(2 * x.size), path
        assert abs(x.mean()) < 5 * deviation / math.sqrt(x.size), path
        assert abs(x).max() > 1.5 * deviation, path  # normal, not uniform or constant


def test_init_by_key(fresh):
    spec = build("mobilenet_v3_small")
    same = to_numpy(functional.init(spec, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, fresh, same)
    other = to_numpy(functional.init(spec, jax.random.key(1)))
    for path, x in paths(fresh["params"]).items():
        if path.endswith("kernel"):
            assert np.mean(x == paths(other["params"])[path]) < 0.01, path
    # Kernels of one shape within one network are different draws, too.
    blocks = [fresh["params"][f"block{i}"]["project"]["conv"]["kernel"] for i in (10, 11)]
    assert np.mean(blocks[0] == blocks[1]) < 0.01


def test_check_lists_every_problem():
    variables = jax.tree.map(lambda x: x, VARIABLES)
    del variables["params"]["head"]["bias"]
    variables["params"]["logits"]["kernel"] = np.zeros((1, 1, 20, 1000))
    variables["batch_stats"]["block3"]["expand"]["bn"]["count"] = np.zeros(())
    with pytest.raises(ValueError) as error:
        functional.check(NET, variables)
    assert str(error.value).splitlines() == [
        "variables do not fit net:",
        "  batch_stats/block3/expand/bn/count: surplus, has ()",
        "  params/head/bias: missing, expected (20,)",
        "  params/logits/kernel: got (1, 1, 20, 1000), expected (1, 1, 20, 5)",
    ]
    functional.check(NET, VARIABLES)


# Values


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_equals_plain_numpy(train, padding):
    spec = NET.replace(padding=padding)
    logits, stats = apply(spec, VARIABLES, IMAGES, train=train)
    reference = Reference(spec, VARIABLES, IMAGES, train=train)
    assert (logits.shape, logits.dtype) == ((4, 5), "float32")
    np.testing.assert_allclose(logits, reference.logits, atol=2e-5, rtol=1e-4)
    for layer, expected in reference.batch_stats.items():
        for kind in ("mean", "var"):
            got = paths(stats)[f"{layer}/bn/{kind}"]
            np.testing.assert_allclose(got, expected[kind], rtol=1e-4, atol=1e-5)


def test_paddings_differ_only_where_a_strided_layer_sees_an_even_size():
    def logits(padding, size):
        images = random_images(NET, batch=2, size=size)
        return np.asarray(apply(NET.replace(padding=padding), VARIABLES, images)[0])

    # 33 -> 17 -> 9: odd at every stride. 34 -> 17: even at the stem.
    np.testing.assert_allclose(logits("same", 33), logits("symmetric", 33), rtol=1e-6)
    assert np.abs(logits("same", 34) - logits("symmetric", 34)).max() > 1e-2


def test_evaluation_is_deterministic_and_leaves_statistics_alone():
    spec = NET.replace(dropout=0.5, drop_path=0.5)
    before = jax.tree.map(np.copy, VARIABLES)
    plain, stats = apply(NET, VARIABLES, IMAGES)
    logits, _ = apply(spec, VARIABLES, IMAGES)
    keyed, _ = apply(spec, VARIABLES, IMAGES, key=jax.random.key(1))
    np.testing.assert_array_equal(logits, keyed)
    np.testing.assert_array_equal(logits, plain)
    jax.tree.map(np.testing.assert_array_equal, stats, VARIABLES["batch_stats"])
    # One image at a time gives the same: no statistics of the batch are involved.
    alone = np.concatenate([apply(spec, VARIABLES, IMAGES[i : i + 1])[0] for i in range(4)])
    np.testing.assert_allclose(alone, logits, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, VARIABLES)


def test_training_writes_to_none_of_its_arguments():
    """Not even where they are NumPy's and nothing is jitted, as with a checkpoint just read."""
    last = ConvSpec(kernel=1, out=8, act="relu")
    spec = NET.replace(blocks=NET.blocks[:1], last=last, head=None)  # few programs to compile
    variables = random_variables(functional.shapes(spec))
    before = jax.tree.map(np.copy, variables)
    _, stats = functional.apply(spec, variables, IMAGES, train=True)
    old = before["batch_stats"]["stem"]["bn"]["mean"]
    assert not np.array_equal(stats["stem"]["bn"]["mean"], old)
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_bn_decay_is_the_share_that_is_kept():
    """Zero images: the stem's batch mean and variance are 0; .99 keeps 99% of 100 and of 1."""
    variables = jax.tree.map(np.copy, VARIABLES)
    stem = variables["batch_stats"]["stem"]["bn"]
    stem["mean"][:], stem["var"][:] = 100, 1
    zeros = np.zeros_like(IMAGES)
    _, stats = apply(NET.replace(bn_decay=0.99), variables, zeros, train=True)
    np.testing.assert_allclose(stats["stem"]["bn"]["mean"], 99.0, rtol=1e-6)
    np.testing.assert_allclose(stats["stem"]["bn"]["var"], 0.99, rtol=1e-6)


def test_bn_groups_are_devices_with_their_own_statistics():
    together, stats = apply(NET, VARIABLES, IMAGES, train=True, compute=Compute(bn_groups=2))
    halves = [apply(NET, VARIABLES, part, train=True) for part in np.split(IMAGES, 2)]
    separate = np.concatenate([logits for logits, _ in halves])
    np.testing.assert_allclose(together, separate, rtol=1e-4, atol=1e-5)
    averaged = jax.tree.map(lambda a, b: (a + b) / 2, halves[0][1], halves[1][1])
    for path, x in paths(stats).items():
        np.testing.assert_allclose(x, paths(averaged)[path], rtol=1e-5, atol=1e-6)
    whole, _ = apply(NET, VARIABLES, IMAGES, train=True)
    assert np.abs(np.asarray(whole) - separate).max() > 1e-3
    with pytest.raises(ValueError, match=r"^bn_groups: got 2 for a batch of 3"):
        apply(NET, VARIABLES, IMAGES[:3], train=True, compute=Compute(bn_groups=2))


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_keeps_statistics_and_logits_in_float32(train):
    compute = Compute(dtype="bfloat16")
    logits, stats = apply(NET, VARIABLES, IMAGES, train=train, compute=compute)
    exact = Reference(NET, VARIABLES, IMAGES, train=train)
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    scale = np.abs(exact.logits).max()
    error = np.abs(logits - exact.logits).max() / scale
    assert 1e-5 < error < 0.05  # eight bits of mantissa, and really computed with them
    rounded = np.asarray(logits.astype(jnp.bfloat16).astype(jnp.float32))
    assert np.mean(rounded == logits) < 0.5  # not rounded at the end
    for layer, expected in exact.batch_stats.items():
        got = paths(stats)[f"{layer}/bn/mean"]
        np.testing.assert_allclose(got, expected["mean"], atol=0.01)


def test_gradients_of_bfloat16_are_float32():
    def loss(params):
        variables = {"params": params, "batch_stats": VARIABLES["batch_stats"]}
        how = Compute(dtype="bfloat16")
        return functional.apply(NET, variables, IMAGES, train=True, compute=how)[0].sum()

    gradients = jax.eval_shape(jax.grad(loss), VARIABLES["params"])
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


# Bad input


@pytest.mark.parametrize("shape", [(4, 32, 32, 1), (32, 32, 3), (4, 32, 32, 3, 1)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"^images: got shape .*, expected \[N, H, W, 3\]"):
        apply(NET, VARIABLES, np.zeros(shape, np.float32))


@pytest.mark.parametrize("rates", [{"dropout": 0.1}, {"drop_path": 0.1}])
def test_training_with_dropout_needs_a_key(rates):
    with pytest.raises(ValueError, match=r"^key: training with dropout or drop_path needs"):
        apply(NET.replace(**rates), VARIABLES, IMAGES, train=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "compute.dtype: got 'float16', expected one of 'float32', 'bfloat"),
        ({"depthwise": "fast"}, "compute.depthwise: got 'fast', expected one of 'auto', "),
    ],
)
def test_compute_names_the_field(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Compute(**options)
