"""Sweeps: lists of trials, the executors that run them, and their results.

`combinators.py` makes lists of trials; a file under `configs/ablations/` returns one. `plan.py`
reads such a file and checks it. `executors/` write job descriptions for local processes, SLURM,
Cluster Toolkit, xpk and SkyPilot. `runner.py` submits, watches and retries; `state.py` reads and
writes what is on disk about a sweep; `view.py` shows it.
"""
