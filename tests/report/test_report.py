"""Reports of sweeps and runs: what is in them, and what is said to be missing."""

import csv
import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest

from mbv3_jax.__main__ import main
from mbv3_jax.arch import cost
from mbv3_jax.report import charts, tables
from mbv3_jax.report.collect import by_data, collect
from mbv3_jax.report.compare import (
    changed_fields,
    difference,
    match_trials,
    metric_differences,
    missing_runs,
)
from mbv3_jax.report.page import sweep_page
from mbv3_jax.report.rows import Latencies, rows


def unmeasured(spec):
    return None


@pytest.fixture(scope="module")
def sweep(sweep_folder):
    (sweep,) = collect([sweep_folder])
    return sweep


@pytest.fixture(scope="module")
def table(sweep):
    return {row["trial"]: row for row in rows(sweep, unmeasured)}


def test_trials_are_grouped_by_seed_and_named(sweep):
    assert sweep.name == "nonlinearity"
    assert {t.name: [run.seed for run in t.runs] for t in sweep.trials} == {
        "both": [0, 1],
        "each": [0, 1],
        "cut": [0],
        "failed": [],
        "waiting": [],
    }


def test_rows_have_mean_and_deviation_of_what_the_runs_ended_with(sweep, table, sweep_folder):
    for name, parts in {
        "both": ("both/seed0", "both/seed1"),
        "each": ("each-seed0", "each-seed1"),
    }.items():
        ends = [json.loads((sweep_folder / p / "summary.json").read_text()) for p in parts]
        top1 = [100 * end["eval"]["top1"] for end in ends]
        assert table[name]["top1"] == pytest.approx(np.mean(top1))
        assert table[name]["top1_std"] == pytest.approx(np.std(top1, ddof=1))
        assert table[name]["loss"] == pytest.approx(np.mean([e["eval"]["loss"] for e in ends]))
        for metric in ("balanced_accuracy", "macro_precision", "macro_recall", "ece", "top5"):
            mean = np.mean([100 * end["eval"][metric] for end in ends])
            assert table[name][metric] == pytest.approx(mean)
    spec = sweep.trials[0].spec
    assert table["both"]["params"] == cost.params(spec)
    assert table["both"]["madds"] == cost.madds(spec)
    # Two runs one after the other take as long as both; two seeds at once are one training.
    one_by_one = [
        json.loads((sweep_folder / f"each-seed{s}" / "summary.json").read_text())["seconds"]
        for s in (0, 1)
    ]
    assert table["each"]["seconds"] == pytest.approx(sum(one_by_one))
    at_once = json.loads((sweep_folder / "both" / "summary.json").read_text())["seconds"]
    assert table["both"]["seconds"] == pytest.approx(at_once)


def changed(run, folder, *, data=None, summary=None):
    """A copy of a run folder with other fields of config.data and of summary.json."""
    shutil.copytree(run, folder)
    for name, fields in (("config", {"data": data or {}}), ("summary", summary or {})):
        path = folder / f"{name}.json"
        content = json.loads(path.read_text())
        for key, value in fields.items():
            content[key] = content.get(key, {}) | value
        path.write_text(json.dumps(content))
    return folder


def test_runs_of_different_data_are_not_ranked_against_each_other(sweep_folder, tmp_path, capsys):
    run = sweep_folder / "each-seed0"
    best = {"best": {"step": 12, "top1": 0.875}}
    same = changed(run, tmp_path / "same", summary={"eval": {"top1": 0.5}, **best})
    other = changed(run, tmp_path / "other", data={"name": "digits"}, summary=best)
    more = changed(run, tmp_path / "more", summary={"eval": {"count": 7}})
    cut = changed(run, tmp_path / "cut", data={"name": "digits"})
    (cut / "summary.json").unlink()
    (sweep,) = collect([cut, run, same, other, more])
    by_name = {trial.name: trial for trial in sweep.trials}
    names = [[str(t.name) for t in group] for group in by_data(sweep.trials)]
    assert names == [[str(cut), str(other)], [str(run), str(same)], [str(more)]]
    row = rows(sweep, unmeasured)[2]
    count = json.loads((run / "summary.json").read_text())["eval"]["count"]
    assert row["data"] == "synthetic, test" and row["held_out"] == count
    assert (row["resolution"], row["best_top1"], row["best_step"]) == (32, 87.5, 12)
    page = sweep_page([sweep], unmeasured)
    for name in (other, same, more):
        assert re.search(rf"Best on [^<]*: <strong>{name}</strong>", page)
    assert page.count("<strong>") == 4  # those, and "Missing"
    assert "87.50 (step 12)" in page and "trials of different data are not compared" in page
    (alone,) = collect([run, same])
    assert "Best: <strong>" in sweep_page([alone], unmeasured)
    (first, *_) = metric_differences(by_name[str(run)], by_name[str(other)])
    assert (first.same_data, first.real, first.low) == (False, None, None)
    assert main(["report", "--compare", str(run), str(other)]) == 0
    assert "of different data" in capsys.readouterr().out
    assert all(d.same_data for d in metric_differences(by_name[str(run)], by_name[str(same)]))
    spec = sweep.trials[1].spec.replace(resolution=(32, 48))
    other_runs = tuple(dataclasses.replace(run, spec=spec) for run in sweep.trials[1].runs)
    wide = dataclasses.replace(sweep.trials[1], runs=other_runs)
    assert rows(dataclasses.replace(sweep, trials=(wide,)), unmeasured)[0]["resolution"] == "32x48"
    (named,) = [dataclasses.replace(sweep, name="data", trials=sweep.trials[1:])]
    effects = [row["effect"] is None for row in rows(named, unmeasured)]
    assert effects == [True, False, True, True]


def test_the_page_of_a_run_has_its_classes(sweep_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(sweep_folder / "each-seed0", run)
    summary = json.loads((run / "summary.json").read_text())
    by_class = summary["eval"]["per_class"]
    by_class["recall"][3], by_class["precision"][3] = 0.4321, 0.8765
    (run / "summary.json").write_text(json.dumps(summary))
    page = sweep_page(collect([run]), unmeasured)
    cells = [text.split("<")[0] for text in page.split(f'"classes of {run}"')[1].split('">')]
    at = cells.index("43.21")
    assert cells[at - 2 : at] == [str(by_class["images"][3]), "87.65"]
    by_class["f1"].pop()
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=r"summary.json is damaged: eval.per_class has lists of "):
        sweep_page(collect([run]), unmeasured)
    kept = ("count", "loss", "top1", "top5")  # as older versions wrote it
    summary["eval"] = {name: summary["eval"][name] for name in kept}
    (run / "summary.json").write_text(json.dumps(summary))
    (older,) = collect([run])
    assert "<h3>Classes</h3>" not in sweep_page([older], unmeasured)
    assert "ECE" not in tables.write([("", rows(older, unmeasured))], "md")


def test_what_is_missing_is_said(table):
    assert table["both"]["missing"] is None and table["each"]["missing"] is None
    assert table["cut"]["missing"] == "interrupted, at step 12"
    assert table["failed"]["missing"] == "failed (error: <no room> on the disk)"
    assert table["waiting"]["missing"] == "waiting"
    assert table["cut"]["top1"] is None and table["cut"]["runs"] == 0


def test_published_figures_stand_beside_trials_of_the_same_name(sweep):
    named = dataclasses.replace(sweep.trials[0], name="v3")
    other = dataclasses.replace(sweep.trials[1], name="relu")
    first, second = rows(dataclasses.replace(sweep, trials=(named, other)), unmeasured)
    assert (first["published_top1"], second["published_top1"]) == (75.2, 74.5)
    assert first["difference"] == pytest.approx(first["top1"] - 75.2)
    assert second["published_effect"] == pytest.approx(-0.7)
    assert second["effect"] == pytest.approx(second["top1"] - first["top1"])
    assert first["effect"] is None


def test_latencies_are_measured_once_and_kept(sweep, tmp_path):
    measured = []

    def measure(spec):
        measured.append(spec)
        return {"ms": 2.5, "runtime": "a watch"}

    file = tmp_path / "report.latency.json"
    before = rows(sweep, Latencies(measure, file, "a watch"))
    assert [row["latency_ms"] for row in before] == [2.5, 2.5, 2.5, None, None]
    assert len(measured) == 2  # of three trials with a folder, one copied from another
    again = rows(sweep, Latencies(measure, file, "a watch"))
    assert again == before and len(measured) == 2
    rows(sweep, Latencies(measure, file, "another watch"))
    assert len(measured) == 4
    file.write_text("{")
    with pytest.raises(
        ValueError, match=r"latency.json is damaged: .*; remove it to measure again"
    ):
        Latencies(measure, file, "a watch")


def test_a_network_that_cannot_be_measured_is_said_to_be(sweep, tmp_path):
    file = tmp_path / "report.latency.json"
    found = rows(sweep, Latencies(lambda spec: {"error": "no such op"}, file, "a watch"))
    assert found[0]["missing"] == "latency: no such op" and found[0]["latency_ms"] is None
    assert found[0]["top1"] is not None and found[3]["missing"].startswith("failed")
    assert not file.exists()


def test_the_front_has_those_that_no_other_beats():
    points = [
        {"trial": n, "top1": t, "madds": m}
        for n, t, m in (("a", 70, 5), ("b", 72, 5), ("c", 71, 6), ("d", 75, 9), ("e", 60, 1))
    ]
    assert [row["trial"] for row in charts.front_of(points, "madds")] == ["e", "b", "d"]


def test_formats_for_papers_and_programs(sweep):
    table = rows(sweep, unmeasured)
    (stored,) = json.loads(tables.write([(sweep.title, table)], "json"))
    assert stored["trials"] == table
    lines = list(csv.DictReader(io.StringIO(tables.write([(sweep.title, table)], "csv"))))
    assert [float(line["top1"]) if line["top1"] else None for line in lines] == [
        row["top1"] for row in table
    ]
    markdown = tables.write([(sweep.title, table)], "md")
    assert f"| {table[0]['top1']:.2f} ± {table[0]['top1_std']:.2f} |" in markdown
    assert f"| both | synthetic, test | {table[0]['held_out']} | 32 |" in markdown
    assert "- cut: interrupted, at step 12" in markdown
    odd = [{**table[0], "trial": "50%_of & {all}\\x^~"}]
    latex = tables.write([("t", odd)], "latex")
    assert r"50\%\_of \& \{all\}\textbackslash{}x\textasciicircum{}\textasciitilde{}" in latex
    body = latex.splitlines()
    assert body[5].count("&") - body[5].count(r"\&") == body[3].count("&") - body[3].count(r"\&")


def test_a_sweep_without_trials():
    assert tables.write([("t", [])], "md") == "## t\n\nNo trials.\n"


class TestCompare:
    def test_fields_and_metrics(self, sweep):
        both, each, *_ = sweep.trials
        assert changed_fields(both, each) == {"net.nonlinearity": ("paper", "relu")}
        found = {d.metric: d for d in metric_differences(both, each)}
        assert found["top1"].b == pytest.approx(np.mean(each.values("top1")))
        assert found["loss"].real is (not found["loss"].low <= 0 <= found["loss"].high)

    def test_the_interval_is_welch_s(self):
        """Against the formula, with the degrees of freedom of Welch and Satterthwaite."""
        a, b = [1.0, 2.0, 4.0], [5.0, 5.5, 7.0, 8.0]
        d = difference("loss", a, b)
        va, vb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
        freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
        from scipy.stats import t

        half = t.ppf(0.975, freedom) * np.sqrt(va + vb)
        middle = np.mean(b) - np.mean(a)
        assert (d.low, d.high) == pytest.approx((middle - half, middle + half))
        assert d.real

    def test_one_seed_cannot_say(self):
        assert difference("top1", [70.0], [75.0, 76.0]).real is None
        same = difference("top1", [70.0, 70.0], [70.0, 70.0])
        assert same.real is False and (same.low, same.high) == (0, 0)

    def test_an_unfinished_trial_does_not_hide_the_others(self, sweep, sweep_folder, capsys):
        both, _, cut, *_ = sweep.trials
        assert metric_differences(both, cut) == []
        assert missing_runs(both, cut) == "cut: interrupted, at step 12, no run has ended"
        assert main(["report", "--compare", str(sweep_folder), str(sweep_folder)]) == 0
        out = capsys.readouterr().out
        assert out.count("real: Welch") == 5 and "waiting: waiting" in out

    @pytest.mark.parametrize("ending", ["md", "csv", "tex"])
    def test_as_a_file(self, sweep, sweep_folder, tmp_path, ending):
        out = tmp_path / f"c.{ending}"
        sides = str(sweep_folder / "both"), str(sweep_folder / "each-seed0")
        assert main(["report", "--compare", *sides, f"--out={out}"]) == 0
        (line,) = [x for x in out.read_text().splitlines() if "nonlinearity" in x and "paper" in x]
        assert "relu" in line
        top1 = np.mean(sweep.trials[0].values("top1"))
        assert f"{top1:.3f}" in out.read_text()

    def test_pairs(self, sweep):
        a, b, c, *_ = sweep.trials
        assert match_trials([a], [b, c]) == [(a, b), (a, c)]
        assert match_trials([a, b], [c, b]) == [(b, b)]
        with pytest.raises(ValueError, match="no trial of the same name"):
            match_trials([a, b], [c, dataclasses.replace(c, name="d")])

    def test_as_a_command(self, sweep_folder, capsys):
        a, b = str(sweep_folder / "both"), str(sweep_folder / "each-seed0")
        assert main(["report", "--compare", a, b]) == 0
        out = capsys.readouterr().out
        assert "net.nonlinearity" in out and "needs two seeds" in out
        assert main(["report", "--compare", a, b, "--format=json"]) == 0
        (pair,) = json.loads(capsys.readouterr().out)
        assert pair["fields"] == {"net.nonlinearity": ["paper", "relu"]}
        assert pair["metrics"][0]["metric"] == "top1" and pair["metrics"][0]["real"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name run folders or sweep folders"),
        (
            ["{tmp}/none", "--no-latency"],
            "neither a sweep folder nor a run folder: there is no such folder",
        ),
        (["{tmp}", "--no-latency"], "neither sweep.json nor config.json"),
        (["{sweep}", "--out={tmp}/r.pdf"], "expected an ending of .html, .md"),
        (["{sweep}", "--format=html"], "--out=FILE.html"),
        (["{sweep}", "--out={tmp}/no/such/r.md", "--no-latency"], "No such file or directory"),
        (["--compare", "{sweep}", "{tmp}"], "neither sweep.json nor config.json"),
        (["--compare", "{sweep}", "{sweep}", "--format=html"], "--format=md"),
        (["{sweep}", "--sort=top1"], "unknown option --sort=top1"),
    ],
)
def test_what_cannot_be_reported(arguments, message, tmp_path, sweep_folder, capsys):
    filled = [a.format(tmp=tmp_path, sweep=sweep_folder) for a in arguments]
    assert main(["report", *filled]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_file_is_named(sweep_folder, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert main(["report", str(tmp_path), "--no-latency"]) == 2
    assert f"{tmp_path / 'config.json'} is damaged" in capsys.readouterr().err


def test_damaged_lines_are_named_and_do_not_block_a_report(sweep_folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(sweep_folder / "each-seed1", run)
    (line,) = (run / "sessions.jsonl").read_text().splitlines()
    # As an earlier version went on after a kill; and a second line that was cut short.
    (run / "sessions.jsonl").write_text(f"{line[:30]}{line}\n{line}\n{line[:30]}")
    records = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(f"5\n{records}")
    assert main(["report", str(run), "--no-latency"]) == 0
    out, err = capsys.readouterr()
    assert "| 1 |" in out
    for name in ("sessions", "metrics"):
        assert f"note: {run / name}.jsonl: cannot read and leaves out line 1 (" in err
    assert err.count("note:") == 2
    (left,) = collect([run])[0].trials[0].runs
    assert left.sessions == [json.loads(line)]


def test_a_run_alone_as_markdown(sweep_folder, capsys):
    assert main(["report", str(sweep_folder / "each-seed1"), "--no-latency"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"## {sweep_folder / 'each-seed1'}") and "| 1 |" in out


def test_runs_say_how_they_were_started(sweep):
    (session,) = sweep.trials[1].runs[0].sessions
    assert session["versions"].keys() >= {"python", "jax", "flax", "optax"}
    assert "python" in session["command"] and "cpu" in session["devices"].lower()
