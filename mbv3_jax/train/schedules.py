"""Learning-rate schedules: pure functions of the step, built by name.

Every schedule is one formula,

    lr(step) = base_lr * min(step / warmup_steps, factor(step)),

so warm-up is linear from 0 at step 0, and a decay that begins within the warm-up caps it. That is
slim's rule (`train_image_classifier.py`). The model garden's warm-up ends at factor(warmup_steps)
instead of 1, which differs by 0.013% for its cosine over 700 epochs with 5 of warm-up.

With the option `noise` the learning rate of each epoch in a part of the run is multiplied by a
random factor around 1, as timm's --lr-noise does.

The option `decay_from` of the decaying schedules says where `factor` starts to count:
  "start"       from step 0: slim, the model garden, timm. The default.
  "warmup_end"  from the end of warm-up: optax's `warmup_*_schedule`, and the recipes built on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mbv3_jax.core.checks import check_number, check_whole, choose
from mbv3_jax.core.packages import LazyModule
from mbv3_jax.core.registry import Registry

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    from jax.typing import ArrayLike
else:  # configs/common.py reads the options of the schedules, without waiting for JAX
    jax, jnp = LazyModule("jax"), LazyModule("jax.numpy")

Schedule = Callable[["ArrayLike"], "jax.Array"]  # step -> learning rate
Factor = Callable[["jax.Array"], "jax.Array"]  # int32 steps -> the factor of the learning rate

# The number that is folded into the key of the run; `state.py` has those before it.
NOISE_STREAM = 2

DECAY_FROM = ("start", "warmup_end")

# An entry is called with the `Course` of the run.
SCHEDULES: Registry[Callable[..., Factor]] = Registry("schedule")


class Course(NamedTuple):
    """The lengths of a run that a schedule depends on."""

    total_steps: int
    warmup_steps: int
    steps_per_epoch: float

    def steps(self, epochs: float) -> int:
        """Epochs in whole steps, at least one."""
        return max(1, round(epochs * self.steps_per_epoch))

    def decay_start(self, decay_from: str) -> int:
        """The step from which a decay counts."""
        choose("schedule.decay_from", decay_from, DECAY_FROM)
        return self.warmup_steps if decay_from == "warmup_end" else 0


def make_schedule(
    name: str,
    *,
    base_lr: float,
    total_steps: int,
    steps_per_epoch: float,
    warmup_steps: int = 0,
    seed: int = 0,
    noise: Sequence[float] | None = None,
    noise_limit: float | None = None,
    noise_std: float | None = None,
    **options: Any,
) -> Schedule:
    """Builds a schedule.

    Args:
      name: a key of `SCHEDULES`.
      base_lr: the learning rate of a factor of 1.
      total_steps: steps of the whole run, warm-up included.
      steps_per_epoch: training examples / batch size; need not be whole. Epochs are turned into
        steps once, rounded to the nearest step, at least one.
      warmup_steps: length of the warm-up; 0 for none.
      seed: of the noise; that of the run.
      noise: (first, last) part of the run in which the learning rate is noisy, from 0 to 1, as
        (0.42, 0.9); None for no noise. Each epoch draws one factor, 1 + a normal number.
      noise_limit: the number is drawn again until its magnitude is below this; None takes timm's
        0.67.
      noise_std: its standard deviation before this limit; None takes timm's 1.
      **options: of the schedule, see its entry; None counts as not given.

    Returns:
      schedule(step) -> learning rate, float32 of the shape of `step`; jittable. `step` counts
      the updates made so far: 0 for the first update, whose learning rate is 0 with a warm-up.

    Raises:
      ValueError: a name or an option is unknown, or a value is out of range.
    """
    check_number("schedule.base_lr", base_lr, at_least=0)
    check_whole("schedule.total_steps", total_steps, at_least=1)
    check_whole("schedule.warmup_steps", warmup_steps, at_least=0)
    check_number("schedule.steps_per_epoch", steps_per_epoch, above=0)
    if warmup_steps > total_steps:
        raise ValueError(
            f"schedule.warmup_steps: got {warmup_steps}, expected at most the {total_steps} steps "
            "of the whole run; set fewer schedule.warmup_epochs, warmup_examples or warmup_steps"
        )
    course = Course(total_steps, warmup_steps, steps_per_epoch)
    factor = SCHEDULES.build(name, options, course)
    noisy = _noise(course, seed, noise, noise_limit, noise_std)

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        scale = factor(step)
        if warmup_steps:
            scale = jnp.minimum(step / warmup_steps, scale)
        if noisy:
            scale = scale * noisy(step)
        return jnp.asarray(base_lr * scale, jnp.float32)

    return schedule


def _noise(
    course: Course,
    seed: int,
    noise: Sequence[float] | None,
    limit: float | None,
    std: float | None,
) -> Factor | None:
    """The random factor of each step, the same throughout an epoch; None without noise."""
    for name, value in (("noise_limit", limit), ("noise_std", std)):
        if value is not None:
            check_number(f"schedule.{name}", value, above=0)
            if noise is None:
                raise ValueError(f"schedule.{name}: got {value}, but schedule.noise is None")
    if noise is None:
        return None
    if isinstance(noise, str) or not isinstance(noise, Sequence) or len(noise) != 2:
        raise ValueError(f"schedule.noise: got {noise!r}, expected two parts, as (0.42, 0.9)")
    first, last = (check_number("schedule.noise", part, at_least=0, at_most=1) for part in noise)
    if first >= last:
        raise ValueError(f"schedule.noise: got {tuple(noise)}, expected the smaller part first")
    # timm's values, in timm/scheduler/scheduler.py
    limit, std = 0.67 if limit is None else limit, 1.0 if std is None else std
    # Of whole ones, as in timm; a run of 10 epochs has a fraction more, to fill its last batch.
    epochs = max(1, math.floor(course.total_steps / course.steps_per_epoch + 1e-6))

    def of_epoch(epoch: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), NOISE_STREAM)
        bound = limit / std
        drawn = jax.random.truncated_normal(jax.random.fold_in(key, epoch), -bound, bound)
        inside = (first * epochs <= epoch) & (epoch < last * epochs)
        return jnp.where(inside, 1 + std * drawn, 1.0)

    def factor(step: jax.Array) -> jax.Array:
        return jnp.vectorize(of_epoch)((step / course.steps_per_epoch).astype(jnp.int32))

    return factor


@SCHEDULES.register("constant")
def constant(course: Course) -> Factor:
    """The same learning rate throughout."""
    return lambda step: jnp.ones(step.shape, jnp.float32)


@SCHEDULES.register("exponential")
def exponential(
    course: Course,
    *,
    decay_rate: float = 0.99,
    decay_epochs: float = 3,
    decay_from: str = "start",
) -> Factor:
    """A staircase: every decay_epochs the learning rate is multiplied by decay_rate.

    The paper's "decay rate of 0.01 every 3 epochs" (section 6.1.1) is decay_rate=0.99.
    """
    check_number("schedule.decay_rate", decay_rate, above=0, at_most=1)
    check_number("schedule.decay_epochs", decay_epochs, above=0)
    start, period = course.decay_start(decay_from), course.steps(decay_epochs)

    def factor(step: jax.Array) -> jax.Array:
        # Whole numbers throughout: by rounding, a float32 quotient can fall one stair short.
        decays = jnp.maximum(step - start, 0) // period
        return jnp.power(jnp.float32(decay_rate), decays)

    return factor


@SCHEDULES.register("cosine")
def cosine(
    course: Course,
    *,
    final_lr_factor: float = 0.0,
    decay_from: str = "start",
    cooldown_epochs: float = 0.0,
) -> Factor:
    """Half a cosine from 1 to final_lr_factor, which it reaches at total_steps and keeps.

    With cooldown_epochs it gets there that many epochs earlier, and the run ends at a constant
    rate, as with timm's --cooldown-epochs.
    """
    check_number("schedule.final_lr_factor", final_lr_factor, at_least=0, at_most=1)
    check_number("schedule.cooldown_epochs", cooldown_epochs, at_least=0)
    if cooldown_epochs and not final_lr_factor:
        raise ValueError(
            f"schedule.cooldown_epochs: got {cooldown_epochs}, expected a schedule.final_lr_factor "
            "above 0 with it: at a rate of 0 nothing is learnt"
        )
    start = course.decay_start(decay_from)
    stop = course.total_steps - (course.steps(cooldown_epochs) if cooldown_epochs else 0)
    if cooldown_epochs and stop <= start:
        epochs = (course.total_steps - start) / course.steps_per_epoch
        raise ValueError(
            f"schedule.cooldown_epochs: got {cooldown_epochs}, expected less than the {epochs:g} "
            "epochs of the decay"
        )
    span = max(1, stop - start)

    def factor(step: jax.Array) -> jax.Array:
        progress = jnp.clip((step - start) / span, 0, 1)
        return final_lr_factor + (1 - final_lr_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return factor


@SCHEDULES.register("step")
def step(course: Course, *, boundary_epochs: Sequence[float], factor: float = 0.1) -> Factor:
    """Multiplied by factor at each boundary; boundaries count from the start of the run."""
    path = "schedule.boundary_epochs"
    if isinstance(boundary_epochs, str) or not isinstance(boundary_epochs, Sequence):
        raise ValueError(f"{path}: got {boundary_epochs!r}, expected a list of epochs")
    check_number("schedule.factor", factor, above=0, at_most=1)
    for epoch in boundary_epochs:
        check_number(path, epoch, above=0)
    if list(boundary_epochs) != sorted(set(boundary_epochs)):
        raise ValueError(f"{path}: got {list(boundary_epochs)}, expected rising epochs")
    boundaries = jnp.asarray([course.steps(epoch) for epoch in boundary_epochs], jnp.int32)

    def scale(step: jax.Array) -> jax.Array:
        return jnp.power(jnp.float32(factor), jnp.sum(step[..., None] >= boundaries, axis=-1))

    return scale
