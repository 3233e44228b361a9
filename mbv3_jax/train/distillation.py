"""Knowledge distillation: losses by name that pull a network towards its teacher's predictions.

The loss of a run with a teacher (`config.teacher`, see `teacher.py`) is

    (1 - weight) * loss(logits, labels) + weight * distillation(logits, teacher_logits),

where the first is that of `losses.py`. Class weights, label smoothing and focal loss belong to it,
and after mixup its labels are mixed. The teacher sees the mixed image itself.
The loss of hints from feature maps of the teacher is added to it, see `hints.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mbv3_jax.core.checks import check_number
from mbv3_jax.core.packages import LazyModule
from mbv3_jax.core.registry import Registry

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp

    from mbv3_jax.train.hints import Hints
else:  # configs/common.py reads the options of the losses, without waiting for JAX
    jax, jnp = LazyModule("jax"), LazyModule("jax.numpy")

# A distillation loss is a function of the student's and the teacher's logits, both
# [batch, classes]; it returns float32 [batch]. Its options are keyword-only:
#
#   @DISTILLATION.register("mse")
#   def mse(logits, teacher_logits, *, scale: float = 1.0): ...
DISTILLATION: Registry[Callable[..., jax.Array]] = Registry("distillation")

# As DeiT's hard distillation (Touvron et al., arXiv 2012.12877, equation 3) weighs the two parts.
WEIGHT = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teaching:
    """What a training step needs of its teacher, or of several.

    variables: of all teachers, on the host; an input of the step.
    answers: (variables, images as the student sees them) -> float32 logits [batch, classes], the
      mean over the teachers, and the maps of `hints.of_teacher`.
    loss: (student's logits, teacher's logits) -> the loss of each example.
    weight: of this loss, from above 0 to 1; that of the labels has the rest.
    hints: feature maps that the student also learns from; None for none.
    description: one line for the user.
    record: what teacher.json of the run folder holds: a dict for each teacher.
    """

    variables: Any
    answers: Callable[[Any, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    weight: float
    description: str
    record: list[dict[str, Any]]
    hints: Hints | None = None

    def mixed(
        self, label_loss: jax.Array, logits: jax.Array, teacher_logits: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of a batch with its teacher, and the teacher's part in it, both scalars.

        Args:
          label_loss: scalar, the mean loss by the labels.
          logits, teacher_logits: [batch, classes].
        """
        # Nobody differentiates the teacher: what a loss does with its logits changes only them.
        teacher_loss = jnp.mean(self.loss(logits, jax.lax.stop_gradient(teacher_logits)))
        return (1 - self.weight) * label_loss + self.weight * teacher_loss, teacher_loss


@DISTILLATION.register("kl")
def kl(logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 3.0) -> jax.Array:
    """Soft labels (Hinton et al., arXiv 1503.02531, section 2) of each example, in float32.

    With p = softmax(teacher_logits / T) and q = softmax(logits / T),

        loss = T**2 * sum_k p[k] * (log p[k] - log q[k]).

    The gradient shrinks with T**2, for which the factor compensates, so that weights keep their
    meaning. It is that of Hinton's cross-entropy, from which this differs by the entropy of the
    teacher.

    Args:
      logits: [batch, classes], the student's, any float type.
      teacher_logits: [batch, classes], any float type.
      temperature: T, above 0; DeiT (arXiv 2012.12877, section 5) takes 3 for soft labels.

    Returns:
      float32 [batch].

    Raises:
      ValueError: the temperature is out of range.
    """
    check_number("distillation.temperature", temperature, above=0)
    log_p, log_q = _log_softmax(teacher_logits / temperature), _log_softmax(logits / temperature)
    return temperature**2 * _divergence(log_p, log_q)


@DISTILLATION.register("js")
def js(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Jensen-Shannon divergence (Lin 1991, IEEE Trans. Inf. Theory 37) of each example, float32.

    With p and q the softmax of both and m = (p + q) / 2, loss = (KL(p, m) + KL(q, m)) / 2, which is
    at most log 2.

    Args:
      logits: [batch, classes], the student's, any float type.
      teacher_logits: [batch, classes], any float type.

    Returns:
      float32 [batch].
    """
    log_p, log_q = _log_softmax(teacher_logits), _log_softmax(logits)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    return (_divergence(log_p, log_m) + _divergence(log_q, log_m)) / 2


@DISTILLATION.register("symmetric_kl")
def symmetric_kl(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """The mean of both Kullback-Leibler divergences of each example, in float32.

    It is what PaddleClas' SSLD calls JS divergence (`ppcls/loss/dmlloss.py`); SSLD trains on it
    alone, with weight 1. With p and q the softmax of both, loss = (KL(p, q) + KL(q, p)) / 2.

    Args:
      logits: [batch, classes], the student's, any float type.
      teacher_logits: [batch, classes], any float type.

    Returns:
      float32 [batch].
    """
    log_p, log_q = _log_softmax(teacher_logits), _log_softmax(logits)
    return (_divergence(log_p, log_q) + _divergence(log_q, log_p)) / 2


@DISTILLATION.register("hard")
def hard(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Cross-entropy with the teacher's most probable class as the label, of each example.

    Hard-label distillation of DeiT (Touvron et al., arXiv 2012.12877, equation 3). Among equal
    logits the lower class number is the label.

    Args:
      logits: [batch, classes], the student's, any float type.
      teacher_logits: [batch, classes], any float type.

    Returns:
      float32 [batch].
    """
    label = jnp.argmax(teacher_logits, axis=-1)
    return -jnp.take_along_axis(_log_softmax(logits), label[:, None], axis=-1)[:, 0]


def _log_softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def _divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p, q) of each row, float32 [batch]."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
