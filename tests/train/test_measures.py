"""The measures of an evaluation against scikit-learn, which computes them from all examples."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from mbv3_jax.train import measures


def by_sklearn(logits, labels):
    """What `measures.measures` must return for logits [images, classes] that all count."""
    classes, predicted = logits.shape[1], logits.argmax(axis=1)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (p / p.sum(axis=1, keepdims=True)).max(axis=1)
    known = {"zero_division": 0, "y_true": labels, "y_pred": predicted}
    recall = metrics.recall_score(labels, predicted, labels=np.unique(labels), average="macro")
    values = {"balanced_accuracy": recall}
    for average in ("macro", "weighted"):
        found = metrics.precision_recall_fscore_support(average=average, **known)
        values |= {f"{average}_{n}": v for n, v in zip(NAMES, found[:3], strict=True)}
    # The share of right answers and the mean confidence of each bin that holds examples.
    bins = {"n_bins": 15, "strategy": "uniform"}
    right, believed = calibration_curve(predicted == labels, confidence, **bins)
    edges = np.linspace(0, 1, 16)
    sizes = np.histogram(-confidence, -edges[::-1])[0][::-1]  # bins that are closed on the right
    values["ece"] = np.abs(right - believed) @ sizes[sizes > 0] / len(labels)
    if classes == 2:
        score = logits[:, 1] - logits[:, 0]
        values["auc"] = metrics.roc_auc_score(labels, score)
        values["average_precision"] = metrics.average_precision_score(labels, score)
    of_each = metrics.precision_recall_fscore_support(labels=range(classes), **known)
    names = (*NAMES, "images")
    return values | {
        "per_class": {n: v.tolist() for n, v in zip(names, of_each, strict=True)},
    }


NAMES = ("precision", "recall", "f1")


def measured(logits, labels, batch=32):
    """The measures of the package, from padded batches."""
    counts, batches = [], []
    for start in range(0, len(labels), batch):
        part = [
            np.resize(x[start : start + batch], (batch, *x.shape[1:])) for x in (logits, labels)
        ]
        mask = (np.arange(start, start + batch) < len(labels)).astype(np.float32)
        arguments = [jnp.asarray(x) for x in (*part, mask)]
        counts.append(measures.class_counts(*arguments))
        batches.append(measures.batch_values(*arguments))
    total = {name: sum(np.asarray(part[name]) for part in counts) for name in counts[0]}
    return measures.measures(total, batches, len(labels))


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_they_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    # Uneven: some classes are rare, of 1,000 many are absent or never predicted.
    labels = (classes * rng.random(500) ** 2).astype(np.int32)
    logits = rng.normal(size=[500, classes]).astype(np.float32)
    logits[np.arange(500), labels] += 1.5
    got, wanted = measured(logits, labels), by_sklearn(logits, labels)
    assert got.keys() == wanted.keys()
    for name, values in wanted.pop("per_class").items():
        assert got["per_class"][name] == pytest.approx(values, abs=1e-6), name
    del got["per_class"]
    assert got == pytest.approx(wanted, abs=1e-6)
    assert 0.01 < got["ece"] < 0.9 and got["macro_precision"] != got["macro_recall"]


def test_by_hand():
    logits = np.log([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.1, 0.9]]).astype(np.float32)
    got = measured(logits, np.array([0, 0, 1, 1], np.int32))
    assert got["per_class"]["precision"] == pytest.approx([2 / 3, 1])
    assert got["per_class"]["recall"] == [1, 0.5]
    assert got["balanced_accuracy"] == 0.75
    assert got["ece"] == pytest.approx((0.2 + 0.3 + 0.6 + 0.1) / 4)
    assert got["auc"] == 1 and got["average_precision"] == 1


def test_what_is_not_defined():
    logits = np.zeros([4, 2], np.float32)
    got = measured(logits, np.zeros(4, np.int32))  # no image of the second class
    assert "auc" not in got and got["balanced_accuracy"] == got["macro_f1"] == 1
    logits[1, 0] = np.nan
    got = measured(logits, np.array([0, 0, 0, 1], np.int32))
    assert np.isnan([got["ece"], got["auc"], got["average_precision"]]).all()
    assert got["per_class"]["recall"] == [2 / 3, 0]  # the first class is the answer of no logits
    assert got["per_class"]["precision"] == [2 / 3, 0]
