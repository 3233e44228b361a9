"""What devices communicate in a compiled program, read from its text."""

import dataclasses
import math
import re
from collections import Counter

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
GRADIENTS, BN_BACKWARD, BN_FORWARD, SCALARS = (
    "gradients, without BatchNorm's",
    "BatchNorm backward (gradients of scale and bias)",
    "BatchNorm forward (mean and variance)",
    "loss, top-1 and norms",
)

_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
_INSTRUCTION = re.compile(rf" = (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(")
_TENSOR = re.compile(r"(?P<dtype>[a-z]+[0-9]*)\[(?P<shape>[0-9,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction; XLA joins several that can wait for each other into one with more tensors.

    `op_name` is where in the traced function it comes from, "jit(step)/transpose(jvp())/...";
    empty where the partitioner put it in by itself.
    """

    kind: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]  # results: (type, shape on one device)
    op_name: str = ""

    @property
    def bytes(self) -> int:
        """Of all results on one device."""
        return sum(self.bytes_by_group().values())

    @property
    def batch_norm_bytes(self) -> int:
        """Of BatchNorm's sums, for which the next layer waits if they are over all devices."""
        groups = self.bytes_by_group()
        return groups[BN_FORWARD] + groups[BN_BACKWARD]

    def bytes_by_group(self) -> Counter:
        """Bytes of a train step's reductions by what they are, of all else by kind.

        A vector is BatchNorm's: the gradients of other biases come as [1, 1, C].
        """
        found = Counter()
        names = _names(self.op_name, len(self.tensors))
        for (dtype, shape), name in zip(self.tensors, names, strict=True):
            group = self.kind
            if self.kind == "all-reduce":
                vector = BN_BACKWARD if "transpose(" in name else BN_FORWARD
                group = {0: SCALARS, 1: vector}.get(len(shape), GRADIENTS)
            found[group] += _BYTES[dtype] * math.prod(shape)
        return found


def _names(op_name: str, tensors: int) -> list[str]:
    """The name of each tensor of a joined instruction: "a/(b:c/d)" is "a/b" and "a/c/d"."""
    parts = op_name.split(":")
    if len(parts) != tensors:
        return [op_name] * tensors
    first, depth = parts[0], 0
    for start in reversed(range(len(first))):
        depth += {")": 1, "(": -1}.get(first[start], 0)
        if depth < 0:
            return [first[:start] + part for part in (first[start + 1 :], *parts[1:])]
    return parts


def read(hlo: str) -> list[Collective]:
    """All collectives in the text of a compiled program, in the order of the text.

    Raises:
      ValueError: a type whose size is not known here.
    """
    found = []
    for line in hlo.splitlines():
        match = _INSTRUCTION.search(line)
        if not match:
            continue
        tensors = tuple(
            (t["dtype"], tuple(int(n) for n in t["shape"].split(",") if n))
            for t in _TENSOR.finditer(match["result"])
        )
        unknown = {dtype for dtype, _ in tensors} - _BYTES.keys()
        if unknown:
            raise ValueError(f"{line.strip()[:100]}: type {unknown}, expected {', '.join(_BYTES)}")
        name = re.search(r'op_name="([^"]*)"', line)
        found.append(Collective(match["kind"], tensors, name[1] if name else ""))
    return found


def bytes_by_group(collectives: list[Collective]) -> Counter:
    """The sum of `Collective.bytes_by_group`."""
    return sum((c.bytes_by_group() for c in collectives), Counter())


def expected(experiment) -> Counter:
    """`bytes_by_group` of a train step in float32, from the network's parameters alone.

    The gradient of each parameter and the sums behind each running statistic are reduced once, and
    loss and top-1. With a sharded optimizer each parameter that is updated in parts is gathered
    once, and the squares of its gradient, update and new value are summed up for their norms.

    Args:
      experiment: `train.experiment.Experiment`.
    """
    import jax

    from mbv3_jax.nn import functional
    from mbv3_jax.train.optimizers import parameter_paths
    from mbv3_jax.train.sharding import spread

    shapes = functional.shapes(experiment.spec)
    params = shapes["params"]
    leaves = jax.tree.leaves(params)
    found = Counter({SCALARS: 2 * 4})
    for path, leaf in zip(parameter_paths(params), leaves, strict=True):
        found[BN_BACKWARD if "/bn/" in path else GRADIENTS] += 4 * leaf.size
    found[BN_FORWARD] = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes["batch_stats"]))
    if experiment.plan.compute.shard_optimizer:
        places = jax.tree.leaves(spread(params, experiment.mesh))
        cut = [x for x, p in zip(leaves, places, strict=True) if not p.is_fully_replicated]
        found["all-gather"] = sum(4 * leaf.size for leaf in cut)
        found[SCALARS] += 3 * 4 * len(cut)
    return found


def of_step(experiment) -> list[Collective]:
    """The collectives of an experiment's train step, compiled for its mesh; nothing is run.

    Args:
      experiment: `train.experiment.Experiment`.
    """
    import jax
    import numpy as np

    spec = experiment.spec
    shape = (experiment.plan.batch_size, spec.resolution, spec.resolution, spec.in_channels)
    batch = {
        "image": jax.ShapeDtypeStruct(shape, np.uint8),
        "label": jax.ShapeDtypeStruct(shape[:1], np.int32),
    }
    step = experiment.train_step
    lowered = step.func.lower(*step.args, experiment.abstract_state(), batch)
    return read(lowered.compile().as_text())
