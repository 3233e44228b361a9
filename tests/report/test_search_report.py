"""Reports of searches: the page, the tables, and what is refused."""

import csv
import io
import json
import math
import re

import pytest
from ended_search import make, result

from mbv3_jax.__main__ import main
from mbv3_jax.arch import cost
from mbv3_jax.arch.tables import mobilenet_v3_small
from mbv3_jax.report import charts, search_charts, search_result
from mbv3_jax.report.search_report import stages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("searches") / "clutter")


@pytest.fixture
def said(capsys):
    """said(*arguments) -> what `report` prints."""

    def run(*arguments):
        assert main(["report", *map(str, arguments), "--no-latency"]) == 0
        return capsys.readouterr().out

    return run


def changed(tmp_path, **fields):
    return make(tmp_path / "other", result() | fields)


def test_the_page_has_every_part(folder, tmp_path):
    out = tmp_path / "search.html"
    assert main(["report", str(folder), f"--out={out}", "--no-latency"]) == 0
    text = out.read_text()
    assert re.findall("<h3>(.*?)</h3>", text) == [
        "Networks",
        "Can the evaluator be trusted?",
        "Reward",
        "Accuracy against cost",
        "Chosen blocks",
        "Predicted and measured cost",
        "NetAdapt",
    ]
    labels = re.findall(r'<svg role="img" aria-label="(.*?)"', text)
    assert labels == [
        "reward by controller step",
        "top-1 against predicted cost (ms)",
        "measured against predicted cost (ms)",
    ]
    assert text.count("small &amp; $quick$</text>") == 3  # no formula of it in any chart
    for part in (">V2<", ">V3-Large<", ">V3-Small<", "small &amp; $quick$", "52.00 ± 3.00"):
        assert part in text
    assert "rank correlation with the accuracies of 16 held-out candidates: 0.71" in text
    assert "Warning" not in text
    assert "a &lt;fast&gt; machine" in text and "<fast>" not in text
    assert "bottleneck of block4, block5 40 -&gt; 32" in text
    # Block 2 of V3-Small: 72 of at most 576 channels.
    assert "72 (\N{MULTIPLICATION SIGN}4.5)" in text and "--share: 0.125" in text
    assert len(text) < 300_000


def test_stages_begin_at_another_width_or_with_stride_two():
    found = stages(mobilenet_v3_small())
    assert [(s["width"], s["size"], len(s["blocks"])) for s in found] == [
        (16, "56 x 56", 1),
        (24, "28 x 28", 2),
        (40, "14 x 14", 3),
        (48, "14 x 14", 2),
        (96, "7 x 7", 3),
    ]
    first, last = found[0]["blocks"][0], found[-1]["blocks"][-1]
    assert (first["kernel"], first["expansion"], first["se"], first["act"]) == (3, 16, True, "relu")
    assert (last["kernel"], last["factor"], last["act"]) == (5, "6", "h-swish")


def test_as_markdown(folder, said):
    out = said(folder)
    assert out.startswith("## clutter: a search in the space small\n")
    small = next(line for line in out.splitlines() if line.startswith("| small"))
    spec = mobilenet_v3_small().replace(resolution=32, num_classes=15)
    madds, params = cost.madds(spec) / 1e6, cost.params(spec) / 1e6
    assert [c.strip() for c in small.strip("|").split("|")] == [
        "small & $quick$",
        "found",
        "1.00",
        "1.01",
        "1.05",
        f"{madds:.2f}",
        f"{params:.2f}",
        "52.00 ± 3.00",
        "63.00",
        "test",
    ]
    assert "16 held-out candidates: 0.71 (95%: 0.30 to 0.90)." in out
    assert "### NetAdapt: small & $quick$" in out and "### NetAdapt: large" not in out
    assert "| 1 | block3 expansion 88 -> 80 | 1.20 | 61.00 |" in out


def test_as_json(folder, said):
    (record,) = json.loads(said(folder, "--format=json"))
    first, *_, last = record["networks"]
    assert (first["kind"], first["cost"], first["measured"]) == ("found", 1.01, 1.05)
    assert (last["network"], last["target"], last["top1"]) == ("mobilenet_v3_small", None, 62)
    assert record["agreement"] == {
        "evaluator": "surrogate",
        "spearman": 0.71,
        "count": 16,
        "interval": [0.3, 0.9],
        "trusted": True,
    }
    (steps,) = record["adapted"].values()
    assert steps[1] == {
        "step": 2,
        "change": "bottleneck of block4, block5 40 -> 32",
        "cost": 1.1,
        "accuracy": None,
    }


def test_as_csv_and_latex(folder, said):
    lines = list(csv.DictReader(io.StringIO(said(folder, "--format=csv"))))
    assert [line["kind"] for line in lines] == ["found"] * 2 + ["reference"] * 3
    assert float(lines[1]["top1"]) == 66 and lines[1]["measured"] == ""
    latex = said(folder, "--format=latex")
    assert r"small \& \$quick\$ & found & 1.00" in latex and "NetAdapt" not in latex


def test_several_searches_stand_one_after_the_other(folder, tmp_path, said):
    other = changed(tmp_path, space="toy")
    assert said(folder, other).count("\n## ") == 1
    assert len(json.loads(said(folder, other, "--format=json"))) == 2


@pytest.mark.parametrize("spearman", [0.49, None, math.nan])
def test_an_evaluator_not_to_be_trusted_is_warned_of(spearman, tmp_path, said):
    folder = changed(tmp_path, agreement={"spearman": spearman, "count": 8})
    out = said(folder)
    assert (
        "Warning: this rank correlation is " + ("below 0.5" if spearman == 0.49 else "unk") in out
    )
    page = tmp_path / "page.html"
    said(folder, f"--out={page}")
    assert '<div class="missing">Warning' in page.read_text()
    (record,) = json.loads(said(folder, "--format=json"))
    assert record["agreement"]["trusted"] is False
    assert record["agreement"]["spearman"] == (0.49 if spearman == 0.49 else None)


def test_a_search_by_multiply_adds_with_little_on_record(tmp_path, said):
    spec = result()["found"]["large"]["spec"]
    folder = changed(
        tmp_path,
        cost={"name": "madds", "unit": "MAdds", "source": None},
        candidates=[],
        found={"small": {"spec": spec, "target": 1e6, "cost": 1.1e6, "top1": None}},
        references={},
    )
    assert "| network | kind | target MAdds M | MAdds M | params M |" in said(folder)
    page = tmp_path / "page.html"
    said(folder, f"--out={page}")
    text = page.read_text()
    assert "No network has both a predicted and a measured cost." in text
    assert "<svg" not in text and "<h3>Reward" not in text and "<h3>NetAdapt" not in text


def test_costs_far_apart_stand_on_a_logarithmic_axis(folder, monkeypatch):
    called = []
    monkeypatch.setattr(charts, "make_logarithmic", lambda *args: called.append(args))
    assert "V3-Large" in search_charts.accuracy_against_cost(search_result.read(folder))
    assert len(called) == 1


class TestRefused:
    def refused(self, capsys, *arguments):
        assert main(["report", *map(str, arguments), "--no-latency"]) == 2
        return capsys.readouterr().err

    def test_a_search_under_way(self, tmp_path, capsys):
        (tmp_path / "config.json").write_text('{"program": "search"}')
        said = self.refused(capsys, tmp_path)
        assert "no network has been chosen yet (found.json)" in said and "same command" in said
        (tmp_path / "found.json").write_text('{"found": {"small": {}, "large": {}}}')
        (tmp_path / "runs" / "small").mkdir(parents=True)
        (tmp_path / "runs" / "small" / "summary.json").write_text("{}")
        assert "to be trained: runs/large;" in self.refused(capsys, tmp_path)

    def test_searches_beside_runs(self, folder, sweep_folder, capsys):
        said = self.refused(capsys, folder, sweep_folder)
        assert f"{folder} cannot be reported together with {sweep_folder}" in said
        said = self.refused(capsys, "--compare", folder, sweep_folder)
        assert (
            f"{folder} is a search folder, which has a report of its own: report {folder}" in said
        )

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"cost": None}, "cost: got None, expected an object"),
            ({"cost": {"name": "ms"}}, "cost.unit: missing, expected a string"),
            ({"resolution": "32"}, "resolution: got '32', expected a whole number or a list"),
            ({"candidates": [{"top1": "1", "cost": 1}]}, "candidates[0].top1: got '1', expected a"),
            ({"candidates": [3]}, "candidates[0]: got 3, expected an object"),
            ({"found": {}}, "found: empty"),
            ({"found": {"a": 3}}, "found.a: got 3, expected an object"),
            ({"found": {"a": {"spec": {}}}}, "found.a.spec: unknown fields [], missing fields"),
            ({"agreement": {"spearman": True}}, "agreement.spearman: got True, expected a number"),
        ],
    )
    def test_a_file_of_another_form(self, fields, message, tmp_path, capsys):
        folder = changed(tmp_path, **fields)
        said = self.refused(capsys, folder)
        assert f"{folder / 'search.json'} is damaged, or of another version: {message}" in said
        assert "it rewrites the file" in said

    def test_no_json(self, tmp_path, capsys):
        (tmp_path / "search.json").write_text("{")
        assert "search.json is damaged" in self.refused(capsys, tmp_path)
        (tmp_path / "search.json").write_text("[]")
        assert "of another version: got [], expected an object" in self.refused(capsys, tmp_path)
