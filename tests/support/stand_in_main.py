"""Stands in for main.py: no training, only its run folder, its signals and its exit codes.

What it does depends on the name of the run folder: "fails" exits with 1, "refused" with 2, "asks"
with 75 for ever, "saves" with 75 the first time, "slow" waits for SIGTERM and then exits with 75
(the first time), "stuck" ignores SIGTERM; any other finishes.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--workdir", type=Path)
flags, overrides = parser.parse_known_args()
run, name = flags.workdir, flags.workdir.name
run.mkdir(parents=True, exist_ok=True)
checkpoints = run / "checkpoints"
resumed = checkpoints.exists()

environment = {
    key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_NTASKS")
}
seen = {**environment, "cores": sorted(os.sched_getaffinity(0)), "overrides": overrides}
(run / "seen.json").write_text(json.dumps(seen))


def record(step, kind, **values):
    with (run / "metrics.jsonl").open("a") as f:
        f.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")


def save(*_):
    (checkpoints / "6").mkdir(parents=True, exist_ok=True)
    print("saved", flush=True)
    sys.exit(75)


record(6, "train", loss=1.0, top1=0.2, epoch=1.0, images_per_second=100.0)
if "fails" in name:
    sys.exit("error: the loss of step 7 is nan")
if "refused" in name:
    print("error: config.optimizer: got 'nope'", file=sys.stderr)
    sys.exit(2)
if "asks" in name or ("saves" in name and not resumed):
    save()
if "stuck" in name:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (run / "ready").write_text("ready")
    time.sleep(30)
if "slow" in name and not resumed:
    signal.signal(signal.SIGTERM, save)
    (run / "ready").write_text("ready")
    time.sleep(30)
seed = next((int(o.partition("=")[2]) for o in overrides if o.startswith("--config.seed=")), 0)
values = {"top1": 0.5 + seed / 10, "loss": 1.0}
record(24, "eval", **values)
(run / "summary.json").write_text(
    json.dumps({"steps": 24, "epochs": 4.0, "weights": "ema", "eval": values, "seconds": 1.0})
)
