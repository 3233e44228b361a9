import json

from sweep_tools import jobs_of

from mbv3_jax.sweep.combinators import trial
from mbv3_jax.sweep.state import Progress, ProgressReader, summaries


def write(run, *records, end=""):
    run.mkdir(exist_ok=True)
    text = "".join(json.dumps(r) + "\n" for r in records)
    (run / "metrics.jsonl").write_text(text + end)


def summary(steps):
    return {"steps": steps, "eval": {"top1": 0.5, "loss": 1.0}}


TRAIN = {"step": 40, "kind": "train", "loss": 1.0, "top1": 0.1, "images_per_second": 80.0}


def test_step_accuracy_and_time_left(tmp_path):
    (job,) = jobs_of(tmp_path, trial("a", {"total_steps": None, "total_epochs": 8.0}))
    read = ProgressReader()
    assert read(job.folder, job.config) == Progress()
    evaluation = {"step": 30, "kind": "eval", "top1": 0.7, "loss": 1.0}
    # 40 steps of 8 images are 6.4 epochs of 50: 8 epochs are 50 steps.
    write(job.folder, evaluation, {**TRAIN, "epoch": 6.4}, end='{"step": 5')
    at = read(job.folder, job.config)
    assert (at.step, at.total_steps, at.top1) == (40, 50, 0.7)
    assert at.seconds_left == 10 * 8 / 80
    write(job.folder, {**TRAIN, "step": 50, "epoch": 8.0})
    assert read(job.folder, job.config) == Progress(step=50, total_steps=50, seconds_left=0.0)


def test_a_number_of_steps_needs_no_epoch(tmp_path):
    (job,) = jobs_of(tmp_path, trial("a"))
    write(job.folder, {**TRAIN, "step": 12})
    assert ProgressReader()(job.folder, job.config).total_steps == 24


def test_long_files_are_read_from_their_end(tmp_path):
    (job,) = jobs_of(tmp_path, trial("a"))
    write(job.folder, *({**TRAIN, "step": step, "epoch": 1.0} for step in range(1, 5000)))
    assert (job.folder / "metrics.jsonl").stat().st_size > 1 << 18
    assert ProgressReader()(job.folder, job.config).step == 4999


def test_a_run_has_ended_when_it_has_a_result(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert summaries(run) == {}
    (run / "summary.json").write_text('{"ste')
    assert summaries(run) == {}
    (run / "summary.json").write_text('{"eval": {}}')
    assert summaries(run) == {}
    (run / "summary.json").write_text(json.dumps(summary(1)))
    assert summaries(run) == {"": summary(1)}


def test_a_run_over_seeds_has_ended_when_all_have(tmp_path, tiny_config):
    for seed in (0, 1):
        write(tmp_path / f"seed{seed}", {**TRAIN, "step": 6})
        (tmp_path / f"seed{seed}" / "config.json").write_text("{}")
    assert ProgressReader()(tmp_path, tiny_config()).step == 6
    (tmp_path / "seed0" / "summary.json").write_text(json.dumps(summary(1)))
    assert summaries(tmp_path) == {}
    (tmp_path / "seed1" / "summary.json").write_text(json.dumps(summary(2)))
    assert summaries(tmp_path) == {"seed0": summary(1), "seed1": summary(2)}
