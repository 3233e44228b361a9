import json

import pytest

from benchmarks import growth
from benchmarks.growth import Desk, Measured


def test_power_of_growth():
    assert growth.power([1, 10, 100], [2.0, 20.0, 2000.0]) == pytest.approx([1, 2])


def test_a_section_has_a_row_for_each_size():
    text = growth.section("lines", {1000: Measured(1.0, 200.0), 10_000: Measured(10.0, 300.0)})
    assert text.splitlines()[-2:] == [
        "| 1,000 | 1 |  | 200 |  |",
        "| 10,000 | 10 | 1.00 | 300 |  |",
    ]


def test_commands_are_measured(tmp_path):
    desk = Desk(tmp_path, rounds=1)
    few, many = desk.trials(1), desk.trials(20)
    assert few.seconds > 0 and many.megabytes > 10
    with pytest.raises(SystemExit, match="no-such-command"):
        desk.command("no-such-command")


def test_a_run_is_as_long_as_wanted(tmp_path):
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "config.json").write_text('{"seed": 0}')
    records = [{"step": 1, "kind": "train", "loss": 2.0}, {"step": 1, "kind": "eval", "top1": 0.5}]
    (trained / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    folder = Desk(tmp_path, rounds=1).run("long", 50, seed=7)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [r["step"] for r in lines if r["kind"] == "train"] == list(range(1, 51))
    assert json.loads((folder / "config.json").read_text()) == {"seed": 7}
