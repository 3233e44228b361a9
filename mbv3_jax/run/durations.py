"""Lengths of training, given in steps, epochs or examples, and their conversion to steps."""

import dataclasses
import math
from fractions import Fraction

from ml_collections import ConfigDict

from mbv3_jax.core.checks import check_number, check_whole

UNITS = ("steps", "epochs", "examples")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training, in whatever unit it was given; see `to_steps`.

    name: what lasts, for messages: "warmup".
    steps, epochs, examples: one of them; the others are None.
    """

    name: str
    steps: int | None = None
    epochs: float | None = None
    examples: int | None = None

    @classmethod
    def read(cls, group: ConfigDict, name: str, path: str = "") -> "Duration":
        """Reads NAME_steps, NAME_epochs and NAME_examples of a group of fields.

        Args:
          group: the configuration, or a group in it.
          name: the field's name without its unit.
          path: of the group, for messages: "schedule.".
        """
        return cls(path + name, **{unit: group[f"{name}_{unit}"] for unit in UNITS})

    @property
    def field(self) -> str:
        """The field that says it: "warmup_epochs"; there must be exactly one, see `to_steps`."""
        (unit,) = (unit for unit in UNITS if getattr(self, unit) is not None)
        return f"{self.name}_{unit}"

    @property
    def value(self) -> float:
        """The value of `field`."""
        return getattr(self, self.field.rpartition("_")[2])

    def of_steps(self, steps: int, *, batch_size: int, train_examples: int) -> float:
        """The largest value of `field`, of three decimals, that is no more than these steps."""
        examples = steps * batch_size
        per_value = {"steps": batch_size, "epochs": train_examples, "examples": 1}
        thousandths = 1000 * examples // per_value[self.field.rpartition("_")[2]]
        return thousandths // 1000 if thousandths % 1000 == 0 else thousandths / 1000

    def in_steps(self, *, batch_size: int, train_examples: int) -> int:
        """The number of optimizer steps; raises as `to_steps`."""
        return to_steps(
            self.name,
            steps=self.steps,
            epochs=self.epochs,
            examples=self.examples,
            batch_size=batch_size,
            train_examples=train_examples,
        )


def to_steps(
    name: str,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    examples: int | None = None,
    batch_size: int,
    train_examples: int,
) -> int:
    """Converts a duration, given in exactly one unit, to steps.

    Epochs and examples are rounded up to whole steps: a run sees at least what was asked for, and
    no duration above zero becomes zero steps. The arithmetic is exact, on the decimal number as
    written: 2.4 epochs of 1000 examples are 2400 examples, never 2400.0000000000005.

    Args:
      name: what lasts, for messages: "warmup" stands for the fields warmup_steps,
        warmup_epochs and warmup_examples.
      steps: optimizer steps.
      epochs: passes over the training set; may be fractional.
      examples: training examples.
      batch_size: examples a step, over all devices.
      train_examples: examples an epoch.

    Returns:
      Steps, at least 0.

    Raises:
      ValueError: not exactly one unit is given, or a value is negative or not finite.
    """
    check_whole("batch_size", batch_size, at_least=1)
    check_whole("train_examples", train_examples, at_least=1)
    units = {f"{name}_steps": steps, f"{name}_epochs": epochs, f"{name}_examples": examples}
    typed = {field: value for field, value in units.items() if value is not None}
    if len(typed) != 1:
        got = ", ".join(f"{field}={value!r}" for field, value in typed.items()) or "none"
        advice = "".join(f"; --config.{field}=None clears it" for field in [*typed][:1])
        raise ValueError(f"{name}: got {got}, expected exactly one of {', '.join(units)}{advice}")
    (field,) = typed
    if steps is not None:
        return check_whole(field, steps, at_least=0)
    if examples is not None:
        seen = Fraction(check_whole(field, examples, at_least=0))
    else:
        # repr of a float is the shortest decimal that reads back as it: the number as typed.
        seen = Fraction(repr(check_number(field, epochs, at_least=0))) * train_examples
    return math.ceil(seen / batch_size)
