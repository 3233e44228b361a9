import errno
import json
import shutil

import numpy as np
import pytest
from event_files import from_records, scalars
from PIL import Image
from run_checks import assert_same_end, assert_same_records, checkpoint_steps

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.run.checkpoint import Progress
from mbv3_jax.run.folder import read_config, read_summary
from mbv3_jax.run.metrics import Metrics, read_metrics
from mbv3_jax.train import loop
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.reevaluate import reevaluate

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_config):
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    loop.train(tiny_config(), run)
    return run


@pytest.fixture
def config(tiny_config):
    return tiny_config()


def snapshot(run):
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in run.rglob("*")}


def test_what_a_run_leaves(finished):
    records = read_metrics(finished)
    assert [(r["step"], r["kind"]) for r in records] == [
        *[(step, "train") for step in (5, 6, 10, 12)],
        (12, "eval"),
        *[(step, "train") for step in (15, 18, 20, 24)],
        (24, "eval"),
    ]
    # A record is the mean over the steps since the one before it: here of 7 to 10.
    schedule = make_experiment(read_config(finished)).schedule
    assert records[2]["lr"] == pytest.approx(np.mean([schedule(t) for t in range(6, 10)]))
    assert scalars(finished) == from_records(finished)
    assert checkpoint_steps(finished) == [12, 18, 24]
    assert not list(finished.rglob("*tmp*"))


def test_the_summary_is_what_evaluating_again_gives(finished):
    summary = read_summary(finished)
    assert (summary["steps"], summary["weights"], summary["split"]) == (24, "ema", "test")
    assert summary["epochs"] == 24 / (50 / 8)
    for name, weights in (("eval", "ema"), ("eval_raw", "raw")):
        again = reevaluate(finished, weights=weights)
        assert again["count"] == 50
        assert {k: again[k] for k in summary[name]} == summary[name]
    assert summary["eval"]["loss"] != summary["eval_raw"]["loss"]
    assert sum(summary["eval"]["per_class"]["images"]) == 50
    last = read_metrics(finished)[-1]
    for name in ("balanced_accuracy", "macro_f1", "weighted_precision", "ece"):
        assert last[name] == summary["eval"][name]
    assert "per_class" not in last and "per_class" not in summary["eval_raw"]
    middle = reevaluate(finished, step=12)
    assert middle["loss"] == next(r["loss"] for r in read_metrics(finished) if r["kind"] == "eval")


def test_the_same_again_gives_the_result_without_training(finished, config, monkeypatch):
    before = snapshot(finished)
    monkeypatch.setattr(loop, "Recorder", None)
    assert loop.train(config, finished) == json.loads((finished / "summary.json").read_text())
    assert snapshot(finished) == before


def test_another_configuration_changes_nothing(finished, tiny_config):
    before = snapshot(finished)
    with pytest.raises(UsageError, match=r"batch_size: this command 16, the folder 8"):
        loop.train(tiny_config("--config.batch_size=16"), finished)
    assert snapshot(finished) == before


def with_wrong_label_at(step):
    """A `put_batch` whose batch of this training step has a label that no class has."""
    calls = 0

    def put_batch(batch, mesh, **how):
        nonlocal calls
        calls += 1
        label = np.where(calls == step, -1, batch["label"]).astype(np.int32)
        return original({**batch, "label": label}, mesh, **how)

    original = loop.put_batch
    return put_batch


def test_a_loss_that_is_not_finite_stops_the_run(finished, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "put_batch", with_wrong_label_at(9))
        with pytest.raises(RunError) as caught:
            loop.train(config, tmp_path)
    message = str(caught.value)
    assert message.startswith("the loss of step 9 is nan: training stopped; ")
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '6'}." in message
    assert "\n" not in message
    assert checkpoint_steps(tmp_path) == [6]
    assert [r["step"] for r in read_metrics(tmp_path)] == [5, 6]
    loop.train(config, tmp_path)
    assert_same_end(tmp_path, finished)
    assert_same_records(tmp_path, finished)


def test_a_state_that_is_not_finite_is_never_saved(tiny_config, tmp_path):
    # The loss and the gradient of the only step before the checkpoint are finite.
    config = tiny_config(
        "--config.schedule.base_lr=1e38",
        "--config.schedule.warmup_steps=0",
        "--config.checkpoint_every_steps=1",
    )
    with pytest.raises(RunError, match=r"norm of step 1 is (inf|nan): .* no checkpoint was writ"):
        loop.train(config, tmp_path)
    assert checkpoint_steps(tmp_path) == []


def test_a_full_disk_and_then_room(finished, config, tmp_path, small_files):
    with small_files(20_000), pytest.raises(RunError) as caught:
        loop.train(config, tmp_path)
    assert "could not write the checkpoint of step 6 in " in str(caught.value)
    assert "run the same command again to start over" in str(caught.value)
    loop.train(config, tmp_path)
    assert_same_end(tmp_path, finished)
    assert_same_records(tmp_path, finished)
    assert not list(tmp_path.rglob("*tmp*"))


def test_metrics_that_cannot_be_written(config, tmp_path, monkeypatch):
    def write(self, step, kind, values):
        if step > 12:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Metrics, "write", write)
    with pytest.raises(RunError) as caught:
        loop.train(config, tmp_path)
    assert str(caught.value) == (
        f"stopped in {tmp_path}: [Errno 28] No space left on device. Once that is fixed, "
        "run the same command again to resume from its last checkpoint, step 12"
    )


@pytest.fixture
def damaged(finished, tmp_path):
    """damaged(*steps): the finished run without its summary, and with these checkpoints damaged."""

    def make(*steps):
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        (run / "summary.json").unlink()
        for step in steps:
            (run / "checkpoints" / str(step) / "position" / "metadata").unlink()
        return run

    return make


@pytest.mark.parametrize("steps", [(24,), (18, 24)])
def test_a_damaged_checkpoint_is_set_aside(finished, config, damaged, steps, capsys):
    run = damaged(*steps)
    before = {step: snapshot(run / "checkpoints" / str(step)) for step in steps}
    loop.train(config, run)
    assert_same_end(run, finished)
    assert_same_records(run, finished)
    lines = capsys.readouterr().err.splitlines()
    notes = [line for line in lines if line.startswith("note: the checkpoint ")]
    for step, note in zip(sorted(steps, reverse=True), notes, strict=True):
        kept = run / "damaged" / str(step)
        assert f"{step} cannot be read: its file position/metadata is missing; it is" in note
        assert note.endswith(f"now {kept}") and snapshot(kept) == before[step]
    assert f"resuming from step {24 - 6 * len(steps)} in {run}" in lines


@pytest.mark.parametrize(
    ("steps", "option", "advice"),
    [
        ((24,), "refuse", " from step 18, remove that"),
        ((12, 18, 24), "earlier", "; to resume from step 18, remove that"),
    ],
)
def test_damaged_checkpoints_are_left_where_they_are(
    tiny_config, damaged, finished, steps, option, advice
):
    run, newest = damaged(*steps), steps[-1]
    before = snapshot(run / "checkpoints")
    config = tiny_config(f"--config.on_damaged={option}")
    with pytest.raises(RunError, match=f"checkpoints/{newest} cannot be read: .*{advice}"):
        loop.train(config, run)
    assert snapshot(run / "checkpoints") == before
    if option == "refuse":
        shutil.rmtree(run / "checkpoints" / str(newest))
        loop.train(config, run)
        assert_same_end(run, finished)
        assert_same_records(run, finished)


def test_damaged_and_deleted_metrics_are_mentioned_at_resume(
    finished, tiny_config, tmp_path, capsys
):
    run, config = tmp_path / "run", tiny_config("--config.keep_best=True")
    loop.train(config, run)
    assert "note:" not in capsys.readouterr().err
    whole = (run / "metrics.jsonl").read_text()
    for damaged in (whole.replace('"step": 10', '"step": x', 1), None):
        (run / "summary.json").unlink()
        shutil.rmtree(run / "checkpoints" / "24")
        (run / "metrics.jsonl").unlink()
        if damaged:
            (run / "metrics.jsonl").write_text(damaged)
        loop.train(config, run)
        assert_same_end(run, finished)
        said = capsys.readouterr().err
        steps = [r["step"] for r in read_metrics(run)]
        if damaged:
            assert (run / "metrics.damaged-1.jsonl").read_text() == damaged
            assert "and leaves out line 3 (" in said
            assert steps == [5, 6, 12, 12, 15, 18, 20, 24, 24]
        else:
            assert "metrics.jsonl is missing; the records from there to step 18 are lost" in said
            assert steps == [20, 24, 24]
        assert "; the best checkpoint is chosen by what is left\n" in said


def test_other_data_are_refused(finished, config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "summary.json").unlink()
    changed = Progress(examples=192, fingerprint="other")
    monkeypatch.setattr(loop.Recorder, "progress", lambda *_: changed)
    with pytest.raises(RunError, match=r"the data is not what step 24 was trained on: .*'other'"):
        loop.train(config, run)


def test_the_first_lines_say_what_always_answering_one_class_would_get(tiny_config, tmp_path):
    for folder, count in (("train/cat", 30), ("train/dog", 10), ("val/cat", 2), ("val/dog", 1)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40)).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "train/cat/._0.png").write_bytes(b"x")
    note = f"note: 1 hidden file with the name of an image not read: {tmp_path}/train/cat/._0.png"
    fields = {"data.name": f"folder:{tmp_path}", "data.num_examples": None}
    fields |= {"data.num_classes": None, "net.num_classes": None}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    experiment = make_experiment(tiny_config(*overrides))
    lines = loop.opening(experiment, tmp_path / "run")
    assert lines[0].endswith("40 training images of 2 classes, 10 to 30 each")
    assert lines[1] == "held out: 3 val images; always answering cat would be right for 66.7%"
    steps = experiment.data.total_steps
    assert lines[3].startswith(f"training: {steps} steps of ") and lines[5:] == [note]
    assert loop.on_data(experiment) == [*lines[:2], note]
    overrides += ["--config.batch_size=100", "--config.schedule.base_lr=0.0"]
    overrides += ["--config.eval_every_steps=0"]
    experiment = make_experiment(tiny_config(*overrides))
    assert loop.opening(experiment, tmp_path / "run")[5:] == [
        f"note: a batch of 100 holds more than all 40 training images: {2.5 * steps:g} epochs are "
        f"only {steps} steps; a smaller batch_size would train for longer",
        "note: eval_every_steps=0 evaluates after every step",
        "note: schedule.base_lr is 0: only BatchNorm's statistics will change",
        note,
    ]
