import csv
import json

import pytest
from sweep_tools import jobs_of

from mbv3_jax.sweep import state
from mbv3_jax.sweep.combinators import chain, product, seeds, trial


def finish(run, top1, loss=1.0):
    run.mkdir(parents=True)
    summary = {"steps": 24, "eval": {"top1": top1, "loss": loss}, "seconds": 2.0, "split": "test"}
    (run / "summary.json").write_text(json.dumps(summary))


def test_rows_and_mean_and_spread(tmp_path):
    variants = chain(trial("v3"), trial("relu", {"net.nonlinearity": "relu"}), trial("none"))
    jobs = jobs_of(tmp_path, product(variants, seeds(3)))
    for job, top1 in zip(jobs, [0.5, 0.6, 0.7, 0.9], strict=False):
        finish(job.folder, top1)
    rows = state.rows(jobs)
    assert [row["trial"] for row in rows] == ["v3-seed0", "v3-seed1", "v3-seed2", "relu-seed0"]
    groups = state.groups(rows)
    assert list(groups) == ["v3", "relu"]
    assert groups["v3"]["runs"] == 3
    assert groups["v3"]["top1_mean"] == pytest.approx(0.6)
    assert groups["v3"]["top1_std"] == pytest.approx(0.1)  # n - 1 of 3
    assert groups["relu"]["top1_std"] is None

    state.write_results(tmp_path, rows)
    with (tmp_path / "results.csv").open() as f:
        read = list(csv.DictReader(f))
    assert read[3]["trial"] == "relu-seed0" and read[3]["config.net.nonlinearity"] == "relu"
    assert read[0]["config.net.nonlinearity"] == ""
    assert [float(row["eval.top1"]) for row in read] == [0.5, 0.6, 0.7, 0.9]
    assert read[2]["seed"] == "2" and read[2]["seconds"] == "2.0"


def test_seeds_of_one_process_are_rows_of_one_group(tmp_path):
    (job,) = jobs_of(tmp_path, trial("v3"))
    for seed, top1 in ((0, 0.4), (5, 0.6)):
        finish(job.folder / f"seed{seed}", top1)
        (job.folder / f"seed{seed}" / "config.json").write_text("{}")
    rows = state.rows([job])
    assert [(row["trial"], row["seed"]) for row in rows] == [("v3/seed0", 0), ("v3/seed5", 5)]
    assert state.groups(rows)["v3"]["top1_mean"] == pytest.approx(0.5)
