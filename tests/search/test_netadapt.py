import itertools
import json
import shutil
import types

import jax
import numpy as np
import pytest
from rich.console import Console

from mbv3_jax.__main__ import main
from mbv3_jax.arch import cost, spec_from_json
from mbv3_jax.core.errors import Preempted, RunError, UsageError
from mbv3_jax.latency.cost_model import work
from mbv3_jax.latency.pieces import pieces
from mbv3_jax.latency.table import Table
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.model import load_model
from mbv3_jax.search.netadapt import adapt, masks, tuning
from mbv3_jax.search.netadapt.log import Log
from mbv3_jax.train.loop import train

TOP1 = tuning.Tuner.top1
QUIET = Console(quiet=True)
OPTIONS = {"steps": 2, "delta": 0.04, "divisor": 4, "console": QUIET}


@pytest.fixture(scope="module", autouse=True)
def varied():
    """Accuracies that follow from the weights and differ, which those of tiny networks do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Tuner, "top1", lambda self, variables: _fraction(variables))
        yield


def _fraction(variables):
    kernel = np.asarray(variables["params"]["logits"]["kernel"], np.float64)
    return float(np.abs(kernel).sum() * 1e4 % 1)


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("netadapt") / "run"
    train(tiny_config("--config.total_steps=4", "--config.eval_every_steps=4"), folder, QUIET)
    return folder


@pytest.fixture(scope="module")
def target(run):
    return 0.88 * cost.madds(load_model(run).spec)


@pytest.fixture(scope="module")
def whole(run, target, tmp_path_factory):
    """A run that nothing cut off, and its result."""
    out = tmp_path_factory.mktemp("netadapt") / "whole"
    return out, adapt.shrink(run, cost.madds, target, out, **OPTIONS)


def _texts(folder):
    return [(folder / name).read_text() for name in ("netadapt.json", "spec.json")]


def test_it_takes_the_best_proposal_until_the_target(run, target, whole):
    out, found = whole
    seed, spec = load_model(run), spec_from_json((out / "spec.json").read_text())
    assert found["spec"] == spec and spec.name == "tiny_netadapt"
    costs = [found["seed"]["cost"], *(s["cost"] for s in found["steps"])]
    assert costs[0] == cost.madds(seed.spec) and costs[-1] == cost.madds(spec) == found["cost"]
    assert len(found["steps"]) > 1 and costs[-1] <= target < costs[-2]
    assert all(a - b >= 0.04 * costs[0] for a, b in itertools.pairwise(costs))
    before = found["seed"]
    for step in found["steps"]:
        missing = before["cost"] - target
        ratios = {
            p["change"]: (p["accuracy"] - before["accuracy"]) / min(p["saved"], missing)
            for p in step["proposals"]
        }
        assert len(ratios) > 1 and ratios[step["change"]] == max(ratios.values())
        before = step
    assert [p.name for p in (out / "weights").iterdir()] == [str(len(found["steps"]))]


def test_what_is_saved_beyond_the_target_does_not_count():
    """Else the last step takes what saves most for its loss, however little was missing."""
    proposals = [("a", 30.0, 0.86), ("b", 3.0, 0.895), ("c", 2.5, 0.88)]
    log = types.SimpleNamespace(
        settings={"target": 100.0},
        pending=[{"change": c, "saved": s, "accuracy": a} for c, s, a in proposals],
    )
    work = adapt._Adapt(None, cost.madds, log, None, None, QUIET, str)
    chosen = {
        over: proposals[work._best({"cost": 100 + over, "accuracy": 0.9})][0]
        for over in (2.0, 60.0)
    }
    assert chosen == {2.0: "b", 60.0: "a"}


def test_the_result_is_a_network_like_any_other(run, whole, capsys):
    out, found = whole
    model = load_model(out / "model")
    assert model.spec == found["spec"]
    assert model.preprocessing == load_model(run).preprocessing
    assert main(["eval", f"--import={out / 'model'}", "--data=synthetic", "--batch=16"]) == 0
    assert "top1" in capsys.readouterr().out


def test_what_is_done_is_not_done_again(run, target, whole, monkeypatch):
    out, found = whole
    monkeypatch.setattr(tuning.Tuner, "tune", None)
    before = _texts(out)
    assert adapt.shrink(run, cost.madds, target, out, **OPTIONS) == found
    assert _texts(out) == before
    # A latency model predicts the target a little differently on another processor.
    nearly = float(np.nextafter(target, 2 * target))
    assert adapt.shrink(run, cost.madds, nearly, out, **OPTIONS) == found


@pytest.mark.slow
@pytest.mark.parametrize("checks", [4, 7, 11, 14])
def test_cut_off_anywhere_it_ends_as_if_it_had_not_been(
    run, target, whole, tmp_path, monkeypatch, checks
):
    out, counted, check = tmp_path / "cut", [], Interrupt.check

    def stop(self, **options):
        check(self, **options)
        counted.append(1)
        if len(counted) > checks:
            raise Preempted

    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "check", stop)
        with pytest.raises(Preempted):
            adapt.shrink(run, cost.madds, target, out, **OPTIONS)
    log = json.loads((out / "netadapt.json").read_text())
    assert log["pending"] or log["steps"]
    number = len(log["steps"]) + 1
    left = [out / ".model.0a1b2c3d.tmp", out / "weights" / f".{number}.0a1b2c3d.tmp"]
    mine = [out / "model.tmp", out / "weights" / f"{number}.tmp"]
    for folder in left + mine:
        folder.mkdir(parents=True)
    adapt.shrink(run, cost.madds, target, out, **OPTIONS)
    assert [folder.exists() for folder in left + mine] == [False, False, True, True]
    assert _texts(out) == _texts(whole[0])
    ours, theirs = (load_model(f / "model").variables for f in (out, whole[0]))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_folder_of_version_1_is_read_and_resumed(run, target, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    (out / "format.json").unlink()
    (out / "spec.json").unlink()
    shutil.rmtree(out / "model")  # killed before the end
    assert adapt.shrink(run, cost.madds, target, out, **OPTIONS)["spec"] == whole[1]["spec"]
    assert _texts(out) == _texts(whole[0])


def test_a_folder_of_a_newer_version_is_refused(run, target, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    (out / "format.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(UsageError, match="newer version of mbv3_jax, in format 99") as error:
        adapt.shrink(run, cost.madds, target, out, **OPTIONS)
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture
def tuner(run):
    model = load_model(run)
    config = json.loads((run / "config.json").read_text())
    config = tuning.tuning_config(
        tuning.ConfigDict(config), steps=2, rate=0.1, eval_split=None, seed=3
    )
    return tuning.Tuner(run, model, config, Interrupt())


def test_the_accuracy_is_that_of_an_evaluation(run, tuner):
    summary = json.loads((run / "summary.json").read_text())
    assert TOP1(tuner, load_model(run).variables) == summary["eval"]["top1"]
    assert tuner.split == summary["split"]


def test_all_proposals_share_one_program_and_leave_the_rest_zero(run, tuner):
    model = load_model(run)
    kept = masks.whole(model.spec)
    narrower = kept | {
        "block1/expansion": np.arange(3, 11),
        "block1/squeezed": np.array([1]),
        "stem": np.array([0, 2, 7]),
    }
    ones = masks.mask(model.spec, narrower)["params"]
    for channels in (kept, narrower):
        tuned = tuner.tune(model.variables, channels, 5)
    assert all(
        np.all(np.asarray(x)[one == 0] == 0)
        for x, one in zip(jax.tree.leaves(tuned["params"]), jax.tree.leaves(ones), strict=True)
    )
    again, other = (tuner.tune(model.variables, narrower, number) for number in (5, 6))
    jax.tree.map(np.testing.assert_array_equal, tuned, again)
    assert not np.array_equal(
        again["params"]["logits"]["kernel"], other["params"]["logits"]["kernel"]
    )
    assert tuner._experiment.train_step.func._cache_size() == 1


def test_it_does_not_resume_with_another_teacher(run, target, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    teacher = {"path": "/large", "network": "tiny", "digest": "a" * 64}

    class Taught:
        split = "test"

        def __init__(self, *_):
            self.teachers, self.hierarchy = [teacher], "child,parent\n"

        def top1(self, variables):
            raise Stopped

    monkeypatch.setattr(adapt, "Tuner", Taught)
    for _ in range(2):  # the first leaves teacher.json and nothing else
        with pytest.raises(Stopped):
            adapt.shrink(run, cost.madds, target, tmp_path / "out", **OPTIONS)
    teacher["digest"] = "b" * 64
    with pytest.raises(UsageError, match=r"/large is another teacher .* or choose another --out"):
        adapt.shrink(run, cost.madds, target, tmp_path / "out", **OPTIONS)


def test_the_fine_tuning_is_at_a_tenth_of_the_rate(tiny_config):
    config = tiny_config("--config.total_steps=None", "--config.total_epochs=3")
    tuned = tuning.tuning_config(config, steps=7, rate=None, eval_split="test", seed=5)
    assert (tuned.total_steps, tuned.total_epochs, tuned.seed) == (7, None, 5)
    assert (tuned.schedule.name, tuned.schedule.warmup_steps) == ("constant", 0)
    assert tuned.schedule.base_lr == pytest.approx(0.001)
    assert tuned.ema_decay is None and tuned.data.eval_split == "test"


@pytest.mark.parametrize(
    "option, message",
    [
        ({"steps": 0}, "steps: got 0"),
        ({"rate": 0.0}, "rate: got 0.0"),
        ({"delta": 1.0}, "delta: got 1.0"),
        ({"divisor": 0}, "divisor: got 0"),
        ({"max_proposals": 0}, "max_proposals: got 0"),
        ({"keep": "last"}, "keep: got 'last'"),
        ({"eval_split": "none"}, "eval_split"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_written(run, target, tmp_path, option, message):
    with pytest.raises(UsageError, match=message):
        adapt.shrink(run, cost.madds, target, tmp_path / "out", **OPTIONS | option)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_hold_checkpoints_is_refused(run, target, tmp_path):
    with pytest.raises(UsageError, match=r"a\\b: checkpoints .*; choose another --out"):
        adapt.shrink(run, cost.madds, target, tmp_path / "a\\b", **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_reached_already_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match=r"target: got .* expected above zero and below"):
        adapt.shrink(run, cost.madds, 1e9, tmp_path / "out", **OPTIONS)


def test_another_run_in_the_folder_is_refused(run, target, whole, tmp_path):
    out, _ = whole
    with pytest.raises(UsageError, match=r"target: this command 100000\.0, the folder"):
        adapt.shrink(run, cost.madds, 1e5, out, **OPTIONS)
    with pytest.raises(UsageError, match=r"schedule\.base_lr: this command 0\.5"):
        adapt.shrink(run, cost.madds, target, out, **OPTIONS, rate=0.5)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"holds notes\.txt and no netadapt\.json"):
        adapt.shrink(run, cost.madds, target, tmp_path, **OPTIONS)


def test_a_damaged_log_is_named(run, target, tmp_path):
    (tmp_path / "netadapt.json").write_text("{")
    with pytest.raises(RunError, match=r"netadapt\.json is damaged"):
        adapt.shrink(run, cost.madds, target, tmp_path, **OPTIONS)


@pytest.mark.parametrize("channels", [[], [0, 0], [-1], [10**6]])
def test_channels_that_a_network_does_not_have_are_named(run, whole, tmp_path, channels):
    out, _ = whole
    tree = json.loads((out / "netadapt.json").read_text())
    name = next(iter(tree["network"]["kept"]))
    tree["network"]["kept"][name] = channels
    (tmp_path / "netadapt.json").write_text(json.dumps(tree))
    log = Log(tmp_path, tree["settings"])
    with pytest.raises(RunError, match=r"netadapt\.json is damaged: network\.kept: "):
        log.network(load_model(run).spec)


def test_it_says_what_is_reached_where_nothing_saves_enough(run, target, tmp_path):
    with pytest.raises(RunError, match=r"after 0 steps no proposal saves .* reached .*, not"):
        adapt.shrink(run, cost.madds, target, tmp_path / "out", **OPTIONS | {"delta": 0.9})


def test_a_loss_that_is_not_finite_ends_it(run, target, tmp_path):
    with pytest.raises(RunError, match="the loss of a fine-tuning is nan after 2 steps"):
        adapt.shrink(run, cost.madds, target, tmp_path / "out", **OPTIONS, rate=1e30)


def test_a_request_to_stop_is_met_with_the_code_that_says_so(run, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise Preempted

    monkeypatch.setattr(tuning.Tuner, "tune", stop)
    out = tmp_path / "out"
    command = ["search", "netadapt", f"--run={run}", f"--out={out}", "--divisor=4"]
    assert main([*command, "--target-madds=1.2e5"]) == 75
    assert "preempted; run the same command again to resume" in capsys.readouterr().err
    assert (out / "netadapt.json").exists() and not (out / "spec.json").exists()


def test_the_command_shrinks_to_a_latency(run, tmp_path, capsys):
    spec, table, out = load_model(run).spec, tmp_path / "table.json", tmp_path / "out"
    ms = {p: sum(work(p).values()) - work(p)["call"] for p in pieces(spec)}
    Table("litert", 1, {"cpu": "a phone"}, {}, ms).write(table)
    command = ["search", "netadapt", f"--run={run}", f"--out={out}", "--steps=1", "--divisor=4"]
    assert main([*command, "--target-ms=1e9", f"--table={table}"]) == 2
    text = capsys.readouterr().err
    total = float(text.split("below the ")[1].split(" ms")[0])
    options = [f"--target-ms={0.98 * total}", f"--table={table}", "--max-proposals=1"]
    assert main([*command, *options]) == 0
    text = capsys.readouterr().out
    assert " ms " in text and f"train --config=found:spec={out}/spec.json,TASK" in text
    assert spec_from_json((out / "spec.json").read_text()).name == "tiny_netadapt"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--target-ms=1"], "--target-ms needs --table"),
        (["--target-ms=1", "--table=none.json"], "none.json: No such file"),
        (["--target-madds=1", "--table=none.json"], "--table: has an effect only with --target-ms"),
        (["--target-madds=1e5"], "is not a run folder"),
        (["--target-madds=1e5", "--config.seed=1"], "unknown option --config.seed=1"),
    ],
)
def test_the_command_names_what_is_wrong(tmp_path, capsys, arguments, message):
    command = ["search", "netadapt", f"--run={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err
