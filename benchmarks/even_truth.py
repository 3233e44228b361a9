"""Trains every network of a space in which cost decides little, long enough to learn.

python -m benchmarks.even_truth --seeds=3
  Writes benchmarks/even_truth.csv as benchmarks.toy_truth does: 128 networks, 2,400 steps each,
  about 1.5 hours of one core for a seed. Run the same command again to resume.
  `--first-seed=1 --seeds=2` trains the second seed alone.
"""

import argparse
from pathlib import Path

from benchmarks import toy_truth
from mbv3_jax.search.presets import preset
from mbv3_jax.search.space import Space, Stage

# At each of three targets, 24 or more of its 128 networks cost within a tenth of the target (in
# multiply-adds), so that a search must know more than costs.
SPACE = Space(
    name="even",
    base=preset("toy").base,
    stages=(
        Stage(out=(16,), stride=2, depth=(1, 2), kernel=(3, 5), expansion=(2, 4), act=("h_swish",)),
        Stage(
            out=(32,),
            stride=2,
            depth=(1, 2),
            kernel=(3, 5),
            expansion=(3, 6),
            se=(False, True),
            act=("h_swish",),
        ),
    ),
)
BRIEF, LONG, EMA = 300, 2400, 0.98


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "even_truth.csv")
    flags = parser.parse_args()
    seeds = range(flags.first_seed, flags.seeds)
    toy_truth.fill(flags.out, SPACE, seeds, brief=BRIEF, steps=LONG, ema=EMA)


if __name__ == "__main__":
    main()
