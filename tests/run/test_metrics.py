import io
import json
import subprocess
import sys
import types

import pytest
from event_files import events, from_records, scalars
from paths import ROOT
from rich.console import Console

from mbv3_jax.run import metrics
from mbv3_jax.run.metrics import Metrics, ProgressBar, best_record, read_metrics


def test_records_and_events_agree(tmp_path):
    metrics = Metrics(tmp_path, resume_step=0)
    metrics.write(10, "train", {"loss": 2.5, "lr": 1e-3})
    metrics.write(10, "eval", {"count": 50, "top1": 0.25})
    # Both are complete before the file is closed, as a kill would leave them.
    assert read_metrics(tmp_path) == [
        {"step": 10, "kind": "train", "loss": 2.5, "lr": 1e-3},
        {"step": 10, "kind": "eval", "count": 50, "top1": 0.25},
    ]
    assert scalars(tmp_path) == from_records(tmp_path)
    assert events(tmp_path)[0].file_version == "brain.Event:2"
    metrics.close()
    assert len(scalars(tmp_path)) == 4


def test_resuming_drops_what_will_be_written_again(tmp_path):
    metrics = Metrics(tmp_path, resume_step=0)
    for step in (10, 20, 30):
        metrics.write(step, "train", {"loss": float(step)})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 40, "kind": "tra')  # a kill in the middle of a line
    assert [r["step"] for r in read_metrics(tmp_path)] == [10, 20, 30]
    resumed = Metrics(tmp_path, resume_step=20)
    resumed.write(30, "train", {"loss": 31.0})
    resumed.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        (10, 10),
        (20, 20),
        (30, 31),
    ]
    assert scalars(tmp_path) == from_records(tmp_path)
    assert all(json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines())


DAMAGE = {
    "half a line": '{"step": 20, "kind": "tra\n',
    "zeros": "\0\0\0\n",
    "a number": "5\n",
    "no step": '{"kind": "train"}\n',
    "no kind": '{"step": 20}\n',
    "no top-1": '{"step": 20, "kind": "eval"}\n',
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_loses_nothing_else(tmp_path, line, capsys):
    first, last = '{"step": 10, "kind": "train"}', '{"step": 20, "kind": "eval", "top1": 0.5}'
    path = tmp_path / "metrics.jsonl"
    path.write_text(damaged := f"{first}\n{line}{last}\n")
    expected = [json.loads(first), json.loads(last)]
    assert read_metrics(tmp_path) == expected
    assert best_record(tmp_path) == expected[1]
    capsys.readouterr()
    Metrics(tmp_path, resume_step=20, keep_best=True).close()
    assert path.read_text() == f"{first}\n{last}\n"
    aside = tmp_path / "metrics.damaged-1.jsonl"
    assert aside.read_text() == damaged
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"note: {path}: cannot read and leaves out line 2 (")
    assert said.endswith(
        f"; {aside.name} is the file as it was; the best checkpoint is chosen by what is left\n"
    )
    path.write_text(f"{line}{last}\n")
    Metrics(tmp_path, resume_step=20).close()
    assert aside.read_text() == damaged
    assert (tmp_path / "metrics.damaged-2.jsonl").read_text() == f"{line}{last}\n"
    assert "best" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (None, "is missing"),
        ("", "ends with step 0"),
        ('{"step": 10, "kind": "train"}\n', "ends with step 10"),
    ],
)
def test_lost_records_are_mentioned(tmp_path, content, state, capsys):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    Metrics(tmp_path, resume_step=22, recorded_step=20, keep_best=True).close()
    assert capsys.readouterr().err == (
        f"note: {path} {state}; the records from there to step 20 are lost; the best checkpoint is "
        "chosen by what is left\n"
    )
    assert not list(tmp_path.glob("*damaged*"))


def test_a_record_that_stands_already_is_not_written_twice(tmp_path):
    for _ in range(2):
        metrics = Metrics(tmp_path, resume_step=10)
        metrics.write(10, "eval", {"top1": 0.5})
        metrics.close()
    assert read_metrics(tmp_path) == [{"step": 10, "kind": "eval", "top1": 0.5}]
    assert scalars(tmp_path) == {(10, "eval/top1"): 0.5}


def test_a_full_disk_is_an_error_where_it_is_met(tmp_path, small_files):
    metrics = Metrics(tmp_path, resume_step=0)
    with small_files(1000), pytest.raises(OSError, match="File too large"):
        for step in range(1, 100):
            metrics.write(step, "train", {"loss": 2.5})
    metrics.close()
    assert 5 < len(read_metrics(tmp_path)) < 50


def test_progress_without_a_terminal_is_plain_lines():
    text = io.StringIO()
    console = Console(file=text, markup=False, soft_wrap=True)
    with ProgressBar(console, total_steps=30, start_step=0) as bar:
        for step in (10, 20, 30):
            bar.update(step, loss=2.0, top1=0.25, rate=123.4)
        bar.print("[bold] held-out")
    assert text.getvalue().splitlines() == [
        "step 10/30  loss 2.000  top-1 25.00%  123 images/s",  # 20 comes too soon after it
        "step 30/30  loss 2.000  top-1 25.00%  123 images/s",
        "[bold] held-out",
    ]


def test_progress_says_when_it_has_compiled_and_how_long_it_will_take(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(metrics, "time", clock)
    text = io.StringIO()
    with ProgressBar(Console(file=text, soft_wrap=True), total_steps=3010, start_step=9) as bar:
        clock.now = 130.0
        bar.compiled(10)
        bar.compiled(11)  # not again
        for seconds, step in ((1.0, 20), (500.0, 1010), (1500.0, 3000), (1600.0, 3010)):
            clock.now = 130.0 + seconds
            bar.update(step, loss=2.0, top1=0.25, rate=10)
    state = "  loss 2.000  top-1 25.00%  10 images/s"
    assert text.getvalue().splitlines() == [
        "compiled in 30 s",
        f"step 20/3010{state}  5 min left",
        f"step 1010/3010{state}  17 min left",
        f"step 3000/3010{state}  5 s left",
        f"step 3010/3010{state}",
    ]


def test_progress_on_a_terminal_shows_the_latest_numbers():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with ProgressBar(console, total_steps=30, start_step=10) as bar:
        bar.update(20, loss=1.5, top1=0.5, rate=100)
    shown = console.file.getvalue()
    assert "compiling" in shown and "nan" not in shown
    for part in ("step 20/30", "loss 1.500", "top-1 50.00%", "100 images/s", "left"):
        assert part in shown


def test_training_does_not_import_torch():
    heavy = "{'torch', 'tensorflow', 'keras'}"
    code = f"import sys, mbv3_jax.train.loop; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_a_clock_that_was_set_back_hides_nothing_from_tensorboard(tmp_path, monkeypatch):
    for number, now in enumerate((2e9, 1.9e9, 100.0, 2e9, 2e9 + 5)):
        monkeypatch.setattr(metrics.time, "time", lambda now=now: now)
        before = {path.name for path in tmp_path.iterdir()}
        written = Metrics(tmp_path, resume_step=number)
        written.write(number + 1, "train", {"loss": float(number)})
        written.close()
        (name,) = {path.name for path in tmp_path.glob("events*")} - before
        assert all(name > earlier for earlier in before if earlier.startswith("events"))
    assert [e.step for e in events(tmp_path) if e.summary.value] == [1, 2, 3, 4, 5]
    times = [e.wall_time for e in events(tmp_path)]
    assert times == sorted(times) and times[-1] == 2e9 + 5


def test_the_first_clock_may_be_wrong_too(tmp_path, monkeypatch):
    for now in (5.0, 1.8e9):
        monkeypatch.setattr(metrics.time, "time", lambda now=now: now)
        Metrics(tmp_path, resume_step=0).close()
    first, second = sorted(path.name for path in tmp_path.glob("events*"))
    assert "tfevents.0000000005.000000." in first and "tfevents.1800000000.000000." in second
