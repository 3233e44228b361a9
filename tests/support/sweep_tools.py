"""What the tests of sweeps share: sweep files of any trials, and a main.py that does not train."""

import json
import shutil
from pathlib import Path

from paths import TINY

from mbv3_jax.core import packages
from mbv3_jax.sweep import plan
from mbv3_jax.sweep.combinators import Sweep
from mbv3_jax.sweep.executors import local, slurm

STAND_IN = Path(__file__).with_name("stand_in_main.py")


def stand_in(tmp_path, monkeypatch):
    """From now on executors start `stand_in_main.py`, and look often."""
    root = tmp_path / "stand_in"
    root.mkdir()
    shutil.copy(STAND_IN, root / "main.py")
    monkeypatch.setattr(packages, "CHECKOUT", root)
    monkeypatch.setattr(local.Local, "interval", 0.05)
    monkeypatch.setattr(slurm.Slurm, "interval", 0.5)


def sweep_file(tmp_path, trials: str, config: str = TINY) -> str:
    """The path of a sweep file whose trials are this expression over the combinators."""
    path = tmp_path / "some_sweep.py"
    path.write_text(
        "from mbv3_jax.sweep.combinators import *\n"
        f"def get_sweep():\n    return Sweep({config!r}, {trials})\n"
    )
    return str(path)


def named(*names: str) -> str:
    """Trials of these names, for `sweep_file`."""
    return f"chain({', '.join(f'trial({name!r})' for name in names)})"


def jobs_of(folder, trials, *overrides):
    """The jobs of some trials of the tiny configuration."""
    (folder / plan.DESCRIPTIONS).mkdir(parents=True, exist_ok=True)
    return plan.make_jobs(Sweep(TINY, trials), folder, overrides)


def recorded(folder):
    """sweep.json."""
    return json.loads((folder / "sweep.json").read_text())


def states(folder):
    """The state of every trial in sweep.json."""
    return {name: entry["state"] for name, entry in recorded(folder)["trials"].items()}
