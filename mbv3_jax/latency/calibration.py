"""From what one measure says of networks to milliseconds."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Calibration:
    """factor * x ** power: milliseconds of what something else says about a network."""

    factor: float
    power: float

    def __call__(self, x) -> np.ndarray:
        return self.factor * np.asarray(x, float) ** self.power


def calibrate(x: Sequence[float], ms: Sequence[float], *, linear: bool = False) -> Calibration:
    """Fits by least squares of logarithms, so that relative errors count.

    Args:
      x: of each network: multiply-adds, milliseconds elsewhere, ...
      ms: that it should be.
      linear: the power is 1.

    Raises:
      ValueError: too few networks.
    """
    if len(x) != len(ms) or len(x) < 2:
        raise ValueError(f"got {len(x)} and {len(ms)} values, expected as many, two or more")
    x, y = np.log(np.asarray(x, float)), np.log(np.asarray(ms, float))
    power, offset = (1.0, np.mean(y - x)) if linear else np.polyfit(x, y, 1)
    return Calibration(float(np.exp(offset)), float(power))
