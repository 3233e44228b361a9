"""What a search maximises: accuracy and cost in one number."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec, choose

FORMS = ("soft", "hard", "absolute")
# What can be counted from a spec alone; a latency model is one more such function.
COUNTS: dict[str, Callable[[NetSpec], float]] = {"madds": cost.madds, "params": cost.params}
PUBLISHED = {
    "mnasnet": ("soft", -0.07),  # MnasNet section 3; MobileNetV3-Large
    "mnasnet_hard": ("hard", -1.0),  # MnasNet section 3: no reward below the target
    "mobilenet_v3_small": ("soft", -0.15),  # MobileNetV3 section 4.1
    "tunas": ("absolute", -0.07),  # TuNAS section 3; to -0.10
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward of accuracy and relative cost r = cost / target.

      soft      accuracy * r^exponent                 (MnasNet, equation 2 with equal exponents)
      hard      accuracy * max(1, r)^exponent         (the same with exponent 0 under the target)
      absolute  accuracy + exponent * |r - 1|         (TuNAS; exponent is its beta)

    form: one of these. exponent: negative. targets: by the name of each cost; with several, r is
    the mean of theirs, by `weights` where given (they are divided by their sum).
    """

    targets: Mapping[str, float]
    form: str = "absolute"
    exponent: float = -0.07
    weights: Mapping[str, float] | None = None

    def __post_init__(self):
        choose("reward.form", self.form, FORMS)
        if not self.exponent < 0:
            raise ValueError(f"reward.exponent: got {self.exponent!r}, expected below 0")
        if not self.targets or not all(0 < t < np.inf for t in self.targets.values()):
            raise ValueError(f"reward.targets: got {self.targets!r}, expected positive numbers")
        if self.weights is not None:
            if set(self.weights) != set(self.targets):
                raise ValueError(
                    f"reward.weights: got {sorted(self.weights)}, expected {sorted(self.targets)}"
                )
            if min(self.weights.values()) < 0 or not sum(self.weights.values()) > 0:
                raise ValueError(f"reward.weights: got {self.weights!r}, expected at least 0")

    def relative(self, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The cost over its target; costs are [N] by name."""
        weights = self.weights or dict.fromkeys(self.targets, 1.0)
        total = sum(weights.values())
        return sum(
            weights[name] / total * np.asarray(costs[name], float) / target
            for name, target in self.targets.items()
        )

    def __call__(self, accuracy: np.ndarray, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The rewards [N] of accuracies [N] (fractions) and costs [N] by name."""
        accuracy, relative = np.asarray(accuracy, float), self.relative(costs)
        if self.form == "absolute":
            return accuracy + self.exponent * np.abs(relative - 1)
        if self.form == "hard":
            relative = np.maximum(relative, 1)
        return accuracy * relative**self.exponent
