"""A whole search by a proxy: a table of networks in, networks and a report out, nothing trained."""

import io
import json
import re

import numpy as np
import pytest
from paths import ROOT
from rich.console import Console

from mbv3_jax.arch import cost, spec_from_json, spec_to_json
from mbv3_jax.arch.tables import mobilenet_v3_small
from mbv3_jax.cli.main import main
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.report import charts, search_result
from mbv3_jax.run.config import parse_config
from mbv3_jax.search import accel_nasbench, objective, program
from mbv3_jax.search.network_table import Column, make_network_table, write_network_table
from mbv3_jax.search.presets import preset

TOY = preset("toy")
POINTS = list(TOY.points())
MADDS = np.array([cost.madds(TOY.to_spec(p)) for p in POINTS])
CONFIG = str(ROOT / "configs" / "search" / "proxy.py")


def accuracy_of(spec) -> float:
    """More multiply-adds are better, and a kernel of 5 is worth more than it costs."""
    return 0.3 + 0.1 * np.log2(cost.madds(spec) / MADDS.min()) + 0.05 * (spec.blocks[0].kernel == 5)


def table(points=POINTS, accuracy=accuracy_of):
    specs = [TOY.to_spec(p) for p in points]
    return make_network_table(
        name="made up",
        source="here",
        license="CC0-1.0",
        space=TOY,
        networks=points,
        columns={
            "top1": Column(
                kind="accuracy",
                unit="%",
                about="after a short recipe",
                values=tuple((100 * accuracy(s),) for s in specs),
            ),
            "other": Column(kind="accuracy", unit="%", values=((1.0,),) * len(points)),
            "fps": Column(
                kind="cost",
                unit="images/s",
                higher_is_better=True,
                values=tuple((1e9 / cost.madds(s),) for s in specs),
            ),
        },
    )


def rewards_of(accuracy, target):
    """The true rewards [128] of all networks."""
    accuracies = np.array([accuracy(TOY.to_spec(p)) for p in POINTS])
    return accuracies - 0.3 * np.abs(MADDS / target - 1)


@pytest.fixture
def file(tmp_path):
    write_network_table(tmp_path / "t.json", table())
    return tmp_path / "t.json"


def config(file, *overrides):
    fields = [
        f"proxy.table={file}",
        "cost=madds",
        "relative_to=space",
        "targets.small=0.7",
        "targets.large=1.3",
        "searcher.steps=60",
        "searcher.batch=8",
        *overrides,
    ]
    return parse_config(CONFIG, [f"--config.{field}" for field in fields])


def search(file, folder, *overrides, out=None):
    console = Console(file=out, width=500) if out else Console(quiet=True)
    text = program.run(config(file, *overrides), folder, console)
    return json.loads((folder / "search.json").read_text()), text


def test_networks_are_found_for_each_target_without_training(file, tmp_path):
    said = io.StringIO()
    folder = tmp_path / "search"
    result, text = search(file, folder, out=said)
    small, large = result["found"]["small"], result["found"]["large"]
    assert small["cost"] < 0.75 * large["cost"]
    for network in (small, large):
        spec = spec_from_json(json.dumps(network["spec"]))
        assert network["predicted"] == pytest.approx(accuracy_of(spec), abs=0.02)
        assert network["uncertainty"] > 0 and "top1" not in network
        rewards = rewards_of(accuracy_of, network["target"])
        assert rewards[POINTS.index(tuple(network["point"]))] > rewards.max() - 0.03
        assert np.quantile(rewards, 0.9) < rewards.max() - 0.03  # hardly any network is so good
    assert result["agreement"]["count"] == len(POINTS) // 5
    assert result["agreement"]["spearman"] > 0.9
    assert re.search(r"small: .* predicted top-1 \d+\.\d\d% ± ", text)
    assert "learning from 103 networks of made up" in said.getvalue()
    assert "accuracy is top1: after a short recipe" in said.getvalue()
    assert not (folder / "runs").exists() and not (folder / "table.json").exists()
    fronts = [[(e["cost"], e["predicted"]) for e in n["front"]] for n in (small, large)]
    assert all(front == sorted(front) for front in fronts)
    assert max(p for front in fronts for _, p in front) >= large["predicted"]


@pytest.mark.parametrize(
    ("name", "madds", "params"), [("small", 60.4, 1.92), ("large", 232.7, 4.03)]
)
def test_the_networks_that_were_found_are_those_of_the_documents(name, madds, params):
    spec = spec_from_json((ROOT / "configs" / "networks" / f"found_{name}.json").read_text())
    assert preset("accel_nasbench").encode(spec)
    assert round(cost.madds(spec) / 1e6, 1) == madds and round(cost.params(spec) / 1e6, 2) == params


def test_accuracy_decides_and_not_only_cost(tmp_path):
    """By a table in which the better networks are the worse ones, other networks are found."""

    def opposite(spec):
        return 1 - accuracy_of(spec)

    write_network_table(tmp_path / "t.json", table(accuracy=opposite))
    result, _ = search(tmp_path / "t.json", tmp_path / "search")
    for network in result["found"].values():
        at = POINTS.index(tuple(network["point"]))
        rewards = rewards_of(opposite, network["target"])
        assert rewards[at] > rewards.max() - 0.03
        other = rewards_of(accuracy_of, network["target"])
        assert other[at] < other.max() - 0.03


def test_what_is_found_is_refined(file, tmp_path):
    rewards = []
    for rounds in (0, 30):
        overrides = ("searcher.steps=1", "searcher.batch=2", f"refine_rounds={rounds}")
        result, _ = search(file, tmp_path / str(rounds), *overrides)
        large = result["found"]["large"]
        at = POINTS.index(tuple(large["point"]))
        rewards.append(rewards_of(accuracy_of, large["target"])[at])
    assert rewards[1] > rewards[0] + 0.02


def test_several_costs_count(file, tmp_path):
    """A table's column and multiply-adds, for the costs of a published network."""
    overrides = ("cost=fps,madds,params", "targets.small=mobilenet_v3_small")
    with pytest.raises(UsageError, match=r"mobilenet_v3_small has no predicted cost: .* not in"):
        search(file, tmp_path / "search", *overrides)
    overrides = ("cost=madds,params", "targets.small=mobilenet_v3_small", "searcher.steps=2")
    opened = program.Search(config(file, *overrides), tmp_path, Console(quiet=True))
    pricing = opened.price()
    reference = objective.reference_network("mobilenet_v3_small", TOY)
    assert pricing.targets["small"] == {
        "madds": cost.madds(reference),
        "params": cost.params(reference),
    }
    # Relative to the space each cost has its own median.
    ratio = {name: pricing.targets["large"][name] / 1.3 for name in ("madds", "params")}
    sample = [TOY.to_spec(p) for p in TOY.sample(np.random.default_rng(0), 100)]
    assert ratio["madds"] == pytest.approx(np.median([cost.madds(s) for s in sample]))
    assert ratio["params"] == pytest.approx(np.median([cost.params(s) for s in sample]))
    reward = pricing.problem.rewards["large"]
    costs = {name: np.array([value]) for name, value in pricing.targets["large"].items()}
    assert reward(np.array([0.5]), costs).item() == pytest.approx(0.5)
    costs["params"] = costs["params"] * 2
    assert reward(np.array([0.5]), costs).item() == pytest.approx(0.5 - 0.3 / 2)


def test_a_column_is_a_cost(file, tmp_path):
    result, _ = search(file, tmp_path / "search", "cost=fps,madds", "searcher.steps=5")
    assert result["cost"] == {
        "name": "fps",
        "unit": "1 / (images/s)",
        "source": "fps as made up predicts it",
    }
    small = result["found"]["small"]
    assert small["costs"]["fps"] == small["cost"]
    assert small["cost"] == pytest.approx(small["costs"]["madds"] / 1e9, rel=0.05)
    # A network outside the space has no predicted cost, but is compared all the same.
    assert result["references"]["mobilenet_v3_small"]["cost"] is None


def test_it_is_resumed_and_repeated_to_the_bit(file, tmp_path):
    first, _ = search(file, tmp_path / "a")
    second, _ = search(file, tmp_path / "b")
    assert first == second
    (tmp_path / "b" / "search.json").unlink()
    assert search(file, tmp_path / "b")[0] == first
    other, _ = search(file, tmp_path / "c", "seed=1", "searcher.steps=2")
    assert other["found"] != first["found"]


def test_the_report_draws_it(file, tmp_path, capsys, monkeypatch):
    search(file, tmp_path / "search")
    read = search_result.read(tmp_path / "search")
    assert not read.is_trained and len(read.found[0].front) > 1
    drawn = []
    original = charts.front_of
    monkeypatch.setattr(charts, "front_of", lambda rows, x: drawn.extend(rows) or original(rows, x))
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "search"), f"--out={out}"]) == 0
    page = out.read_text()
    pairs = {(row["cost"], row["top1"]) for row in drawn}
    assert {(c * read.scale, top1) for n in read.found for c, top1 in n.front} <= pairs
    assert "No network was trained: top-1 is predicted." in page and "no candidates" in page
    assert "the training of the networks that it has learned from" in page
    capsys.readouterr()
    assert main(["report", str(tmp_path / "search"), "--format=md"]) == 0
    assert "predicted top-1 %" in capsys.readouterr().out


def test_the_published_table_is_fetched_once_for_a_folder(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(accel_nasbench, "fetch", lambda archive: fetched.append(archive) or b"")
    monkeypatch.setattr(accel_nasbench, "convert", lambda data: table())
    folder = tmp_path / "search"
    overrides = ("proxy.archive=a.tar.gz", "searcher.steps=2")
    first, _ = search("accel_nasbench", folder, *overrides)
    assert (folder / "table.json").is_file() and [str(p) for p in fetched] == ["a.tar.gz"]
    (folder / "search.json").unlink()
    assert search("accel_nasbench", folder, *overrides)[0] == first and len(fetched) == 1


def test_what_is_far_from_the_table_is_said(tmp_path):
    """The table knows only small networks, and the search is for large ones."""
    known = [p for p, madds in zip(POINTS, MADDS, strict=True) if madds < np.median(MADDS)]
    write_network_table(tmp_path / "t.json", table(known))
    said = io.StringIO()
    search(tmp_path / "t.json", tmp_path / "s", "targets.large=2.0", out=said)
    assert "warning: large lies outside what the table knows: " in said.getvalue()
    assert "warning: small" not in said.getvalue()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cost=energy", "cost: got 'energy', expected one of 'madds', 'params', 'ms', 'fps'"),
        ("cost=madds,madds", "cost: got 'madds,madds', which names a cost twice"),
        ("proxy.table=none.json", "none.json: there is no such file"),
        ("proxy.accuracy=fps", "accuracy: got 'fps', expected one of 'top1', 'other'"),
        ("targets.small=resnet", "a network: got 'resnet'"),
        ("targets.small=-1", "targets.small: got -1"),
        ("searcher.name=annealing", "searcher.name: got 'annealing'"),
        ("latency.max_error=0", "latency.max_error: got 0"),
        ("netadapt.enabled=True", "netadapt.enabled: NetAdapt narrows a trained network"),
    ],
)
def test_wrong_values_name_the_field(file, tmp_path, override, message):
    overrides = ["cost=ms", override] if override.startswith("latency") else [override]
    with pytest.raises(UsageError, match=re.escape(message)):
        search(file, tmp_path / "search", *overrides)
    assert not (tmp_path / "search").exists()


def test_an_absolute_target_is_of_one_cost(file, tmp_path):
    overrides = ("cost=madds,params", "relative_to=None", "targets.small=1e6")
    with pytest.raises(UsageError, match=r"targets\.\w+: got .* for several costs, madds,params"):
        search(file, tmp_path / "search", *overrides)


def test_a_table_without_a_space_cannot_be_searched(tmp_path):
    tree = {"format": "mbv3_jax network table", "version": 1, "name": "t", "source": "s"}
    spec = json.loads(spec_to_json(mobilenet_v3_small()))
    tree |= {"license": "CC0-1.0", "columns": {"top1": {"kind": "accuracy", "unit": "%"}}}
    (tmp_path / "t.json").write_text(json.dumps(tree | {"networks": [{"spec": spec, "top1": 67}]}))
    with pytest.raises(UsageError, match=r"proxy\.table: .*t\.json has no space to search"):
        search(tmp_path / "t.json", tmp_path / "search")


def test_a_latency_model_that_is_too_bad_is_refused(file, tmp_path, monkeypatch):
    def errors(model, table):
        return objective.cost_model.Errors(
            networks=8, mape=31.0, low=-50.0, high=50.0, spearman=0.5, kendall=0.4
        )

    monkeypatch.setattr(objective.cost_model, "judge", errors)
    monkeypatch.setattr(objective.cost_model, "fit", lambda table: cost.madds)

    def fill(path, table, *_, **__):
        table.pieces["a piece"] = 1.0

    monkeypatch.setattr(objective, "fill_table", fill)
    options = config(file, "cost=ms").latency
    arguments = (TOY, tmp_path / "latency.json", Console(quiet=True))
    with pytest.raises(
        RunError,
        match=r"a mean error of 31\.0%, more than latency\.max_error=10; delete .*latency\.json",
    ):
        objective._latency(options, *arguments)
    with options.unlocked():
        options.max_error = None
    assert objective._latency(options, *arguments)[0] is cost.madds
