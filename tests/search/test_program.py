import json
import os
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from paths import ROOT
from rich.console import Console

from mbv3_jax.arch import cost, spec_from_json, spec_to_json
from mbv3_jax.cli import train
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import installed
from mbv3_jax.report import search_result
from mbv3_jax.run.config import config_differences, config_from_json, config_to_json, parse_config
from mbv3_jax.search import presets, program, selection, strategies
from mbv3_jax.search.evaluators import Table
from mbv3_jax.search.netadapt.tuning import tuning_config
from mbv3_jax.search.objective import COUNTS, Costs, Problem, Reward
from mbv3_jax.search.policy_gradient import Factorised, Lstm, _compiled
from mbv3_jax.search.searchers import Evolution, Random
from mbv3_jax.search.settings import read_search_config, seed_config
from mbv3_jax.search.space import Space, Stage

SEARCH = str(ROOT / "configs" / "search" / "small.py")
QUIET = Console(quiet=True)
OPTIONS = ("name", "steps", "batch", "policy", "population", "tournament")


@pytest.fixture(scope="module")
def space(tiny_spec):
    """Four networks, as a preset."""
    stage = Stage(out=(8, 16), stride=2, kernel=(3, 5), expansion=(2,))
    space = Space(name="four", base=tiny_spec, stages=(stage,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "four", lambda: space)
        yield space


@pytest.fixture(scope="module")
def search(tiny_config, space):
    """The configuration of a search among four networks; it ends in seconds."""
    run = tiny_config("--config.total_steps=2", "--config.schedule.warmup_steps=0")
    shared = tiny_config("--config.total_steps=40", "--config.schedule.warmup_steps=0")
    for config in (run, shared):
        with config.unlocked():  # as configs/found.py does
            del config.net.name
            config.net.name = placeholder(str)
    madds = [cost.madds(space.to_spec(p)) for p in space.points()]
    return ConfigDict(
        {
            "program": "search",
            "seed": 0,
            "space": {"name": "four", "dropout": 0.1},
            "cost": "madds",
            "relative_to": None,
            "targets": {"small": float(min(madds)), "large": float(max(madds))},
            "reward": {"form": "absolute", "exponent": -5.0},
            "evaluator": "surrogate",
            "check": 2,
            "rounds": {"first": 2, "per_round": 2, "rounds": 1},
            "controller": {
                "policy": "factorised",
                "steps": 40,
                "batch": 8,
                "points": 4,
                "learning_rate": None,
            },
            "searcher": dict.fromkeys(OPTIONS),
            "netadapt": {"enabled": False, "split_fraction": None},
            "references": ("mobilenet_v3_small",),
            "shared": shared.to_dict(),
            "brief": run.to_dict(),
            "final": run.to_dict(),
        }
    ).lock()


def changed(config: ConfigDict, **fields) -> ConfigDict:
    """The configuration with other fields; a group keeps those that are not given."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name, value in fields.items():
            if isinstance(value, dict) and name in config:
                config[name].update(value)
            else:
                config[name] = value
    return config.lock()


@pytest.fixture(scope="module")
def whole(search, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searches") / "whole"
    return folder, program.run(search, folder, QUIET)


@pytest.mark.slow
def test_finds_and_trains_a_network_at_each_target(search, whole):
    folder, text = whole
    result = json.loads((folder / "search.json").read_text())
    for name in ("small", "large"):
        found, spec = result["found"][name], spec_from_json((folder / f"{name}.json").read_text())
        assert found["cost"] == cost.madds(spec) == search.targets[name]
        trained = spec_from_json((folder / "runs" / name / "spec.json").read_text())
        assert trained.blocks == spec.blocks
        summary = json.loads((folder / "runs" / name / "summary.json").read_text())
        assert found["top1"] == summary["eval"]["top1"]
        assert len(found["rewards"]) == 40
        assert np.mean(found["rewards"][-5:]) > np.mean(found["rewards"][:5])
        assert f"{folder / name}.json" in text
    assert len({tuple(c["point"]) for c in result["candidates"]}) == len(result["candidates"])
    assert list(result["references"]) == ["mobilenet_v3_small"]


@pytest.mark.slow
def test_the_report_draws_it(whole):
    from mbv3_jax.report.search_result import read

    search = read(whole[0])
    assert {n.name for n in search.networks} == {"small", "large", "mobilenet_v3_small"}


@pytest.mark.slow
def test_shared_weights_then_netadapt(search, tmp_path):
    config = search.copy_and_resolve_references()
    with config.unlocked():
        config.evaluator, config.references = "supernet", ()
        config.targets = {"one": 0.9 * search.targets.large}
        config.netadapt = {
            "enabled": True,
            "start": 1 / 0.9,
            "steps": 2,
            "delta": 0.02,
            "max_proposals": 2,
            "eval_split": None,
            "split_fraction": None,
        }
    folder = tmp_path / "search"
    text = program.run(config.lock(), folder, QUIET)
    result = json.loads((folder / "search.json").read_text())
    one = result["found"]["one"]
    spec = spec_from_json((folder / "one.json").read_text())
    assert one["cost"] == cost.madds(spec) <= config.targets.one
    assert one["adapted"][-1]["cost"] == one["cost"]
    assert (folder / "runs" / "one_found" / "summary.json").exists()
    assert 1 <= len(result["candidates"]) <= config.check
    assert len(one["rewards"]) == 30  # no learning in the first quarter
    assert program.run(config, folder, QUIET) == text  # nothing is left to do


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["price", "choose", "train"])
def test_cut_off_before_a_stage_it_ends_as_if_it_had_not_been(
    search, whole, tmp_path, monkeypatch, stage
):
    folder = tmp_path / "cut"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(program.Search, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            program.run(search, folder, QUIET)
    program.run(search, folder, QUIET)
    texts = [(f / "search.json").read_text() for f in (whole[0], folder)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_another_configuration_is_refused(search, whole):
    other = search.copy_and_resolve_references()
    with other.unlocked():
        other.targets.small = 1e6
    with pytest.raises(UsageError, match=r"targets\.small: this command 1000000"):
        program.run(other.lock(), whole[0], QUIET)


@pytest.mark.parametrize("argument", ["clutter", "imagenet"])
def test_the_configuration_opens_a_search(argument, tmp_path):
    config = parse_config(f"{SEARCH}:{argument}")
    search = program.Search(config, tmp_path, QUIET)
    assert set(search.references) == set(config.references)
    with config.unlocked():
        config.cost = "madds"
    search = program.Search(config.lock(), tmp_path, QUIET)
    pricing = search.price()
    cheapest, dearest = (
        pricing.problem.costs([p])["madds"].item()
        for p in (
            (0,) * len(search.space.decisions),
            tuple(len(d.choices) - 1 for d in search.space.decisions),
        )
    )
    targets = [pricing.targets[name]["madds"] for name in ("small", "large")]
    assert cheapest < targets[0] < targets[1] < dearest
    assert not config_differences(config, config_from_json(config_to_json(config)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.name=huge", "config: space: got 'huge'"),
        ("cost=energy", "config: cost: got 'energy', expected one of 'madds', 'params', 'ms'"),
        ("evaluator=oracle", "config: evaluator: got 'oracle'"),
        ("reward.exponent=0.5", "config: reward.exponent: got 0.5"),
        ("references=('resnet',)", "config: a network: got 'resnet'"),
        ("relative_to=resnet", "config: a network: got 'resnet'"),
        ("latency.target=gpu", "config: latency.target: got 'gpu', expected one of None, 'litert'"),
        ("latency.networks=0", "config: latency.networks: got 0"),
        ("latency.table=/nowhere.json", "/nowhere.json: No such file"),
        ("netadapt.delta=2.0", "config: netadapt.delta: got 2.0"),
        ("controller.learning_rate=fast", "config: controller.learning_rate: got 'fast'"),
        ("controller.points=-1", "config: controller.points: got -1"),
        ("finalists=-1", "config: finalists: got -1"),
        ("netadapt.start=0.5", "config: netadapt.start: got 0.5"),
        ("netadapt.split_fraction=1.5", "config: netadapt.split_fraction: got 1.5"),
        ("netadapt.split_fraction=0.1", "netadapt.eval_split is 'validation'; one must be None"),
        (
            "brief.seeds=(0,1)",
            r"got \(0, 1\), but a search trains with one seed: seed",
        ),
        ("shared.early_stop.patience=3", "got 3, but shared weights are trained to the end"),
        ("searcher.name=annealing", "config: searcher.name: got 'annealing', expected one of"),
    ],
)
def test_wrong_values_name_the_field(tmp_path, override, message):
    config = parse_config(SEARCH, [f"--config.{override}"])
    with pytest.raises(UsageError, match=message):
        program.Search(config, tmp_path, QUIET)


def test_a_supernet_without_a_searcher_takes_no_options_of_one(tmp_path):
    options = ("evaluator=supernet", "controller.points=2", "searcher.steps=9")
    config = parse_config(SEARCH, [f"--config.{option}" for option in options])
    with pytest.raises(UsageError, match=r"searcher\.steps: got 9, but searcher\.name is None"):
        program.Search(config, tmp_path, QUIET)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["searcher.population=8"], "'policy_gradient' has no option population; its options:"),
        (["searcher.name=random", "searcher.policy=lstm"], "'random' has no option policy"),
        (["searcher.name=evolution", "searcher.tournament=30"], "searcher.tournament: got 30"),
        (["searcher.policy=transformer"], "searcher.policy: got 'transformer'"),
        (["controller.policy=transformer"], "searcher.policy: got 'transformer'"),
        (["searcher.steps=0"], "searcher.steps: got 0"),
        (["searcher.batch=0"], "searcher.batch: got 0"),
        (["rounds.first=1"], "config: rounds.first: got 1"),
    ],
)
def test_wrong_options_of_a_surrogates_searcher_name_the_field(tmp_path, overrides, message):
    overrides = ["evaluator=surrogate", *overrides]
    config = parse_config(SEARCH, [f"--config.{override}" for override in overrides])
    with pytest.raises(UsageError, match=message):
        program.Search(config, tmp_path, QUIET)


def _split(data: ConfigDict) -> tuple:
    """What decides which images are held out."""
    return data.name, data.train_split, data.eval_split, data.split_fraction


@pytest.mark.parametrize("argument", ["clutter", "imagenet"])
def test_nothing_is_chosen_by_the_split_that_is_reported(argument):
    config = parse_config(f"{SEARCH}:{argument}")
    reported = _split(config.final.data)
    before_netadapt = seed_config(config)
    tuned = tuning_config(
        before_netadapt, steps=1, rate=None, eval_split=config.netadapt.eval_split, seed=0
    )
    chosen_by = {_split(data) for data in (config.shared.data, config.brief.data, tuned.data)}
    assert len(chosen_by) == 1 and reported not in chosen_by
    assert reported[2:] == (None, None)  # clutter's test, and ImageNet's validation images
    assert config.final == parse_config(f"{SEARCH}:{argument}").final  # left as it was


def test_netadapt_gets_the_split_to_choose_by(search, space, tmp_path, monkeypatch):
    options = {"enabled": True, "start": 1.0, "steps": 1, "delta": 0.02, "max_proposals": None}
    config = changed(search, netadapt=options | {"eval_split": "validation"})
    stages = program.Search(config, tmp_path, QUIET)
    dear = space.to_spec((1, 1))
    (tmp_path / "small_found.json").write_text(spec_to_json(dear))
    calls = []
    monkeypatch.setattr(program, "train", lambda config, *_: calls.append(config))
    monkeypatch.setattr(
        program,
        "shrink",
        lambda *_, **options: calls.append(options) or {"spec": dear, "steps": []},
    )
    stages.adapt(stages.price(), "small")
    trained, options = calls
    assert options["eval_split"] == "validation"
    assert trained.data.to_dict() == config.final.data.to_dict()


def test_references_are_made_for_the_images_and_for_each_target(tmp_path):
    config = parse_config(SEARCH, ["--config.cost=madds"])
    search = program.Search(config, tmp_path, QUIET)
    pricing = search.price()
    fitted = search.comparisons(pricing)
    assert set(fitted) == {"mobilenet_v3_small_for_small", "mobilenet_v3_small_for_large"}
    published = search.references["mobilenet_v3_small"]
    for name, spec in fitted.items():
        target = pricing.targets[name.rpartition("_")[2]]["madds"]
        assert cost.madds(spec) == pytest.approx(target, rel=0.1)
        assert (spec.name, spec.num_classes) == (name, config.space.num_classes)
        # 4 pixels are left, as in the networks of the space, or 2 where that costs too much; the
        # first strides are those that are kept.
        kept = [b.stride for b in spec.blocks]
        left_out = 3 if name.endswith("large") else 4
        assert spec.stem.stride * np.prod(kept) == (8 if name.endswith("large") else 16)
        assert kept[:left_out] == [b.stride for b in published.blocks[:left_out]]
        assert set(kept[left_out:]) == {1}
    with config.unlocked():
        config.fit_references = False
    search = program.Search(config.lock(), tmp_path, QUIET)
    assert search.comparisons(pricing) == search.references


# Searchers: reachable from a configuration, and each runs what its name says.

ACCURACIES = {(0, 0): 0.5, (0, 1): 0.6, (1, 0): 0.9, (1, 1): 0.7}  # the best is not at an end


@pytest.fixture
def stages(search, tmp_path, monkeypatch):
    """stages(**fields) -> the search with these fields; accuracies, not costs, decide in it."""
    table = Table({point: [accuracy] * 2 for point, accuracy in ACCURACIES.items()})
    monkeypatch.setattr(
        selection.Trainings, "__call__", lambda self, points, seed: table.evaluate(points)[0]
    )

    class Controllers:
        def __init__(self, space):
            self.trace = {"small": [0.1], "large": [0.2]}
            self.searchers = {name: Random(space, 0) for name in self.trace}

        def modes(self):
            return dict.fromkeys(self.trace, (0, 0))

    monkeypatch.setattr(
        selection, "train_supernet", lambda _, problem, *__, **___: (
            Controllers(problem.space), table
        )
    )  # fmt: skip

    def make(**fields):
        config = changed(search, reward={"exponent": -0.01}, **fields)
        return program.Search(config, tmp_path, QUIET)

    return make


SPIES = {
    "policy_gradient": (Factorised, "sample"),
    "lstm": (Lstm, "sample"),
    "evolution": (Evolution, "ask"),
    "random": (Random, "ask"),
    "nsga2": (strategies, "nsga2"),
}


@pytest.mark.parametrize("evaluator", ["surrogate", "supernet"])
@pytest.mark.parametrize("kind", SPIES)
def test_each_searcher_runs_on_each_evaluator(stages, monkeypatch, kind, evaluator):
    if kind == "nsga2" and not (installed("pymoo") or os.environ.get("MBV3_REQUIRE_PEERS")):
        pytest.skip("pymoo is not installed")
    _compiled.cache_clear()
    used = []
    for name, (owner, method) in SPIES.items():
        original = getattr(owner, method)
        monkeypatch.setattr(
            owner,
            method,
            lambda *a, name=name, original=original, **k: used.append(name) or original(*a, **k),
        )
    searcher = {"name": kind, "steps": 12, "batch": 6}
    if kind == "lstm":
        searcher |= {"name": "policy_gradient", "policy": "lstm"}
    if kind == "evolution":
        searcher |= {"population": 4, "tournament": 2}
    search = stages(evaluator=evaluator, searcher=searcher)
    result = search.choose(search.price().problem)
    assert set(used) == {kind}
    for network in result["found"].values():
        assert network["point"] == [1, 0]  # the most accurate one
        if kind != "nsga2":
            assert len(network["rewards"]) == 12 and "front" not in network
            continue
        assert 1 <= len(network["rewards"]) <= 12  # it ends when no network is new
        found = [(entry["cost"], entry["predicted"]) for entry in network["front"]]
        assert found == sorted(found) and found[-1][1] > 0.75  # accuracy rises with cost
        if evaluator == "surrogate":
            continue
        points = list(ACCURACIES)
        costs = search.price().problem.costs(points)["madds"]
        pairs = zip(costs.tolist(), ACCURACIES.values(), strict=True)
        everything = sorted(pairs, key=lambda pair: (pair[0], -pair[1]))
        best = np.maximum.accumulate([accuracy for _, accuracy in everything])
        rises = [0, *(np.flatnonzero(np.diff(best) > 0) + 1)]
        assert found == [(everything[i][0], pytest.approx(everything[i][1])) for i in rises]
    assert json.loads((search.folder / "found.json").read_text()) == result


@pytest.mark.parametrize("seed", range(3))
def test_a_surrogate_chooses_among_what_was_trained(stages, seed):
    search = stages(evaluator="surrogate", seed=seed, rounds={"first": 2, "rounds": 0})
    result = search.choose(search.price().problem)
    trained = [candidate["point"] for candidate in result["candidates"]]
    best = max(trained, key=lambda point: ACCURACIES[tuple(point)])
    assert len(trained) == 2
    assert {tuple(network["point"]) for network in result["found"].values()} == {tuple(best)}


def test_a_surrogate_trains_what_is_proposed_for_each_target(stages, monkeypatch):
    asked = []

    def propose(*arguments, count, **options):
        asked.append(dict(arguments[4].targets))
        return []

    monkeypatch.setattr(selection, "propose_trainings", propose)
    search = stages(evaluator="surrogate", rounds={"rounds": 1})
    targets = search.price().targets
    search.choose(search.price().problem)
    assert asked == [targets["large"], targets["small"]]


def test_a_supernets_controllers_are_refined_towards_accuracy(stages):
    search = stages(evaluator="supernet")
    result = search.choose(search.price().problem)["found"]
    assert [network["point"] for network in result.values()] == [[1, 0], [1, 0]]
    assert {name: network["rewards"] for name, network in result.items()} == {
        "small": [0.1],
        "large": [0.2],
    }


@pytest.mark.parametrize("points", [0, 4])
def test_of_the_best_by_a_supernet_some_are_trained_and_the_best_is_taken(stages, points):
    believed = {point: 1 - accuracy for point, accuracy in ACCURACIES.items()}  # quite wrong
    weights = Table({point: [value] * 2 for point, value in believed.items()})
    with pytest.MonkeyPatch.context() as patch:
        original = selection.train_supernet
        patch.setattr(selection, "train_supernet", lambda *a, **k: (original(*a, **k)[0], weights))
        search = stages(evaluator="supernet", check=0, finalists=3, controller={"points": points})
        result = search.choose(search.price().problem)
    # The three that it believes to be the best are all but (1, 0).
    assert {tuple(n["point"]) for n in result["found"].values()} == {(1, 1)}
    assert {tuple(c["point"]) for c in result["candidates"]} == set(ACCURACIES) - {(1, 0)}
    assert result["agreement"]["count"] == 0


def test_the_networks_that_check_a_supernet_are_spread(stages):
    space = presets.preset("toy")
    estimates = {p: [sum(p) / 10] for p in space.points()}
    costs = Costs(space, COUNTS)
    reward = Reward(targets={"madds": 1e6})
    problem = Problem(space=space, costs=costs, cost_name="madds", rewards={"one": reward})
    chosen = selection.spread(problem, Table(estimates), 24, 0)
    assert len(set(chosen)) == 24
    madds = costs(chosen)["madds"]
    assert np.all(np.diff(madds) > 0)
    everything = costs(list(estimates))["madds"]
    quarters = np.searchsorted(np.quantile(everything, (0.25, 0.5, 0.75)), madds)
    assert min(np.bincount(quarters, minlength=4)) >= 4
    low, high = (np.mean([estimates[p] for p in chosen[start::2]]) for start in (0, 1))
    assert high > low + 0.15
    assert selection.spread(problem, Table(estimates), 0, 0) == []
    assert chosen == selection.spread(problem, Table(estimates), 24, 0)
    assert chosen != selection.spread(problem, Table(estimates), 24, 1)


def test_the_first_networks_of_a_surrogate_cost_what_is_searched_for(stages, monkeypatch):
    space = presets.preset("toy")
    costs = Costs(space, COUNTS)
    cheap, dear = np.quantile(costs(list(space.points()))["madds"], (0.3, 0.8))
    rewards = {n: Reward(targets={"madds": t}) for n, t in (("small", cheap), ("large", dear))}
    problem = Problem(space=space, costs=costs, cost_name="madds", rewards=rewards)
    made = []

    class Noted(selection.Rounds):
        def run(self, *args, **options):
            made.append(self)
            raise InterruptedError

    monkeypatch.setattr(selection, "Rounds", Noted)
    for within in (None, 0.1):
        search = stages(evaluator="surrogate", rounds={"within": within})
        with pytest.raises(InterruptedError):
            selection.by_surrogate(
                search.config, problem, search.strategy, search.folder, search.console
            )
    anywhere, near = made
    assert anywhere.draw is None and anywhere.groups is None
    points = near.draw(np.random.default_rng(0), 12)[:12]
    madds = costs(points)["madds"]
    for first, target in ((0, cheap), (1, dear)):
        assert np.all(np.abs(madds[first::2] / target - 1) <= 0.1)
    assert near.groups(points).tolist() == [0, 1] * 6
    assert points != near.draw(np.random.default_rng(1), 12)[:12]


def test_a_target_that_no_network_costs_gets_the_nearest(stages):
    space = presets.preset("toy")
    costs = Costs(space, COUNTS)
    dearest = costs(list(space.points()))["madds"].max()
    rewards = {"one": Reward(targets={"madds": 2 * dearest})}
    problem = Problem(space=space, costs=costs, cost_name="madds", rewards=rewards)
    points = selection._draw_near_targets(problem, 0.1, np.random.default_rng(0), 4)
    madds = costs(points)["madds"]
    assert madds[0] == dearest and np.all(np.diff(madds) <= 0)


def test_the_default_searcher_is_the_policy_gradient_of_the_controller(stages):
    results = []
    for searcher in ({}, {"name": "policy_gradient", "steps": 40, "batch": 8}):
        search = stages(evaluator="surrogate", searcher=searcher)
        search.folder.mkdir(exist_ok=True)
        results.append(search.choose(search.price().problem))
        for file in ("found.json", "rounds.json"):
            (search.folder / file).unlink()
    assert results[0] == results[1] and len(results[0]["found"]["small"]["rewards"]) == 40


def test_the_old_name_of_the_lstm_is_known(stages):
    controller = {"policy": "autoregressive", "steps": 3}
    search = stages(evaluator="surrogate", controller=controller)
    assert search.choose(search.price().problem)["found"]


# Folders of other versions.


def _as_version_1(folder):
    """Makes a folder what commit c7ffdd9 would have written."""
    (folder / "format.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["searcher"], config["netadapt"]["split_fraction"]
    (folder / "config.json").write_text(json.dumps(config, indent=1))


@pytest.mark.slow
@pytest.mark.parametrize("missing", [(), ("search.json",), ("search.json", "found.json")])
def test_a_folder_of_version_1_is_resumed(search, whole, tmp_path, missing):
    folder = tmp_path / "search"
    shutil.copytree(whole[0], folder)
    _as_version_1(folder)
    for name in missing:
        (folder / name).unlink()
    for path in folder.glob("runs/*/config.json"):  # they name the file of their network by path
        path.write_text(path.read_text().replace(str(whole[0]), str(folder)))
    text = program.run(search, folder, QUIET)
    assert text == whole[1].replace(str(whole[0]), str(folder))
    assert (folder / "search.json").read_text() == (whole[0] / "search.json").read_text()
    assert search_result.read(folder).networks
    assert read_search_config(folder).brief.to_dict() == search.brief.to_dict()


@pytest.mark.slow
def test_a_folder_of_a_newer_version_is_refused_in_one_line(search, whole, tmp_path):
    folder = tmp_path / "search"
    shutil.copytree(whole[0], folder)
    (folder / "format.json").write_text(json.dumps({"version": 99}))
    for read in (
        lambda: program.run(search, folder, QUIET),
        lambda: search_result.read(folder),
        lambda: read_search_config(folder),
    ):
        with pytest.raises(UsageError, match="newer version of mbv3_jax, in format 99") as error:
            read()
        assert len(str(error.value).splitlines()) == 1


def test_a_run_folder_is_not_a_search_folder(tmp_path, tiny_config):
    (tmp_path / "config.json").write_text(config_to_json(tiny_config()))
    with pytest.raises(UsageError, match="is not a search folder, but that of a run"):
        read_search_config(tmp_path)


def test_a_search_killed_before_its_configuration_was_written_can_be_started(
    search, tmp_path, monkeypatch
):
    result = {"cost": {"unit": "ms"}, "found": {}}
    monkeypatch.setattr(program.Search, "run", lambda self: result)
    for name in ("lock", "format.json", ".config.json.0a1b2c3d.tmp"):
        (tmp_path / name).write_text("")
    assert program.run(search, tmp_path, QUIET) == f"search folder: {tmp_path}"
    assert read_search_config(tmp_path).program == "search"


def test_a_folder_of_something_else_is_left_alone(search, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="is not a search folder; choose another with --workdir"):
        program.run(search, tmp_path, QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_hold_checkpoints_is_refused_at_once(search, tmp_path):
    with pytest.raises(UsageError, match=r"with \\ in it, which Orbax takes for /; choose another"):
        program.run(search, tmp_path / "a\\b", QUIET)
    config = changed(search, targets=ConfigDict({"lar\\ge": 2.0}))
    with pytest.raises(UsageError, match=r"config: targets: 'lar.+ge' needs another name"):
        program.run(config, tmp_path / "search", QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_says_which_program_runs_it(tmp_path, monkeypatch, capsys):
    arguments = [f"--config={SEARCH}", f"--workdir={tmp_path / 'run'}"]
    ran = []
    monkeypatch.setattr(program, "run", lambda config, workdir, console: ran.append(workdir))
    assert train.main(arguments) == 0
    assert ran == [tmp_path / "run"]
    assert train.main([*arguments, "--config.program=sweep"]) == 2
    assert "config.program: got 'sweep'" in capsys.readouterr().err
    assert train.default_workdir("configs/search/small.py").name == "search-small"
