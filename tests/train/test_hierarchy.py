"""The loss and the accuracy of a hierarchy of classes, the file that has it, and a run with it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.run.folder import read_config
from mbv3_jax.run.metrics import read_metrics
from mbv3_jax.train import loop
from mbv3_jax.train.experiment import make_experiment, training_loss
from mbv3_jax.train.hierarchy import read_hierarchy
from mbv3_jax.train.losses import make_loss, semantic_hits
from mbv3_jax.train.reevaluate import evaluate_on, reevaluate

# Four classes on the first level (0, 1, 2, 9), four on the second (3, 4, 5, 6), two on the third.
PARENT = {3: 0, 4: 0, 5: 1, 6: 2, 7: 3, 8: 5}
NAMES = tuple(f"class{i}" for i in range(10))
ROWS = [*(f"class{child},class{parent}" for child, parent in PARENT.items()), "class9,"]
LOGITS = np.random.default_rng(0).standard_normal((10, 10)).astype(np.float32) * 3
LABELS = np.arange(10, dtype=np.int32)


@pytest.fixture
def table(tmp_path):
    """table(*rows) -> a file of these rows below the header; without any, of `PARENT`."""

    def write(*rows, header="child,parent"):
        path = tmp_path / "tree.csv"
        path.write_text("\n".join([header, *(rows or ROWS)]) + "\n")
        return str(path)

    return write


def chain(label):
    """A class and its ancestors, the first level's first."""
    return [*(chain(PARENT[label]) if label in PARENT else []), label]


def by_numpy(logits, label, smoothing, accuracy=False):
    """The loss of one example class by class, in float64; or where it is right, by level."""
    logits, total, right = logits.astype(np.float64), 0.0, []
    of_levels = [[c for c in range(10) if len(chain(c)) == depth] for depth in (1, 2, 3)]
    for depth, ancestor in enumerate(chain(label)):
        classes = of_levels[depth]
        p = np.exp(logits[classes]) / np.exp(logits[classes]).sum()
        targets = [(1 - smoothing) * (c == ancestor) + smoothing / len(classes) for c in classes]
        weight = min(20, 10 / sum(len(level) for level in of_levels[depth:]))
        total -= weight * sum(t * np.log(q) for t, q in zip(targets, p, strict=True))
        right.append(classes[int(np.argmax(logits[classes]))] == ancestor)
    return right if accuracy else total


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_formula_written_out(table, smoothing):
    hierarchy = read_hierarchy(table(), NAMES)
    loss = make_loss("semantic_softmax", hierarchy=hierarchy, label_smoothing=smoothing)
    want = np.array(
        [by_numpy(x, label, smoothing) for x, label in zip(LOGITS, LABELS, strict=True)]
    )
    found = jax.jit(loss)(LOGITS, LABELS)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, rtol=1e-5)
    mixed = np.random.default_rng(1).dirichlet(np.ones(10), 10).astype(np.float32)
    each = np.array([[by_numpy(x, label, smoothing) for label in LABELS] for x in LOGITS])
    np.testing.assert_allclose(loss(LOGITS, jnp.asarray(mixed)), (mixed * each).sum(1), rtol=1e-4)
    assert np.isnan(loss(LOGITS[:2], jnp.array([-1, 10]))).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_value_and_gradient_of_a_batch_are_those_of_pytorch(table, smoothing):
    torch = pytest.importorskip("torch", reason="its gradients need the extra peers")
    hierarchy = read_hierarchy(table(), NAMES)
    loss = make_loss("semantic_softmax", hierarchy=hierarchy, label_smoothing=smoothing)
    labels = np.array([0, 9, 7, 8, 5, 4, 4, 6, 7, 3], np.int32)
    value, gradient = jax.value_and_grad(lambda x: loss(x, labels).mean())(jnp.asarray(LOGITS))

    logits = torch.tensor(LOGITS, requires_grad=True)
    total = torch.zeros(())
    for depth, below in enumerate((10, 6, 2)):
        classes = [c for c in range(10) if len(chain(c)) == depth + 1]
        rows = [i for i, label in enumerate(labels) if len(chain(label)) > depth]
        targets = torch.tensor([classes.index(chain(labels[i])[depth]) for i in rows])
        of_level = torch.nn.functional.cross_entropy(
            logits[rows][:, classes], targets, label_smoothing=smoothing, reduction="sum"
        )
        total = total + of_level * (10 / below) / len(labels)  # a mean over the whole batch
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-5)


def test_accuracy_counts_the_levels_of_each_label(table):
    hierarchy = read_hierarchy(table(), NAMES)
    hits, levels = jax.jit(lambda x, y: semantic_hits(x, y, hierarchy))(LOGITS, LABELS)
    right = [by_numpy(x, y, 0, accuracy=True) for x, y in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_array_equal(hits, [sum(row) for row in right])
    np.testing.assert_array_equal(levels, [len(row) for row in right])
    assert 0 < hits.sum() < levels.sum()
    assert semantic_hits(jnp.full((1, 10), jnp.nan), jnp.array([7]), hierarchy)[0] == 0


def test_the_levels_of_a_file(table):
    hierarchy = read_hierarchy(table(), NAMES)
    assert [level.classes.tolist() for level in hierarchy.levels] == [
        [0, 1, 2, 9],
        [3, 4, 5, 6],
        [7, 8],
    ]
    assert [level.weight for level in hierarchy.levels] == [1, 10 / 6, 5]
    assert hierarchy.levels[1].position.tolist() == [-1, -1, -1, 0, 1, 2, 3, 0, 2, -1]
    # A level of one class is left out, and no weight is above 20.
    deep = [f"n{i},n{i - 1}" for i in range(1, 40)] + ["x,n38"]
    hierarchy = read_hierarchy(table(*deep), (*(f"n{i}" for i in range(40)), "x"))
    (level,) = hierarchy.levels
    assert (level.classes.tolist(), level.weight) == ([39, 40], 20)


def test_files_as_people_have_them(table, tmp_path):
    plain = read_hierarchy(table(), NAMES)
    text = "Child, Parent\r\n\r\n" + "\r\n".join(ROWS).replace(",class0", ', "class0"') + "\r\n\r\n"
    (tmp_path / "windows.csv").write_bytes(b"\xef\xbb\xbf" + text.replace(', "', ',"').encode())
    other = read_hierarchy(str(tmp_path / "windows.csv"), NAMES)
    for ours, theirs in zip(plain.levels, other.levels, strict=True):
        np.testing.assert_array_equal(ours.position, theirs.position)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([*ROWS, "clas3,class0"], "line 9: 'clas3' is not a class of the data; did you mean 'cla"),
        ([*ROWS, "", "class0,thing"], "line 10: 'thing' is not a class of the data"),
        ([*ROWS, "class3,class1"], "line 9: 'class3' has a line already, line 2; expected one par"),
        (
            ["class0,", "class3,class4", "class4,class5", "class5,class3", "class1,", *ROWS[3:]],
            r"line [345]: a class is its own ancestor: class\d -> class\d -> class\d -> class\d",
        ),
        (["class3,class3", *ROWS[1:]], "line 2: a class is its own ancestor: class3 -> class3"),
        (ROWS[:-1], "1 class of the data not in it: 'class9'; a class without a parent and"),
        (ROWS[:1], "8 classes of the data not in it: 'class1', 'class2', 'class4', ...; a class w"),
        ([*ROWS, "class0"], "line 9: got 'class0', expected a child and its parent"),
        ([*ROWS, ",class0"], "line 9: got ',class0', expected a child and its parent"),
        ([*ROWS, "class0,a,b"], "line 9: got 'class0,a,b', expected a child and its parent"),
        ([*ROWS, '"class0'], "line 9: not a row of a table: unexpected end of data"),
        ([f"class{i},class{i - 1}" for i in range(1, 10)], "no level has two classes"),
        ([""], "no row below the header child,parent"),
    ],
)
def test_files_that_are_no_hierarchy_of_the_classes(table, rows, reason):
    with pytest.raises(ValueError, match=rf"^loss\.hierarchy: \S+tree\.csv: {reason}"):
        read_hierarchy(table(*rows), NAMES)


def test_other_files(table, tmp_path):
    with pytest.raises(ValueError, match=r"tree.csv: line 1: got 'class3,class0', expected the he"):
        read_hierarchy(table(header="class3,class0"), NAMES)
    path = tmp_path / "other.csv"
    for content, reason in (
        (b"", "an empty table, expected the header child,parent and rows"),
        (b"\xef\xbb\xbf\n\n", "an empty table"),
        (b"child,parent\n\xff,\n", "line 2 is not text in UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"other.csv: {reason}"):
            read_hierarchy(str(path), NAMES)
    with pytest.raises(ValueError, match=r"tree\.csv: the data has two classes named 'class3'$"):
        read_hierarchy(table(), (*NAMES, "class3"))
    with pytest.raises(ValueError, match=r"none\.csv: No such file or directory"):
        read_hierarchy(str(tmp_path / "none.csv"), NAMES)
    with pytest.raises(ValueError, match="got ~no-such-user/x, but there is no ho"):
        read_hierarchy("~no-such-user/x", NAMES)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (["loss.name=semantic_softmax"], "loss: 'semantic_softmax' needs hierarchy"),
        (["loss.hierarchy=tree.csv"], "loss: 'cross_entropy' has no option hierarchy"),
        (
            ["loss.name=semantic_softmax", "loss.hierarchy=none.csv"],
            "loss.hierarchy: none.csv: No such file",
        ),
        (
            ["keep_best=True", "keep_best_metric=semantic_accuracy"],
            "keep_best_metric: got 'semantic_accuracy', which is of loss.name='semantic_softmax'",
        ),
    ],
)
def test_fields_that_do_not_fit(tiny_config, fields, reason):
    with pytest.raises(UsageError) as refused:
        make_experiment(tiny_config(*(f"--config.{field}" for field in fields)))
    assert str(refused.value).startswith(f"config: {reason}")


def test_a_run_learns_by_its_hierarchy(tiny_config, table, tmp_path):
    config = tiny_config(
        "--config.loss.name=semantic_softmax",
        f"--config.loss.hierarchy={table()}",
        "--config.label_smoothing=0.1",
        "--config.augment.mixup_alpha=0.2",
        "--config.keep_best=True",
        "--config.keep_best_metric=semantic_accuracy",
        "--config.total_steps=12",
    )
    experiment = make_experiment(config)
    loss = training_loss(experiment.plan, experiment.data, experiment.hierarchy)
    loss = loss(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    assert float(loss[7]) == pytest.approx(by_numpy(LOGITS[7], 7, 0.1), rel=1e-5)
    loop.train(config, tmp_path / "run")
    records = read_metrics(tmp_path / "run")
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    (evaluation,) = (record for record in records if record["kind"] == "eval")
    assert 0 <= evaluation["semantic_accuracy"] <= 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best"]["metric"] == "semantic_accuracy"
    assert "semantic_hits" not in summary["eval"]


@pytest.fixture
def finished(tiny_config, table, tmp_path):
    """The configuration of a run, and its folder."""
    config = tiny_config(
        "--config.loss.name=semantic_softmax",
        f"--config.loss.hierarchy={table()}",
        "--config.total_steps=4",
    )
    loop.train(config, tmp_path / "run")
    return config, tmp_path / "run"


def test_a_run_is_evaluated_by_the_hierarchy_that_it_learnt_by(finished, table, tmp_path):
    _, run = finished
    table("class0,class1", *(f"class{i}," for i in range(1, 10)))
    want = json.loads((run / "summary.json").read_text())["eval"]["semantic_accuracy"]
    assert reevaluate(run)["semantic_accuracy"] == want
    data = {**read_config(run).data.to_dict(), "num_workers": 0}
    assert evaluate_on(run, data)["semantic_accuracy"] == pytest.approx(want)
    (run / "hierarchy.csv").write_text("child,parent\nclass0,class1\n")
    with pytest.raises(RunError, match=r"run/hierarchy\.csv: 8 classes of the data not in it"):
        reevaluate(run)


def test_a_run_does_not_resume_with_another_hierarchy(finished, table, tmp_path):
    config, run = finished
    (run / "summary.json").unlink()
    table(*reversed(ROWS))
    with pytest.raises(UsageError, match=r"changed since .*/run started; .* a copy, or"):
        loop.train(config, run)
    table()
    assert loop.train(config, run)["steps"] == 4
    (run / "hierarchy.csv").unlink()  # of a run that was killed before it was written
    table(*reversed(ROWS))
    loop.train(config, run)
    assert (run / "hierarchy.csv").read_text() == (tmp_path / "tree.csv").read_text()
