"""A small network with and without a teacher: the same runs but for what they learn from.

python main.py --config=configs/large.py:clutter --workdir=runs/large
python launch/sweep.py --sweep=configs/ablations/distillation.py:runs/large
  V3-Small on the data of the teacher, from scratch: by the labels alone, and with soft labels, JS
  divergence and hard labels of V3-Large, 3 seeds each
"""

import json
from pathlib import Path

from configs.ablations.task import variants
from mbv3_jax.sweep.combinators import Sweep

LOSSES = ("kl", "js", "hard")


def get_sweep(argument: str = "runs/large") -> Sweep:
    """`argument`: the run folder of the teacher.

    Raises:
      ValueError: it is not a run folder, has not finished, or holds several seeds.
    """
    folder = Path(argument)
    if not (folder / "summary.json").is_file():
        raise ValueError(f"{folder} is not the folder of a finished run")
    config = json.loads((folder / "config.json").read_text())
    if config["seeds"]:
        raise ValueError(
            f"{folder} holds several seeds; name one: {folder}/seed{config['seeds'][0]}"
        )
    data, teacher = config["data"]["name"], str(folder.resolve())
    choices = {name: {"teacher": teacher, "distillation.name": name} for name in LOSSES}
    return Sweep(f"configs/small.py:{data}", variants({"alone": {}, **choices}, data))
