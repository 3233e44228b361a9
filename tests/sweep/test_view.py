import io

from rich.console import Console

from mbv3_jax.sweep.state import Progress
from mbv3_jax.sweep.view import Row, View, groups_table, table

HALF = Progress(step=12, total_steps=24, top1=0.5, seconds_left=3725.0)
ROWS = [
    Row(name="done", state="finished", progress=Progress(step=24, total_steps=24, top1=0.75)),
    Row(name="now", state="running", progress=HALF),
    Row(name="bad", state="failed", progress=Progress(), note="error: nan [a]"),
    Row(name="later", state="waiting", progress=Progress()),
]


def printed(what, **options):
    console = Console(file=io.StringIO(), width=100, **options)
    console.print(what)
    return console.file.getvalue()


def test_the_table_has_all_that_is_known():
    text = printed(table(ROWS))
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    assert all(part in lines["now"] for part in ("running", "12/24", "50.00%", "1:02:05"))
    assert "24/24" in lines["done"] and "75.00%" in lines["done"]
    assert "error: nan [a]" in lines["bad"]
    assert "4 trials: 1 finished, 1 waiting, 1 failed, 1 running" in text


def test_a_table_that_does_not_fit_shows_what_runs():
    text = printed(table(ROWS, room=2))
    assert "now" in text and "bad" in text
    assert "later" not in text and "done" not in text
    assert "4 trials" in text


def test_without_a_terminal_each_change_is_a_line():
    console = Console(file=io.StringIO(), width=100)
    with View(console) as view:
        view.update(ROWS)
        view.update(ROWS)
        view.update([Row(name="later", state="running", progress=HALF)])
    assert console.file.getvalue().splitlines() == [
        "done finished 24/24 75.00%",
        "now running 12/24 50.00% 1:02:05",
        "bad failed error: nan [a]",
        "later running 12/24 50.00% 1:02:05",
    ]


def test_a_terminal_gets_a_live_table():
    console = Console(file=io.StringIO(), width=100, height=40, force_terminal=True)
    with View(console) as view:
        view.update(ROWS)
    assert "1:02:05" in console.file.getvalue()
    assert "\x1b[" in console.file.getvalue()


def test_the_result_has_mean_and_spread():
    values = {"runs": 3, "top1_mean": 0.6, "top1_std": 0.0123}
    text = printed(groups_table({"v3": values, "relu": {**values, "runs": 1, "top1_std": None}}))
    assert "60.00%" in text and "1.23" in text
