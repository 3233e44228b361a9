import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_measures import by_sklearn

from mbv3_jax.data import loader
from mbv3_jax.data.sources.synthetic import Synthetic
from mbv3_jax.nn import functional
from mbv3_jax.run.metrics import means
from mbv3_jax.train.evaluate import evaluate, make_eval_step
from mbv3_jax.train.sharding import make_mesh

COUNT = 50


def preprocess(images):
    return images.astype(jnp.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def source():
    return Synthetic("test", 32, num_examples=COUNT)


@pytest.fixture(scope="module")
def variables(tiny_spec):
    """Fresh variables, with a head grown until its answers differ from example to example."""
    fresh = functional.init(tiny_spec, jax.random.key(3))
    params = fresh["params"]
    params |= {name: jax.tree.map(lambda x: x * 50, params[name]) for name in ("head", "logits")}
    return fresh


@pytest.fixture(scope="module")
def by_hand(tiny_spec, source, variables):
    """Count, mean loss, top-1 and top-5 in float64 NumPy from the logits of all examples."""
    batch = source.batch(range(COUNT))
    logits, _ = functional.apply(tiny_spec, variables, preprocess(jnp.asarray(batch["image"])))
    logits, labels = np.asarray(logits, np.float64), batch["label"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    ranks = np.argsort(-logits, axis=1)
    return {
        "count": COUNT,
        "loss": -log_p[np.arange(COUNT), labels].mean(),
        "top1": (ranks[:, 0] == labels).mean(),
        "top5": (ranks[:, :5] == labels[:, None]).any(axis=1).mean(),
        **by_sklearn(logits, labels),
    }


def assert_same(got, by_hand):
    assert got.keys() == by_hand.keys()
    for name, wanted in got["per_class"].items():
        assert by_hand["per_class"][name] == pytest.approx(wanted, abs=1e-6), name
    assert means(got) == pytest.approx(means(by_hand), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("batch_size", "devices"), [(16, 1), (50, 1), (64, 2)])
def test_every_example_exactly_once(tiny_spec, source, variables, by_hand, batch_size, devices):
    mesh = make_mesh(jax.devices()[:devices])
    step = make_eval_step(tiny_spec, preprocess=preprocess, mesh=mesh)
    batches = loader.eval_batches(source, batch_size=batch_size)
    got = evaluate(step, variables, batches, mesh=mesh, expected=COUNT)
    assert_same(got, by_hand)
    assert got["count"] == COUNT and isinstance(got["count"], int)
    assert 0 < got["top1"] < got["top5"] < 1


def test_padding_is_not_counted_even_if_it_is_nan(tiny_spec, source, variables, by_hand):
    mesh = make_mesh(jax.devices()[:1])
    step = make_eval_step(tiny_spec, preprocess=lambda images: images, mesh=mesh)

    def batches():
        for batch in loader.eval_batches(source, batch_size=16):
            images = np.array(preprocess(batch["image"]))
            images[batch["mask"] == 0] = np.nan
            yield {**batch, "image": images}

    got = evaluate(step, variables, batches(), mesh=mesh, expected=COUNT)
    assert_same(got, by_hand)


def test_another_number_of_examples_is_an_error():
    mesh = make_mesh(jax.devices()[:1])
    batch = {"mask": np.ones(3, np.float32)}

    def step(variables, batch):
        return {"count": jnp.sum(batch["mask"]), "loss": jnp.float32(6)}

    assert evaluate(step, {}, [batch, batch], mesh=mesh, expected=6) == {"count": 6, "loss": 2}
    with pytest.raises(RuntimeError, match="evaluation counted 6 examples of 7"):
        evaluate(step, {}, [batch, batch], mesh=mesh, expected=7)


def test_no_top5_of_five_classes(tiny_spec):
    spec = tiny_spec.replace(num_classes=5)
    mesh = make_mesh(jax.devices()[:1])
    step = make_eval_step(spec, preprocess=preprocess, mesh=mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((4, 32, 32, 3), "uint8"),
        "label": jax.ShapeDtypeStruct((4,), "int32"),
        "mask": jax.ShapeDtypeStruct((4,), "float32"),
    }
    sums = jax.eval_shape(step, functional.shapes(spec), batch)
    assert sorted(sums) == ["batch", "classes", "count", "loss", "top1"]


def test_examples_that_cannot_be_read_are_in_no_measure(tiny_spec, source, variables):
    """Also two classes, whose scores reach the host."""
    spec = tiny_spec.replace(num_classes=2)
    params = variables["params"] | {
        "logits": jax.tree.map(lambda x: x[..., :2], variables["params"]["logits"])
    }
    two = {"params": params, "batch_stats": variables["batch_stats"]}
    mesh = make_mesh(jax.devices()[:2])
    step = make_eval_step(spec, preprocess=preprocess, mesh=mesh)
    read = np.arange(COUNT) % 7 != 3

    def batches():
        for start, batch in enumerate(loader.eval_batches(source, batch_size=16)):
            bad = ~np.resize(read[start * 16 :], 16) & (batch["mask"] > 0)
            yield {
                "image": batch["image"],
                "label": (batch["label"] % 2).astype(np.int32),
                "mask": (batch["mask"] * ~bad).astype(np.float32),
                "unreadable": bad.astype(np.float32),
            }

    got = evaluate(step, two, batches(), mesh=mesh, expected=COUNT)
    batch = source.batch(np.flatnonzero(read))
    logits, _ = functional.apply(spec, two, preprocess(jnp.asarray(batch["image"])))
    wanted = by_sklearn(np.asarray(logits, np.float64), batch["label"] % 2)
    assert 0 < wanted["auc"] < 1 and sum(wanted["per_class"]["images"]) == read.sum()
    rest = {"count": read.sum(), "unreadable": COUNT - read.sum()}
    rest |= {name: got[name] for name in ("loss", "top1")}
    assert_same(got, rest | wanted)
