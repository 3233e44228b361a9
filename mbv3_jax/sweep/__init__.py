"""Sweeps: lists of trials, executors that run them, and what came out.

`combinators.py` makes lists of trials; a file under `configs/ablations/` returns one. `plan.py`
reads such a file and refuses what is wrong. `executors/` write job descriptions for local
processes, SLURM, xpk and SkyPilot. `conduct.py` submits, watches and retries; `record.py` keeps
what happened in the sweep's folder, `progress.py` reads how far a trial is, `results.py` sums up.
"""
