import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbv3_jax.train import schedules
from mbv3_jax.train.optimizers import OPTIMIZERS, make_optimizer, parameter_paths, select

LEAVES = {
    "stem/conv/kernel": True,
    "stem/bn/scale": False,
    "stem/bn/bias": False,
    "block1/expand/conv/kernel": True,
    "block1/expand/bn/scale": False,
    "block1/expand/bn/bias": False,
    "block1/depthwise/conv/kernel": True,
    "block1/depthwise/bn/scale": False,
    "block1/depthwise/bn/bias": False,
    "block1/se/reduce/kernel": True,
    "block1/se/reduce/bias": False,
    "block1/se/expand/kernel": True,
    "block1/se/expand/bias": False,
    "block1/project/conv/kernel": True,
    "block1/project/bn/scale": False,
    "block1/project/bn/bias": False,
    "last/conv/kernel": True,
    "last/bn/scale": False,
    "last/bn/bias": False,
    "head/kernel": True,
    "head/bias": False,
    "logits/kernel": True,
    "logits/bias": False,
}


def nest(leaves):
    tree = {}
    for path, leaf in leaves.items():
        *rooms, name = path.split("/")
        room = tree
        for key in rooms:
            room = room.setdefault(key, {})
        room[name] = leaf
    return tree


def constant(lr):
    return schedules.make_schedule("constant", base_lr=lr, total_steps=10, steps_per_epoch=1)


def run(transformation, params, gradients):
    """The parameters after each gradient, as NumPy."""
    update = jax.jit(transformation.update)
    state, course = transformation.init(params), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        course.append(jax.tree.map(np.asarray, params))
    return course


def one_step(name, params, gradient, lr=0.1, **settings):
    return run(make_optimizer(name, constant(lr), **settings), params, [gradient])[0]


def test_rmsprop_tf_numbers():
    # w = 1; g = 2 at lr 0.1, then g = -1 at lr 0.05; rho = momentum = 0.9, eps negligible:
    # ms 1.3, mom 0.2/sqrt(1.3) = 0.17541160; ms 1.27, mom 0.9*mom - 0.05/sqrt(1.27) = 0.11350262
    rmsprop = make_optimizer("rmsprop_tf", lambda t: jnp.array([0.1, 0.05])[t], eps=1e-10)
    course = run(
        rmsprop, {"kernel": jnp.ones(1)}, [{"kernel": jnp.array([g])} for g in (2.0, -1.0)]
    )
    np.testing.assert_allclose(course[0]["kernel"], 0.82458840, rtol=1e-6)
    np.testing.assert_allclose(course[1]["kernel"], 0.71108578, rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_rmsprop_tf_trajectory(momentum):
    rho, eps, weight_decay = 0.8, 0.05, 0.3  # large, so that a misplaced one shows
    rates = [0.2, 0.2, 0.1, 0.1, 0.02, 0.02]
    rng = np.random.default_rng(0)
    w = {"kernel": rng.normal(size=[1, 1, 3, 2]), "bias": rng.normal(size=2)}
    gradients = [{k: rng.normal(size=v.shape) for k, v in w.items()} for _ in rates]
    rmsprop = make_optimizer(
        "rmsprop_tf",
        lambda t: jnp.asarray(rates)[t],
        weight_decay=weight_decay,
        rho=rho,
        momentum=momentum,
        eps=eps,
    )
    course = run(rmsprop, *jax.tree.map(jnp.float32, (w, gradients)))
    ms = {k: np.ones_like(v) for k, v in w.items()}
    mom = {k: np.zeros_like(v) for k, v in w.items()}
    for lr, gradient, got in zip(rates, gradients, course, strict=True):
        for k in w:
            g = gradient[k] + (weight_decay * w[k] if k == "kernel" else 0)
            ms[k] = rho * ms[k] + (1 - rho) * g**2
            mom[k] = momentum * mom[k] + lr * g / np.sqrt(ms[k] + eps)
            w[k] = w[k] - mom[k]
            np.testing.assert_allclose(got[k], w[k], rtol=1e-5, atol=1e-6)


def test_rmsprop_tf_rests_without_gradients_and_survives_their_return():
    rmsprop = make_optimizer("rmsprop_tf", constant(0.1), rho=0.0, eps=0.01, momentum=0.0)
    gradients = [{"kernel": jnp.array([g])} for g in (0.0, 0.0, 1.0)]
    course = [p["kernel"][0] for p in run(rmsprop, {"kernel": jnp.ones(1)}, gradients)]
    np.testing.assert_allclose(course, [1, 1, 1 - 0.1 / np.sqrt(1.01)], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_trajectory(nesterov):
    momentum, weight_decay, w, trace = 0.9, 0.1, 2.0, 0.0
    rates, gradients = [0.1, 0.1, 0.01], [1.0, -0.5, 0.25]
    sgd = make_optimizer(
        "sgd",
        lambda t: jnp.asarray(rates)[t],
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
    )
    course = run(sgd, {"kernel": jnp.array(w)}, [{"kernel": jnp.array(g)} for g in gradients])
    for lr, gradient, got in zip(rates, gradients, course, strict=True):
        g = gradient + weight_decay * w
        trace = momentum * trace + g
        w -= lr * (g + momentum * trace if nesterov else trace)
        np.testing.assert_allclose(got["kernel"], w, rtol=1e-5)


@pytest.mark.parametrize("name", ["rmsprop_tf", "sgd"])
def test_coupled_decay_is_the_gradient_of_the_l2_loss(name):
    params = {"kernel": jnp.array([3.0, -1.0]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([0.5, 0.5]), "bias": jnp.array([0.1])}
    penalty = jax.grad(lambda p: 0.4 / 2 * jnp.sum(p["kernel"] ** 2))(params)
    by_hand = one_step(name, params, jax.tree.map(jnp.add, gradient, penalty))
    got = one_step(name, params, gradient, weight_decay=0.4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, by_hand)
    plain = one_step(name, params, gradient)
    assert np.abs(got["kernel"] - plain["kernel"]).min() > 1e-3
    np.testing.assert_array_equal(got["bias"], plain["bias"])


def test_decoupled_decay_is_outside_adams_moments_and_follows_the_learning_rate():
    params = {"kernel": jnp.array([3.0, -1.0]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([0.5, 0.5]), "bias": jnp.array([0.0])}
    got = one_step("adamw", params, gradient, weight_decay=0.4)
    # Adam's first step is lr * sign(g); the decay adds lr * 0.4 * w; the bias is left alone.
    expected = np.array([3.0, -1.0]) - 0.1 - 0.1 * 0.4 * np.array([3.0, -1.0])
    np.testing.assert_allclose(got["kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(got["bias"], [2.0])
    resting = one_step("adamw", params, gradient, lr=0.0, weight_decay=0.4)
    np.testing.assert_array_equal(resting["kernel"], params["kernel"])


def test_adam_with_coupled_decay_is_pytorchs():
    torch = pytest.importorskip("torch")
    options = {"eps": 0.01, "weight_decay": 0.2}
    w = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    theirs = torch.optim.Adam([w], lr=0.1, betas=(0.8, 0.9), **options)
    gradients = [[1.0, -0.5], [-0.5, 2.0], [0.25, 0.0]]
    ours = make_optimizer("adam", constant(0.1), b1=0.8, b2=0.9, **options)
    course = run(
        ours, {"kernel": jnp.array([2.0, -1.0])}, [{"kernel": jnp.array(g)} for g in gradients]
    )
    for gradient, got in zip(gradients, course, strict=True):
        w.grad = torch.tensor(gradient)
        theirs.step()
        np.testing.assert_allclose(got["kernel"], w.detach().numpy(), rtol=1e-5)


def test_adamw_trajectory():
    b1, b2, eps, weight_decay, w, m, v = 0.8, 0.9, 0.1, 0.2, 2.0, 0.0, 0.0
    gradients = [1.0, -0.5, 0.25, 4.0]
    adamw = make_optimizer("adamw", constant(0.1), weight_decay=weight_decay, b1=b1, b2=b2, eps=eps)
    course = run(adamw, {"kernel": jnp.array(w)}, [{"kernel": jnp.array(g)} for g in gradients])
    for t, (g, got) in enumerate(zip(gradients, course, strict=True), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        direction = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        w -= 0.1 * (direction + weight_decay * w)
        np.testing.assert_allclose(got["kernel"], w, rtol=1e-5)


def test_lamb_scales_by_the_trust_ratio():
    params = {"kernel": jnp.array([3.0, -4.0]), "bias": jnp.array([3.0, -4.0])}
    gradient = {"kernel": jnp.array([0.5, 0.01]), "bias": jnp.array([0.5, 0.01])}
    got = one_step("lamb", params, gradient, weight_decay=0.1, eps=1e-12)
    w = np.array([3.0, -4.0])
    direction = np.array([1.0, 1.0]) + 0.1 * w  # Adam's first step is the sign
    ratio = 5.0 / np.linalg.norm(direction)
    np.testing.assert_allclose(got["kernel"], w - 0.1 * ratio * direction, rtol=1e-5)
    np.testing.assert_allclose(got["bias"], w - 0.1, rtol=1e-5)
    adapted = one_step("lamb", params, gradient, weight_decay=0.1, eps=1e-12, trust_rule="all")
    np.testing.assert_allclose(adapted["bias"], w - 0.1 * 5 / np.sqrt(2), rtol=1e-5)


def test_lamb_takes_plain_steps_where_a_norm_is_zero():
    params = {"kernel": jnp.zeros(2), "logits": {"kernel": jnp.ones(2)}}
    gradient = {"kernel": jnp.array([1.0, -1.0]), "logits": {"kernel": jnp.zeros(2)}}
    got = one_step("lamb", params, gradient)
    np.testing.assert_allclose(got["kernel"], [-0.1, 0.1], rtol=1e-5)
    np.testing.assert_array_equal(got["logits"]["kernel"], [1, 1])


def test_clipping_is_by_global_norm_and_before_the_decay():
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([3.0]), "bias": jnp.array([-4.0])}  # global norm 5
    settings = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.25}
    got = one_step("sgd", params, gradient, clip_norm=0.5, **settings)
    np.testing.assert_allclose(got["kernel"], [2 - 0.3 - 0.5], rtol=1e-6)
    np.testing.assert_allclose(got["bias"], [2 + 0.4], rtol=1e-6)
    got = one_step("sgd", params, gradient, clip_norm=5.5, **settings)
    np.testing.assert_allclose(got["kernel"], [2 - 3 - 0.5], rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, gradient)
    np.testing.assert_array_equal(
        one_step("sgd", params, zero, clip_norm=1.0, **settings)["bias"], [2]
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_nan_gradient_is_not_hidden(name):
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(1)}
    gradient = {"kernel": jnp.array([1.0, np.nan]), "bias": jnp.ones(1)}
    got = one_step(name, params, gradient, weight_decay=0.1)
    assert np.isnan(got["kernel"][1])
    assert np.isfinite(got["bias"]).all()
    clipped = one_step(name, params, gradient, clip_norm=1.0)
    assert np.isnan(clipped["bias"]).all()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("kernels", LEAVES),
        ("kernels_but_depthwise", {p: d and "depthwise" not in p for p, d in LEAVES.items()}),
        ("all", dict.fromkeys(LEAVES, True)),
        ("none", dict.fromkeys(LEAVES, False)),
        (
            [(r"(head|logits)/.*", True), [r"(?!head|logits).*", False]],
            {p: p.startswith(("head", "logits")) for p in LEAVES},
        ),
    ],
)
def test_rules_on_the_paths_of_the_networks(rule, expected):
    assert select(nest(dict.fromkeys(LEAVES, 0.0)), rule) == nest(expected)


def test_the_rule_decides_what_decays():
    params = nest({path: jnp.ones(1) for path in LEAVES})
    gradient = jax.tree.map(jnp.zeros_like, params)
    settings = {"weight_decay": 0.5, "momentum": 0.0, "lr": 1.0}
    got = one_step("sgd", params, gradient, decay_rule="kernels_but_depthwise", **settings)
    assert got["block1"]["depthwise"]["conv"]["kernel"] == 1
    assert got["block1"]["se"]["expand"]["kernel"] == 0.5
    assert got["block1"]["se"]["expand"]["bias"] == 1
    got = one_step("sgd", params, gradient, **settings)  # the default
    assert jax.tree.map(lambda x: bool(x == 0.5), got) == nest(LEAVES)


def test_paths_are_in_the_order_of_the_leaves():
    tree = nest({path: path for path in LEAVES})
    assert parameter_paths(tree) == jax.tree.leaves(tree)


def test_every_parameter_is_matched_by_exactly_one_expression():
    params = nest({"a/kernel": jnp.ones(1), "a/bias": jnp.ones(1), "b/gamma": jnp.ones(1)})
    adamw = make_optimizer("adamw", constant(0.1), weight_decay=0.1)
    with pytest.raises(ValueError, match=r"^optimizer.decay_rule: .* b/gamma \(matched by none\)$"):
        adamw.init(params)
    with pytest.raises(ValueError) as error:
        select(params, [(r".*kernel", True), (r"a/.*", False)], path="here")
    assert "here: " in str(error.value)
    assert "a/kernel (matched by '.*kernel', 'a/.*')" in str(error.value)
    assert "b/gamma (matched by none)" in str(error.value)
    assert "a/bias" not in str(error.value)
    with pytest.raises(ValueError, match="a/kernel"):  # the whole path, not a part of it
        select(params, [("kernel", True), ("a/bias|b/gamma", False)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "rmsprop"},
            r"^optimizer.name: got 'rmsprop', expected one of 'rmsprop_tf'",
        ),
        (
            {"rho": 0.9},
            r"^optimizer: 'sgd' has no option rho; its options: momentum, nesterov; --config\.opt",
        ),
        ({"name": "rmsprop_tf", "nesterov": True}, "no option nesterov; .* eps, momentum, rho"),
        ({"momentum": 1.0}, r"^optimizer.momentum: got 1.0, expected .* below 1$"),
        ({"momentum": 0.0, "nesterov": True}, r"^optimizer.nesterov: got True with momentum 0"),
        ({"nesterov": "yes"}, r"^optimizer.nesterov: got 'yes'"),
        ({"name": "rmsprop_tf", "rho": -0.1}, r"^optimizer.rho: got -0.1"),
        ({"name": "rmsprop_tf", "eps": 0}, r"^optimizer.eps: got 0, expected a number above 0$"),
        ({"name": "adamw", "b2": 1}, r"^optimizer.b2: got 1"),
        ({"name": "lamb", "trust_rule": "kernel"}, r"^optimizer.trust_rule: got 'kernel'"),
        ({"weight_decay": -1e-5}, r"^optimizer.weight_decay: got -1e-05"),
        ({"clip_norm": 0}, r"^optimizer.clip_norm: got 0"),
        ({"decay_rule": "kernel"}, r"^optimizer.decay_rule: .* expected one of 'kernels', "),
        ({"decay_rule": [("(", True)]}, r"^optimizer.decay_rule: got '\('"),
        ({"decay_rule": [(".*", 1)]}, r"^optimizer.decay_rule: got \('.\*', 1\), expected pairs"),
        ({"decay_rule": [".*"]}, r"^optimizer.decay_rule: got '.\*', expected pairs"),
        ({"decay_rule": None}, r"^optimizer.decay_rule: got None, expected pairs"),
    ],
)
def test_bad_input(settings, message):
    settings = {"name": "sgd", **settings}
    with pytest.raises(ValueError, match=message):
        make_optimizer(settings.pop("name"), constant(0.1), **settings)


def test_none_is_not_given():
    params, gradient = {"kernel": jnp.ones(1)}, {"kernel": jnp.full(1, 2.0)}
    default = one_step("sgd", params, gradient, momentum=None, rho=None, clip_norm=None)
    np.testing.assert_array_equal(default["kernel"], one_step("sgd", params, gradient)["kernel"])


def test_lion_trajectory():
    b1, b2, weight_decay, w, m = 0.6, 0.9, 0.2, np.array([2.0, -1.0]), np.zeros(2)
    gradients = [[1.0, -0.5], [-0.5, 2.0], [0.25, -4.0]]
    lion = make_optimizer("lion", constant(0.1), weight_decay=weight_decay, b1=b1, b2=b2)
    course = run(lion, {"kernel": jnp.array(w)}, [{"kernel": jnp.array(g)} for g in gradients])
    for gradient, got in zip(map(np.array, gradients), course, strict=True):
        w = w - 0.1 * (np.sign(b1 * m + (1 - b1) * gradient) + weight_decay * w)
        m = b2 * m + (1 - b2) * gradient
        np.testing.assert_allclose(got["kernel"], w, rtol=1e-5)


def newton_schulz(matrix):
    """Five steps of the quintic iteration, of Jordan's text on Muon."""
    x = matrix / (np.linalg.norm(matrix) + 1e-8)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_muon_makes_the_momentum_of_a_convolution_orthogonal():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=[2, 3, 3, 4, 6])  # kernel, kernel, inputs, outputs
    params = {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.ones(6)}
    gradient = {"kernel": jnp.asarray(g, jnp.float32), "bias": jnp.full(6, 0.3)}
    got = one_step("muon", params, gradient, weight_decay=0.5)
    # Nesterov's momentum at the first step is a multiple of the gradient, and the iteration
    # forgets how large it was.
    direction = newton_schulz(g.reshape(36, 6)).reshape(g.shape) * 0.2 * np.sqrt(36)
    np.testing.assert_allclose(got["kernel"], w - 0.1 * (direction + 0.5 * w), atol=2e-3)
    np.testing.assert_allclose(got["bias"], 1 - 0.1, rtol=1e-5)  # Adam's first step
    singular = np.linalg.svd(direction.reshape(36, 6), compute_uv=False) / (0.2 * 6)
    assert singular.min() > 0.6 and singular.max() < 1.3, "near to orthogonal"


def test_muon_leaves_depthwise_kernels_and_vectors_to_adam():
    shapes = {path: [3, 3, 1, 8] if path.endswith("kernel") else [8] for path in LEAVES}
    params = nest({path: jnp.ones(shape) for path, shape in shapes.items()})
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 0.5), params)
    for rule, depthwise in (("kernels_but_depthwise", True), ("all", False)):
        got = one_step("muon", params, gradient, muon_rule=rule)
        by_adam = jax.tree.map(lambda x: bool(np.abs(x - 0.9).max() < 1e-5), got)
        expected = {
            path: "kernel" not in path or ("depthwise" in path and depthwise) for path in LEAVES
        }
        assert by_adam == nest(expected)
