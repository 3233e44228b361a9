"""A sweep's folder as real trainings leave it: complete, unfinished, failed and waiting trials."""

import json
import shutil

from paths import TINY

from mbv3_jax.run.config import config_to_json
from mbv3_jax.sweep import state
from mbv3_jax.sweep.combinators import Sweep, Trial
from mbv3_jax.sweep.plan import DESCRIPTIONS, make_jobs
from mbv3_jax.train.loop import train


def make(folder):
    """Trials both (two seeds at once), each (two runs), cut (unfinished), failed, waiting."""
    trials = (
        Trial("both", {"seeds": (0, 1)}),
        Trial("each-seed0", {"net.nonlinearity": "relu", "seed": 0}),
        Trial("each-seed1", {"net.nonlinearity": "relu", "seed": 1}),
        Trial("cut", {"net.nonlinearity": "swish"}),
        Trial("failed", {}),
        Trial("waiting", {}),
    )
    (folder / DESCRIPTIONS).mkdir(parents=True)
    jobs = make_jobs(Sweep(TINY, trials), folder, ["--config.save_predictions=True"])
    kept = state.Record(folder, jobs, sweep="configs/ablations/nonlinearity.py", executor="local")
    for job in jobs[:3]:
        train(job.config, job.folder)
        kept[job.name].state = state.FINISHED
    # As a kill leaves it: everything but the end.
    shutil.copytree(folder / "each-seed0", folder / "cut")
    cut = jobs[3].config
    (folder / "cut" / "config.json").write_text(config_to_json(cut))
    (folder / "cut" / "summary.json").unlink()
    (folder / "cut" / "predictions.npz").unlink()
    lines = (folder / "cut" / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept_lines = [line for line in lines if json.loads(line)["step"] <= 12]
    (folder / "cut" / "metrics.jsonl").write_text("".join(kept_lines) + '{"step": 13, "ki')
    kept["cut"].state = state.INTERRUPTED
    kept["failed"].state, kept["failed"].error = state.FAILED, "error: <no room> on the disk"
    kept.save()
