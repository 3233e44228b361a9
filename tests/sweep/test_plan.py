import json

import pytest
from paths import ROOT, TINY
from sweep_tools import jobs_of, named, sweep_file

from mbv3_jax.arch.published import published
from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.config import config_to_json, spec_of
from mbv3_jax.sweep import plan
from mbv3_jax.sweep.combinators import Sweep, chain, product, seeds, trial


def test_jobs_are_commands_of_main(tmp_path):
    trials = product(trial("relu", {"net.nonlinearity": "relu"}), seeds([3]))
    (job,) = jobs_of(tmp_path, trials, "--config.total_steps=9")
    assert job.name == "relu-seed3" and job.group == "relu"
    assert job.arguments == (
        f"--config={TINY}",
        "--config.total_steps=9",
        "--config.net.nonlinearity=relu",
        "--config.seed=3",
    )
    assert job.folder == tmp_path / "relu-seed3"
    assert (job.config.total_steps, job.config.seed) == (9, 3)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    trials = chain(
        trial("good"),
        trial("field", {"net.widht": 1.0}),
        trial("type", {"seed": "x"}),
        trial("value", {"net.se": "some"}),
        trial("network", {"net.width": 0.01}),
        trial("twice", {"total_steps": 5}),
        trial("optimizer", {"optimizer.name": "adm"}),
        trial("schedule", {"schedule.decay_rate": 0.9}),
    )
    with pytest.raises(UsageError) as caught:
        jobs_of(tmp_path, trials, "--config.total_steps=9")
    first, *lines = str(caught.value).splitlines()
    assert first == "7 of 8 trials are wrong, none was started:"
    for line, start in zip(
        lines,
        [
            "  field: --config.net.widht=1.0: config.net has no field 'widht'; did you mean --",
            "  type: --config.seed: got 'x', expected a value of type int",
            "  value: config.net.se: got 'some', expected one of 'paper'",
            "  network: config.net.width: 0.01 gives",
            "  twice: the trial sets total_steps itself",
            "  optimizer: config: optimizer.name: got 'adm', expected one of 'rmsprop_tf'",
            "  schedule: config: schedule: 'cosine' has no option decay_rate",
        ],
        strict=True,
    ):
        assert line.startswith(start), line


def test_one_mistake_of_many_trials_is_one_line(tmp_path):
    with pytest.raises(UsageError) as caught:
        jobs_of(tmp_path, seeds(5), "--config.nope=1")
    assert len(str(caught.value).splitlines()) == 2
    assert "seed0 and 4 others: --config.nope=1: config has no field" in str(caught.value)


def test_a_folder_with_another_run_is_refused(tmp_path):
    jobs = jobs_of(tmp_path, seeds(2))
    for job in jobs:
        job.folder.mkdir()
        (job.folder / "config.json").write_text(config_to_json(job.config))
    assert len(jobs_of(tmp_path, seeds(2))) == 2
    with pytest.raises(UsageError, match="another configuration: batch_size 8, now 16") as caught:
        jobs_of(tmp_path, seeds(2), "--config.batch_size=16")
    assert "2 of 2 trials" in str(caught.value)


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ("()", "it has no trial"),
        (named("a/b"), "trial 'a/b': a name has letters"),
        (named("jobs"), "trial 'jobs': a name has letters"),
        (named(".hidden"), "trial '.hidden': a name"),
        (named("a", "A"), "two trials have the name 'a'"),
        ("nope()", "NameError: name 'nope' is not defined"),
        ("product(seeds(1), seeds([1]))", "both set seed"),
    ],
)
def test_wrong_sweep_files(tmp_path, trials, message):
    with pytest.raises(UsageError, match="--sweep=") as caught:
        plan.load(sweep_file(tmp_path, trials))
    assert message in str(caught.value)


def test_files_that_are_not_sweeps(tmp_path):
    with pytest.raises(UsageError, match="no Python file 'configs/ablations/none"):
        plan.load("configs/ablations/none.py")
    with pytest.raises(UsageError, match=r"it is not a sweep file: it has no get_sweep\("):
        plan.load(TINY)
    with pytest.raises(UsageError, match="it takes no argument, got 'imagenet'"):
        plan.load(sweep_file(tmp_path, "seeds(1)") + ":imagenet")


ABLATIONS = [
    path
    for path in sorted((ROOT / "configs" / "ablations").glob("*.py"))
    if path.stem not in ("task", "qat", "distillation")  # what they share; of runs, not of data
]


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
@pytest.mark.parametrize("argument", ["digits", "imagenet"])
def test_ablations_are_valid(tmp_path, monkeypatch, path, argument):
    monkeypatch.chdir(ROOT)
    jobs = plan.make_jobs(plan.load(f"{path}:{argument}"), tmp_path)
    names = [spec_of(job.config) for job in jobs]
    assert len({json.dumps([str(s), j.config.seed]) for s, j in zip(names, jobs, strict=True)}) == (
        len(jobs)
    ), "two trials are the same run"
    assert len({job.group for job in jobs}) >= 2


def test_the_paper_s_table_5(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    jobs = plan.make_jobs(plan.load("configs/ablations/nonlinearity.py:imagenet"), tmp_path)
    specs = {job.group: spec_of(job.config) for job in jobs}
    assert published(specs["v3"]).madds_m == 219
    acts = {name: [block.act for block in spec.blocks] for name, spec in specs.items()}
    assert acts["v3"] == ["relu"] * 6 + ["h_swish"] * 9
    assert set(acts["relu"]) == {"relu"}
    assert set(acts["h_swish@16"]) == {"h_swish"}
    assert acts["h_swish@112"] == ["relu"] * 10 + ["h_swish"] * 5
    assert acts["swish"] == ["relu"] * 6 + ["swish"] * 9


class TestOfSeeds:
    def test_fewer_trials_or_fewer_seeds_in_each(self):
        apart = Sweep(TINY, product(trial("a"), seeds(3)))
        left = plan.of_seeds(apart, [0, 2]).trials
        assert [t.name for t in left] == ["a-seed0", "a-seed2"]
        together = Sweep(TINY, trial("b", {"net.width": 0.5, "seeds": (0, 1, 2)}))
        (left,) = plan.of_seeds(together, [1]).trials
        assert dict(left.overrides) == {"net.width": 0.5, "seeds": (1,)}
        assert together.trials[0].overrides["seeds"] == (0, 1, 2)

    @pytest.mark.parametrize(
        ("trials", "wanted", "message"),
        [
            (product(trial("a"), seeds(3)), [0, 7], "--seeds: got 7, but the seeds of .* 0, 1, 2$"),
            (trial("b", {"seeds": (3, 4)}), [0], "--seeds: got 0, but the seeds of .* 3, 4$"),
            (trial("c"), [0], "trial 'c' has no seeds of its own; set --config.seed=N"),
        ],
    )
    def test_others_are_refused(self, trials, wanted, message):
        with pytest.raises(UsageError, match=message):
            plan.of_seeds(Sweep(TINY, trials), wanted)
