import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from mbv3_jax.core.registry import Registry
from mbv3_jax.train import losses

cross_entropy = jax.jit(losses.cross_entropy, static_argnames="label_smoothing")
correct = jax.jit(losses.correct, static_argnames="k")

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]], np.float32)
LABELS = np.array([0, 1], np.int32)
LOG_P = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(-1, keepdims=True))


def test_equals_minus_log_probability_of_each_example():
    loss = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [-LOG_P[0, 0], -LOG_P[1, 1]], rtol=1e-6)
    uniform = cross_entropy(jnp.zeros([1, 1000]), jnp.array([17]), label_smoothing=0.1)
    np.testing.assert_allclose(uniform, [np.log(1000)], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_equals_the_formula_written_out(smoothing):
    targets = np.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3
    expected = -(targets * LOG_P).sum(-1)
    loss = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), label_smoothing=smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    soft = jnp.asarray(np.eye(3, dtype=np.float32)[LABELS])
    loss = cross_entropy(jnp.asarray(LOGITS), soft, label_smoothing=smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_smoothing_changes_loss_and_gradient():
    def total(logits, smoothing):
        return cross_entropy(logits, jnp.asarray(LABELS), label_smoothing=smoothing).sum()

    plain, smooth = (jax.grad(total)(jnp.asarray(LOGITS), s) for s in (0.0, 0.1))
    p = np.exp(LOG_P)
    np.testing.assert_allclose(plain, p - np.eye(3)[LABELS], atol=1e-6)
    np.testing.assert_allclose(smooth, p - (0.9 * np.eye(3)[LABELS] + 0.1 / 3), atol=1e-6)
    difference = total(jnp.asarray(LOGITS), 0.1) - total(jnp.asarray(LOGITS), 0.0)
    np.testing.assert_allclose(difference, 0.05, rtol=1e-5)  # 0.1 * (label - mean of the logits)


def test_mixed_labels():
    mixed = np.array([[0.3, 0.7, 0.0], [0.0, 0.25, 0.75]], np.float32)
    loss = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(mixed))
    np.testing.assert_allclose(loss, -(mixed * LOG_P).sum(-1), rtol=1e-6)


def test_large_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0]])
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, jnp.array([1])).sum())(logits)
    assert loss == 2e4
    np.testing.assert_array_equal(gradient, [[1.0, -1.0, 0.0]])


def test_half_precision_logits_are_widened_first():
    logits = jnp.asarray(np.linspace(-4, 4, 1000)[None], jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([3]))
    assert loss.dtype == jnp.float32
    wide = np.asarray(logits, np.float64)
    np.testing.assert_allclose(loss, np.log(np.exp(wide).sum()) - wide[0, 3], rtol=1e-6)


@pytest.mark.parametrize("label", [-1, -3, 3, 1000])
def test_a_label_out_of_range_is_nan_alone(label):
    loss = cross_entropy(jnp.asarray(LOGITS), jnp.array([label, 1]), label_smoothing=0.1)
    assert np.isnan(loss[0])
    assert np.isfinite(loss[1])
    np.testing.assert_array_equal(correct(jnp.asarray(LOGITS), jnp.array([label, 2]), 3), [0, 1])


def test_top_k_agrees_with_a_stable_sort():
    logits = np.random.default_rng(0).integers(0, 5, [64, 10]).astype(np.float32)  # many ties
    labels = np.arange(64) % 10
    order = np.argsort(-logits, axis=-1, kind="stable")
    for k in (1, 3, 10):
        hits = correct(jnp.asarray(logits), jnp.asarray(labels), k)
        np.testing.assert_array_equal(hits, (order[:, :k] == labels[:, None]).any(-1))
        assert hits.dtype == jnp.float32
    np.testing.assert_array_equal(
        correct(jnp.asarray(logits), jnp.asarray(labels), 1), logits.argmax(-1) == labels
    )


def test_constant_logits_score_chance():
    labels = jnp.arange(10)
    assert correct(jnp.zeros([10, 10]), labels, 1).sum() == 1
    assert correct(jnp.zeros([10, 10]), labels, 5).sum() == 5


def test_rows_with_nan_are_wrong():
    nan, inf = np.nan, np.inf
    logits = jnp.array([[nan, 1.0], [1.0, nan], [nan, nan], [inf, 1.0], [1.0, -inf]])
    np.testing.assert_array_equal(correct(logits, jnp.zeros(5, jnp.int32), 1), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(correct(logits, jnp.zeros(5, jnp.int32), 2), [0, 0, 0, 1, 1])


def test_soft_labels_count_by_their_largest_entry():
    soft = jnp.array([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]])
    np.testing.assert_array_equal(correct(jnp.asarray(LOGITS), soft, 1), [1, 0])


def test_bad_input():
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    for bad in (labels[:1], labels.astype(jnp.float32), jnp.eye(2), jnp.eye(3, dtype=int)[labels]):
        with pytest.raises(ValueError, match=r"^labels: got .*\[2, 3\]"):
            losses.cross_entropy(logits, bad)
    for bad in (logits[0], logits.astype(int)):
        with pytest.raises(ValueError, match=r"^logits: got "):
            losses.cross_entropy(bad, labels)
    for bad in (1.0, -0.1, "0.1"):
        with pytest.raises(ValueError, match=r"^label_smoothing: got "):
            losses.cross_entropy(logits, labels, label_smoothing=bad)
    for bad in (0, 4):
        with pytest.raises(ValueError, match=r"^top_k: got \d, expected 1 to .*3$"):
            losses.correct(logits, labels, bad)


@pytest.fixture
def with_focal(monkeypatch):
    """A registry with another focal loss (Lin et al., arXiv 1708.02002, equation 4) in it."""
    registry = Registry("loss")
    for name, entry in losses.LOSSES.items():
        if name != "focal":
            registry.register(name)(entry)
    monkeypatch.setattr(losses, "LOSSES", registry)

    @registry.register("focal")
    def focal(logits, labels, *, gamma: float = 2.0):
        p = jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)[:, 0]
        return -((1 - p) ** gamma) * jnp.log(p)

    return registry


def test_another_loss_is_one_entry(with_focal):
    assert with_focal.fields() == {
        "label_smoothing": float,
        "target_threshold": float,
        "hierarchy": str,
        "gamma": float,
    }
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    p = np.exp(LOG_P[[0, 1], LABELS])
    for gamma in (1.0, 2.0):
        got = losses.make_loss("focal", gamma=gamma)(logits, labels)
        np.testing.assert_allclose(got, -((1 - p) ** gamma) * np.log(p), rtol=1e-5)
    default = losses.make_loss("focal", label_smoothing=0.0, gamma=None)(logits, labels)
    np.testing.assert_array_equal(default, losses.make_loss("focal")(logits, labels))
    smoothed = losses.make_loss("cross_entropy", label_smoothing=0.1)(logits, labels)
    np.testing.assert_array_equal(
        smoothed, losses.cross_entropy(logits, labels, label_smoothing=0.1)
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hinge", {}, r"^loss.name: got 'hinge', expected one of 'cross_entropy', 'bce', "),
        ("focal", {"label_smoothing": 0.1}, r"^label_smoothing: got 0.1, but loss.name=focal "),
        ("cross_entropy", {"gamma": 1.0}, r"^loss: 'cross_entropy' has no option gamma; its opti"),
    ],
)
def test_wrong_losses_say_what_would_be_right(with_focal, name, options, message):
    with pytest.raises(ValueError, match=message):
        losses.make_loss(name, **options)(jnp.asarray(LOGITS), jnp.asarray(LABELS))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_the_formula_and_has_a_finite_slope(gamma):
    log_p = LOG_P[[0, 1], LABELS]
    expected = -((1 - np.exp(log_p)) ** gamma) * log_p
    focal = losses.make_loss("focal", gamma=gamma)
    np.testing.assert_allclose(focal(jnp.asarray(LOGITS), jnp.asarray(LABELS)), expected, rtol=1e-5)
    one_hot = jnp.asarray(np.eye(3, dtype=np.float32)[LABELS])
    np.testing.assert_allclose(focal(jnp.asarray(LOGITS), one_hot), expected, rtol=1e-5)
    sure = jnp.array([[200.0, 0.0, -200.0]])
    for label in range(3):
        slope = jax.grad(lambda x, label=label: focal(x, jnp.array([label])).sum())(sure)
        assert np.isfinite(slope).all()
    assert np.isnan(focal(jnp.asarray(LOGITS), jnp.array([3, 1]))).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"^loss.gamma: got -1"):
        losses.make_loss("focal", gamma=-1.0)(jnp.asarray(LOGITS), jnp.asarray(LABELS))


def test_class_weights_multiply_the_loss_of_their_examples():
    weights = losses.class_weights((2, 0.5, 1), num_classes=3, counts=None)
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    weighted = losses.make_loss("cross_entropy", label_smoothing=0.1, class_weights=weights)
    plain = losses.cross_entropy(logits, labels, label_smoothing=0.1)
    np.testing.assert_allclose(weighted(logits, labels), plain * np.array([2, 0.5]), rtol=1e-6)
    mixed = jnp.array([[0.3, 0.7, 0.0], [0.0, 0.25, 0.75]])
    plain = losses.cross_entropy(logits, mixed, label_smoothing=0.1)
    np.testing.assert_allclose(weighted(logits, mixed), plain * np.array([0.95, 0.875]), rtol=1e-6)
    assert losses.class_weights(None, num_classes=3, counts=None) is None


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 3], [5, 80, 15])
    got = losses.class_weights("balanced", num_classes=4, counts=np.bincount(labels))
    wanted = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(got[[0, 1, 3]], wanted, rtol=1e-6)
    assert got[2] == 0 and got[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("even", r"got 'even', expected 'balanced' or 3 numbers"),
        ("balanced", r"got 'balanced', but this data does not know how many images each .* 3 numb"),
        ((1, 2), r"got \(1, 2\), expected 'balanced' or 3 numbers, one for each class"),
        ((1, 2, -1), r"\[2\]: got -1"),
        ((0, 0, 0), r"got only zeros"),
        (2.0, r"got 2.0, expected 'balanced' or 3"),
    ],
)
def test_wrong_class_weights(given, message):
    with pytest.raises(ValueError, match=r"^loss.class_weights" + r"(: )?" + message):
        losses.class_weights(given, num_classes=3, counts=None)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_cross_entropy_is_pytorchs(smoothing, threshold):
    torch = pytest.importorskip("torch")
    mixed = np.array([[0.7, 0.3, 0.0], [0.15, 0.85, 0.0]], np.float32)
    for labels, dense in ((LABELS, np.eye(3, dtype=np.float32)[LABELS]), (mixed, mixed)):
        targets = (1 - smoothing) * dense + smoothing / 3
        if threshold is not None:
            targets = (targets > threshold).astype(np.float32)
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            torch.tensor(LOGITS), torch.tensor(targets), reduction="none"
        )
        got = losses.binary_cross_entropy(
            jnp.asarray(LOGITS),
            jnp.asarray(labels),
            label_smoothing=smoothing,
            target_threshold=threshold,
        )
        np.testing.assert_allclose(got, expected.numpy().mean(axis=-1), rtol=1e-5)


def test_binary_cross_entropy_stays_finite_and_refuses_labels_out_of_range():
    loss = losses.make_loss("binary_cross_entropy", target_threshold=None)
    far = loss(jnp.array([[1e4, -1e4]], jnp.bfloat16), jnp.array([0]))
    np.testing.assert_allclose(far, [0], atol=1e-6)
    got = loss(jnp.zeros([3, 2]), jnp.array([0, 2, -1]))
    np.testing.assert_allclose(got, [np.log(2), np.nan, np.nan], rtol=1e-6)
    with pytest.raises(ValueError, match=r"^loss.target_threshold: got 1.5"):
        losses.binary_cross_entropy(jnp.zeros([1, 2]), jnp.array([0]), target_threshold=1.5)
