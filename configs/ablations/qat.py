"""Training for int8 what other sweeps have trained in float: section 6.1.2 and table 4, and why.

python launch/sweep.py --sweep=configs/ablations/nonlinearity.py
python launch/sweep.py --sweep=configs/ablations/squeeze_excite.py
python launch/sweep.py --sweep=configs/ablations/qat.py
  V3-Small with h-swish, ReLU, swish, and with a sigmoid as gate, 3 seeds each on letters among
  clutter; every network is trained for five epochs more twice, in simulated int8 and in float, so
  that the two differ in nothing else
python -m benchmarks.quantization --floats RUN RUN ... --trained runs/sweeps/qat
  the table: float and int8 top-1, after training and trained for it, from exported files
python launch/sweep.py --sweep=configs/ablations/qat.py:RUN,RUN,...
  the same of any run folders; those of several seeds give a trial for each
"""

import json
from pathlib import Path

from mbv3_jax.sweep.combinators import Sweep, chain, trial

SWEEPS = Path("runs/sweeps")
TABLE = (
    "nonlinearity/v3",
    "nonlinearity/relu",
    "nonlinearity/swish",
    "squeeze_excite/expansion-sigmoid",
)


def get_sweep(argument: str = "") -> Sweep:
    """`argument`: run folders, with commas between.

    Raises:
      ValueError: one that is not a run folder, or has not finished.
    """
    folders = [Path(name) for name in argument.split(",")] if argument else []
    trials, data = [], set()
    for folder in folders or [SWEEPS / name for name in TABLE]:
        if not (folder / "summary.json").is_file():
            raise ValueError(f"{folder} is not the folder of a finished run")
        config = json.loads((folder / "config.json").read_text())
        data.add(config["data"]["name"])
        for seed in config["seeds"] or [config["seed"]]:
            start = folder / f"seed{seed}" if config["seeds"] else folder
            fields = {"init": str(start.resolve()), "seed": seed, "total_epochs": 5.0}
            in_float = {"quant.enabled": False, "quant.delay_steps": None}
            kinds = {
                "int8": {"quant.freeze_epochs": 2.5},
                "float": {**in_float, "quant.freeze_epochs": None},
            }
            for kind, more in kinds.items():
                name = f"{folder.name}-{kind}-seed{seed}"
                trials.append(trial(name, {**fields, **more}))
    if len(data) > 1:
        raise ValueError(f"the runs are of different data, {' and '.join(sorted(data))}")
    return Sweep(f"configs/qat.py:{data.pop()}", chain(*trials))
