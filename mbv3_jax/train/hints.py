"""Hints: maps of a teacher that a student learns to predict from its own (FitNets).

Romero et al. (arXiv 1412.6550, section 2.2) train a layer of the student so that a regressor on it
gives the map of a layer of the teacher. The regressor, a 1x1 convolution here, is trained with the
student and not used afterwards. The paper trains the hints in a stage of its own first. Here, as in
current code bases, the loss of the hints is added to those of labels and logits.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import check_whole
from mbv3_jax.nn import ops

Maps = Mapping[str, jax.Array]  # stage -> [batch, height, width, channels]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """Which maps of a student predict which of its teacher.

    stages: (of the student, of the teacher), in the order of the strides.
    channels: (of the student's map, of the teacher's) for each of them.
    weight: of the loss, which is added to the others.
    """

    stages: tuple[tuple[str, str], ...]
    channels: tuple[tuple[int, int], ...]
    weight: float

    @property
    def of_student(self) -> tuple[str, ...]:
        """The stages of the student."""
        return tuple(student for student, _ in self.stages)

    @property
    def of_teacher(self) -> tuple[str, ...]:
        """The stages of the teacher."""
        return tuple(teacher for _, teacher in self.stages)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """The projections before training: {"kernel": [1, 1, in, out], "bias": [out]} by stage.

        The stage is the student's. Kernels are drawn with variance 1 / fan-in, so that their
        outputs are as large as their inputs; biases are zero.
        """
        keys = jax.random.split(key, len(self.stages))
        return {
            stage: {
                "kernel": jax.random.normal(one, (1, 1, inputs, out)) / math.sqrt(inputs),
                "bias": jnp.zeros(out),
            }
            for stage, (inputs, out), one in zip(self.of_student, self.channels, keys, strict=True)
        }

    def loss(self, projections: Mapping[str, Any], student: Maps, teacher: Maps) -> jax.Array:
        """Half the mean squared error of the projections, a float32 scalar.

        Equation 3 of the paper, as the mean over images, positions and channels, and over the
        stages. A teacher's map of another height or width is resized to the student's.

        Args:
          projections: as from `init`.
          student, teacher: their maps; no gradient reaches the teacher's.
        """
        losses = []
        for ours, theirs in self.stages:
            given, hint = student[ours].astype(jnp.float32), teacher[theirs].astype(jnp.float32)
            if hint.shape[1:3] != given.shape[1:3]:
                shape = (*given.shape[:3], hint.shape[-1])
                hint = jax.image.resize(hint, shape, "bilinear", antialias=True)
            predicted = ops.pointwise_conv(given, **projections[ours])
            losses.append(jnp.mean(jnp.square(predicted - jax.lax.stop_gradient(hint))) / 2)
        return jnp.mean(jnp.stack(losses))


def make_hints(
    strides: Sequence[int], weight: float, student: NetSpec, teacher: NetSpec
) -> Hints | None:
    """The hints of the last stage of each stride in both networks.

    Args:
      strides: pixels of the image between neighbouring values of a map; none for no hints.
      weight: of their loss.
      student, teacher: the networks.

    Raises:
      ValueError: not both networks have a stage of such a stride.
    """
    if not strides:
        return None
    last = [{n: stage for stage, n in spec.strides().items()} for spec in (student, teacher)]
    common = [stride for stride in last[0] if stride in last[1]]
    for stride in strides:
        check_whole("distillation.features", stride, at_least=1)
    if len(set(strides)) < len(strides) or set(strides) - set(common):
        raise ValueError(
            f"distillation.features: got {tuple(strides)}, expected different strides that both "
            f"networks have: {', '.join(map(str, common))}"
        )
    stages = tuple((last[0][stride], last[1][stride]) for stride in sorted(strides))
    channels = tuple((_channels(student, a), _channels(teacher, b)) for a, b in stages)
    return Hints(stages=stages, channels=channels, weight=weight)


def _channels(spec: NetSpec, stage: str) -> int:
    if stage in ("stem", "last"):
        return getattr(spec, stage).out
    return spec.blocks[int(stage.removeprefix("block")) - 1].out
