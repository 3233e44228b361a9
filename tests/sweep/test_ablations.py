"""The sweeps in configs/ablations."""

import importlib

import pytest
from paths import ROOT

from mbv3_jax.arch import build
from mbv3_jax.arch.published import ABLATIONS, ablation
from mbv3_jax.run.config import parse_config, spec_of
from mbv3_jax.sweep.combinators import group_of

NAMES = sorted(ABLATIONS)


def sweep_of(name, *argument):
    return importlib.import_module(f"configs.ablations.{name}").get_sweep(*argument)


def specs_of(sweep):
    """The network of every trial, by the trial's name."""
    found = {}
    for trial in sweep.trials:
        config = parse_config(sweep.config).unlock()
        for field, value in trial.overrides.items():
            *groups, last = field.split(".")
            node = config
            for group in groups:
                node = node[group]
            node[last] = value
        found[trial.name] = spec_of(config)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("argument", ["clutter", "imagenet"])
def test_every_trial_is_another_network(name, argument):
    sweep = sweep_of(name, argument)
    assert sweep.config.endswith(f":{argument}")
    specs = specs_of(sweep)
    assert len(set(specs.values())) == len(specs)
    seeds = {t.overrides.get("seeds") for t in sweep.trials}
    assert seeds == ({(0, 1, 2)} if argument == "clutter" else {None})
    if argument == "imagenet" and name != "resolution":
        assert {s.resolution for s in specs.values()} == {224}


@pytest.mark.parametrize("name", NAMES)
def test_published_figures_have_a_trial(name):
    groups = {group_of(t) for a in ("clutter", "imagenet") for t in sweep_of(name, a).trials}
    assert {g for g in ABLATIONS[name] if not g.endswith("-int8")} <= groups


def test_published_ablations():
    assert ablation("nonlinearity", "relu")["top1"] == 74.5
    assert ablation("nonlinearity", "v3")["pixel1_ms"] == 51.4
    assert ablation("quantized", "v3_small-int8")["top1"] == 64.9
    assert ablation("v2_vs_v3", "v2-0.35")["madds_m"] == 59.2
    assert ablation("nonlinearity", "swish") is None and ablation("mine", "v3") is None


def test_the_components_lead_from_mnasnet_to_large():
    specs = list(specs_of(sweep_of("components", "imagenet")).values())
    assert specs[0] == build("mnasnet_a1", resolution=224)
    assert specs[-1].replace(name="mobilenet_v3_large") == build("mobilenet_v3_large")


def test_networks_keep_their_own_recipe():
    trials = {t.name: t.overrides for t in sweep_of("v2_vs_v3", "imagenet").trials}
    assert trials["v2"]["batch_size"] == 96 * 16 and "batch_size" not in trials["v3_small"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"expansions": (16, 24)}, "expansions: got 2, but mobilenet_v3_large has 15 blocks"),
        ({"expansions": (0,) * 15}, "expansions: got 0, expected a whole number"),
        ({"se_divisor": 0}, "se_divisor: got 0"),
    ],
)
def test_wrong_edits(edit, message):
    with pytest.raises(ValueError, match=message):
        build("mobilenet_v3_large", **edit)


def test_training_for_int8_has_a_trial_for_each_seed_and_its_twin_in_float(sweep_folder):
    """Of a run with two seeds and of one with one; all of them valid."""
    from mbv3_jax.core.errors import UsageError
    from mbv3_jax.sweep import plan

    runs = f"{sweep_folder / 'both'},{sweep_folder / 'each-seed0'}"
    loaded = plan.load(f"{ROOT / 'configs/ablations/qat.py'}:{runs}")
    assert [(t.name, group_of(t)) for t in loaded.trials] == [
        ("both-int8-seed0", "both-int8"),
        ("both-float-seed0", "both-float"),
        ("both-int8-seed1", "both-int8"),
        ("both-float-seed1", "both-float"),
        ("each-seed0-int8-seed0", "each-int8"),
        ("each-seed0-float-seed0", "each-float"),
    ]
    assert loaded.trials[2].overrides["init"] == str(sweep_folder / "both" / "seed1")
    with pytest.raises(UsageError, match="cut is not the folder of a finished run"):
        plan.load(f"{ROOT / 'configs/ablations/qat.py'}:{sweep_folder / 'cut'}")


def test_a_small_network_has_a_trial_with_each_loss_of_a_teacher(sweep_folder):
    from mbv3_jax.core.errors import UsageError
    from mbv3_jax.sweep import plan

    file, teacher = ROOT / "configs/ablations/distillation.py", sweep_folder / "each-seed0"
    loaded = plan.load(f"{file}:{teacher}")
    assert [t.name for t in loaded.trials] == ["alone", "kl", "js", "hard"]
    assert {t.overrides["seeds"] for t in loaded.trials} == {(0, 1, 2)}
    assert "teacher" not in loaded.trials[0].overrides
    job = plan.make_jobs(loaded, sweep_folder.parent / "distillation")[1]
    assert (job.config.teacher, job.config.distillation.name) == (str(teacher), "kl")
    for name, message in (("cut", "not the folder of a finished"), ("both", "name one: .*seed0")):
        with pytest.raises(UsageError, match=message):
            plan.load(f"{file}:{sweep_folder / name}")
