"""Networks of several labels per image, and of probabilities: loss, measures, refusals, a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import TINY
from PIL import Image
from run_checks import assert_same_end

from mbv3_jax.cli.main import main
from mbv3_jax.core.errors import UsageError
from mbv3_jax.data.augment import make_preprocess
from mbv3_jax.train.losses import class_numbers, label_accuracy, make_loss
from mbv3_jax.train.measures import multi_label_measures
from mbv3_jax.train.plan import read_plan
from mbv3_jax.train.reevaluate import map_labels
from mbv3_jax.train.sources import open_data

NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """24 images to train on and 12 held out, whose channels say which of three labels they have."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = [f"path,label,{','.join(f'p_{name}' for name in NAMES)},split"]
    for i in range(36):
        flags = rng.random(3) < 0.5
        pixels = np.broadcast_to(np.where(flags, 220, 40), (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        labels = ";".join(name for name, flag in zip(NAMES, flags, strict=True) if flag)
        shares = (flags + 0.1) / (flags + 0.1).sum()
        split = "train" if i < 24 else "val"
        lines.append(f"{i}.png,{labels},{','.join(f'{p:.4f}' for p in shares)},{split}")
    (root / "t.csv").write_text("\n".join(lines))
    return f"table:{root}/t.csv"


def overrides(table, *more):
    return (
        f"--config.data.name={table}",
        *("--config.data.num_examples=None", "--config.net.num_classes=None"),
        *("--config.data.num_workers=0", "--config.schedule.warmup_steps=0"),
        *(f"--config.{field}" for field in more),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_that_of_its_formula(smoothing):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, 4)).astype(np.float32) * 3
    labels = (rng.random((5, 4)) < 0.4).astype(np.float32)
    targets = (1 - smoothing) * labels + smoothing / 2
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(axis=1)
    loss = make_loss("bce", label_smoothing=smoothing)
    np.testing.assert_allclose(loss(jnp.array(logits), jnp.array(labels)), expected, rtol=2e-6)
    extreme = jnp.array([[-1e4, 1e4]])
    assert loss(extreme, jnp.array([[0.0, 1.0]]))[0] == smoothing / 2 * 1e4  # nothing overflows
    np.testing.assert_allclose(
        label_accuracy(jnp.array(logits), jnp.array(labels)), ((p > 0.5) == (labels > 0)).mean(1)
    )
    with pytest.raises(ValueError, match=r"loss.name: got 'bce', which is for several labels"):
        loss(jnp.array(logits), jnp.zeros(5, jnp.int32))


def test_measures_are_those_of_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(2)
    labels = (rng.random((40, 4)) < 0.3).astype(np.float32)
    labels[:, 2] = 0  # no image has it
    scores = (rng.normal(size=(40, 4)) + labels).astype(np.float32).round(1)  # with ties
    mask = np.ones(40, np.float32)
    batches = [
        {"scores": scores[:25], "labels": labels[:25], "mask": mask[:25]},
        {"scores": scores[25:], "labels": labels[25:], "mask": mask[25:]},
        {"scores": np.full((2, 4), np.nan), "labels": np.ones((2, 4)), "mask": np.zeros(2)},
    ]
    values = multi_label_measures(batches)
    found = values["per_class"]
    expected = [metrics.average_precision_score(labels[:, i], scores[:, i]) for i in (0, 1, 3)]
    assert found["average_precision"][2] is None
    assert [found["average_precision"][i] for i in (0, 1, 3)] == pytest.approx(expected)
    assert values["mean_average_precision"] == pytest.approx(np.mean(expected))
    assert found["images"] == labels.sum(axis=0).astype(int).tolist()
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, scores > 0, zero_division=0
    )
    for name, of_sklearn in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert found[name] == pytest.approx(of_sklearn)
        assert values[f"macro_{name}"] == pytest.approx(of_sklearn.mean())  # class 2 is predicted
    batches[0]["scores"] = np.full((25, 4), np.nan)
    assert np.isnan(multi_label_measures(batches)["mean_average_precision"])
    nothing = [{"scores": scores, "labels": np.zeros((40, 4)), "mask": mask}]
    assert "mean_average_precision" not in multi_label_measures(nothing)


def test_average_precision_by_hand():
    scores, labels = np.array([[3.0], [2.0], [1.0], [0.0]]), np.array([[1.0], [0], [1], [0]])
    values = multi_label_measures([{"scores": scores, "labels": labels, "mask": np.ones(4)}])
    assert values["mean_average_precision"] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_mixing_takes_labels_that_are_rows():
    preprocess, _ = make_preprocess(mixup_alpha=1.0, num_classes=3)
    labels = jnp.array([[1.0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]])
    batch = {"image": jnp.zeros((4, 8, 8, 3), jnp.uint8), "label": labels}
    _, mixed = preprocess(batch, jax.random.key(0))
    share = float(mixed[0, 0])
    assert 0 < share < 1
    np.testing.assert_allclose(mixed[1], [1 - share, 1 - share, share], atol=1e-6)
    np.testing.assert_array_equal(class_numbers(labels), [0, 2, 1, 0])


def test_labels_are_mapped_to_those_of_a_network():
    mapped = map_labels(np.array([[1.0, 0], [1, 1]], np.float32), np.array([2, 0]), 3)
    np.testing.assert_array_equal(mapped, [[0, 0, 1], [1, 0, 1]])
    np.testing.assert_array_equal(map_labels(np.array([0, 1, 1]), np.array([2, 0]), 3), [2, 0, 0])


BCE = ("data.labels=multi", "loss.name=bce")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (["data.labels=multi"], "loss.name: got 'cross_entropy', expected 'bce' for several"),
        (["data.labels=multi", "loss.name=focal"], "loss.name: got 'focal', expected 'bce'"),
        (["data.labels=soft", "loss.name=bce"], "loss.name: got 'bce', which is for several lab"),
        ([*BCE, "loss.class_weights=1,2,3"], "loss.class_weights: got (1, 2, 3), which does not"),
        ([*BCE, "data.balanced=True"], "data.balanced: got True, which does not go with several"),
        ([*BCE, "save_predictions=True"], "save_predictions: got True, which does not go with"),
        ([*BCE, "seeds=0,1"], "seeds: got (0, 1), which does not go with several labels per image"),
        (
            [*BCE, "teacher=large"],
            "teacher: got ('large',), which does not go with several labels per image; expected N",
        ),
        (
            [*BCE, "keep_best=True", "keep_best_metric=top1"],
            "keep_best_metric: got 'top1', expected one of loss, mean_average_precision, macro_",
        ),
        ([*BCE, "early_stop.patience=2", "early_stop.metric=ece"], "early_stop.metric: got 'ece'"),
        (
            ["data.labels=soft", "data.balanced=True"],
            "data.balanced: got True, which does not go with probabilities as labels",
        ),
        (
            ["data.labels=soft", "loss.class_weights=balanced"],
            "loss.class_weights: got 'balanced', which does not go with probabilities",
        ),
        (
            ["data.labels=soft", "keep_best=True", "keep_best_metric=mean_average_precision"],
            "keep_best_metric: got 'mean_average_precision', which is for several labels per image",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_training(tiny_config, table, fields, reason):
    with pytest.raises(UsageError) as caught:
        open_data(read_plan(tiny_config(*overrides(table, *fields))))
    assert str(caught.value).startswith(f"config: {reason}")


@pytest.mark.slow
def test_a_run_resumes_evaluates_and_predicts(table, tmp_path, capsys):
    def train(folder):
        fields = ("total_steps=40", "checkpoint_every_steps=20", "eval_every_steps=20", *BCE)
        more = ("keep_best=True", "schedule.base_lr=0.05", "ema_decay=None")
        more += ("augment.rotate_degrees=0.0", "data.area=(0.5, 1.0)")
        run = tmp_path / folder
        command = ["train", f"--config={TINY}", f"--workdir={run}"]
        assert main([*command, *overrides(table, *fields, *more)]) == 0
        return run

    run, whole = train("run"), train("whole")
    (run / "summary.json").rename(tmp_path / "old.json")
    (run / "checkpoints" / "40").rename(tmp_path / "40")
    train("run")
    assert_same_end(run, whole)
    summary = json.loads((run / "summary.json").read_text())
    values = summary["eval"]
    assert values["count"] == 12 and "top1" not in values
    assert values["mean_average_precision"] > 0.6
    assert summary["best"]["metric"] == "mean_average_precision"

    capsys.readouterr()
    assert main(["eval", f"--run={run}", f"--data={table}"]) == 0
    out, err = capsys.readouterr()
    again = json.loads(out)
    assert again["mean_average_precision"] == pytest.approx(values["mean_average_precision"])
    assert again["per_class"]["average_precision"] == pytest.approx(
        values["per_class"]["average_precision"]
    )
    assert "mean average precision" in err and "right labels" in err

    image = table.removeprefix("table:").replace("t.csv", "0.png")
    assert main(["predict", f"--run={run}", image, "--json"]) == 0
    out, err = capsys.readouterr()
    predicted = json.loads(out)
    probabilities = {p["class"]: p["probability"] for p in predicted["predictions"]}
    assert set(probabilities) == set(NAMES)
    chosen = {name for name, probability in probabilities.items() if probability >= 0.5}
    assert set(predicted["labels"]) == chosen
    assert "several labels per image: those with a probability of at least 50%" in err
    assert main(["report", str(run), f"--out={tmp_path / 'report.html'}"]) == 2
    assert "a report compares top-1, which networks of several labels" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_probabilities(table, tmp_path):
    fields = ("total_steps=4", "eval_every_steps=4", "data.labels=soft", "label_smoothing=0.1")
    more = ("augment.mixup_alpha=0.2", "loss.class_weights=1,2,1", "save_predictions=True")
    command = ["train", f"--config={TINY}", f"--workdir={tmp_path / 'run'}"]
    assert main([*command, *overrides(table, *fields, *more)]) == 0
    values = json.loads((tmp_path / "run" / "summary.json").read_text())["eval"]
    assert values["count"] == 12 and 0 <= values["top1"] <= 1
    assert sum(values["per_class"]["images"]) == 12
    saved = np.load(tmp_path / "run" / "predictions.npz")
    assert saved["label"].shape == (12,)
