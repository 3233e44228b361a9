import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from paths import ROOT
from rich.console import Console

from mbv3_jax.arch import cost, spec_from_json
from mbv3_jax.cli import train
from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.config import config_differences, config_from_json, config_to_json, parse_config
from mbv3_jax.search import presets, program
from mbv3_jax.search.space import Space, Stage

SEARCH = str(ROOT / "configs" / "search" / "small.py")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def search(tiny_config, tiny_spec):
    """The configuration of a search among four networks; it ends in seconds."""
    stage = Stage(out=(8, 16), stride=2, kernel=(3, 5), expansion=(2,))
    space = Space(name="four", base=tiny_spec, stages=(stage,))
    patch = pytest.MonkeyPatch()
    patch.setitem(presets.PRESETS, "four", lambda: space)
    run = tiny_config("--config.total_steps=2", "--config.schedule.warmup_steps=0")
    shared = tiny_config("--config.total_steps=40", "--config.schedule.warmup_steps=0")
    for config in (run, shared):
        with config.unlocked():  # as configs/found.py does
            del config.net.name
            config.net.name = placeholder(str)
    madds = [cost.madds(space.to_spec(p)) for p in space.points()]
    yield ConfigDict(
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
            "netadapt": {"enabled": False},
            "references": ("mobilenet_v3_small",),
            "shared": shared.to_dict(),
            "brief": run.to_dict(),
            "final": run.to_dict(),
        }
    ).lock()
    patch.undo()


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
@pytest.mark.parametrize("stage", ["price", "find", "train"])
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
    search.price()
    cheapest, dearest = (
        search.costs([p])["madds"].item()
        for p in (
            (0,) * len(search.space.decisions),
            tuple(len(d.choices) - 1 for d in search.space.decisions),
        )
    )
    assert cheapest < search.targets["small"] < search.targets["large"] < dearest
    assert not config_differences(config, config_from_json(config_to_json(config)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.name=tiny", "config: space: got 'tiny'"),
        ("cost=energy", "config: cost: got 'energy', expected one of 'madds', 'ms'"),
        ("evaluator=oracle", "config: evaluator: got 'oracle'"),
        ("reward.exponent=0.5", "config: reward.exponent: got 0.5"),
        ("references=('resnet',)", "config: a network: got 'resnet'"),
        ("relative_to=resnet", "config: a network: got 'resnet'"),
        ("latency.target=gpu", "config: latency.target: got 'gpu', expected one of None, 'litert'"),
        ("latency.networks=0", "config: latency.networks: got 0"),
        ("latency.table=/nowhere.json", "/nowhere.json: No such file"),
        ("netadapt.delta=2.0", "config: netadapt.delta: got 2.0"),
        ("controller.learning_rate=fast", "config: controller.learning_rate: got 'fast'"),
        ("controller.points=0", "config: controller.points: got 0"),
        ("netadapt.start=0.5", "config: netadapt.start: got 0.5"),
    ],
)
def test_wrong_values_name_the_field(tmp_path, override, message):
    config = parse_config(SEARCH, [f"--config.{override}"])
    with pytest.raises(UsageError, match=message):
        program.Search(config, tmp_path, QUIET)


def test_only_the_entry_that_has_a_program_runs_it(tmp_path, capsys):
    arguments = [f"--config={SEARCH}", f"--workdir={tmp_path / 'run'}"]
    assert train.main(arguments) == 2
    assert "config.program: got 'search'" in capsys.readouterr().err
    ran = []
    programs = {"search": lambda config, workdir, console: ran.append(workdir) or "done"}
    assert train.main(arguments, programs) == 0
    assert ran == [tmp_path / "run"]
    assert train.default_workdir("configs/search/small.py").name == "search-small"
