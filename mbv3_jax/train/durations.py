"""How long something lasts, in the unit that its author prefers, as a number of steps."""

import math
from fractions import Fraction

from mbv3_jax.train.options import check_number, check_whole


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

    Epochs and examples are rounded up to whole steps: a run sees at least what it was asked to
    see, and no duration above zero becomes zero steps. The arithmetic is exact, on the decimal
    number as written: 2.4 epochs of 1000 examples are 2400 examples, never 2400.0000000000005.

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
    given = {field: value for field, value in units.items() if value is not None}
    if len(given) != 1:
        got = ", ".join(f"{field}={value!r}" for field, value in given.items()) or "none"
        raise ValueError(f"{name}: got {got}, expected exactly one of {', '.join(units)}")
    (field,) = given
    if steps is not None:
        return check_whole(field, steps, at_least=0)
    if examples is not None:
        seen = Fraction(check_whole(field, examples, at_least=0))
    else:
        # repr of a float is the shortest decimal that reads back as it: the number as typed.
        seen = Fraction(repr(check_number(field, epochs, at_least=0))) * train_examples
    return math.ceil(seen / batch_size)
