"""StableHLO by jax.export, portable across devices and stable across versions of JAX."""

import collections
import re
from collections.abc import Callable

import jax

from mbv3_jax.export.packages import need

# The networks lower to the same text for all of them, so that one file holds it once: lowered for
# all at once, every convolution would be there four times, behind a branch.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEPTHWISE = "convolution (depthwise)"
_OPERATION = re.compile(r"= \"?stablehlo\.(?P<name>\w+)(?P<rest>.*)")
_GROUPS = re.compile(r"feature_group_count = (\d+)")


def to_stablehlo(
    function: Callable, shape: tuple, dtype: str = "float32", platform: str = "cpu"
) -> bytes:
    """Exports a function of images; arrays that it closes over become constants.

    Args:
      function: images -> logits.
      shape: of the images; a name in the place of the batch stands for any number.
      dtype: of the images.
      platform: what to lower for; it runs on all of them.

    Returns:
      What `jax.export.deserialize` reads; its `mlir_module()` is the StableHLO.
    """
    need("flatbuffers", "StableHLO")  # of jax.export
    shape = jax.export.symbolic_shape(",".join(map(str, shape)))
    example = jax.ShapeDtypeStruct(shape, dtype)
    exported = jax.export.export(
        jax.jit(function),
        platforms=[platform],
        disabled_checks=[jax.export.DisabledSafetyCheck.platform()],
    )(example)
    return bytes(exported.serialize())


def counts(model: bytes) -> dict[str, int]:
    """How often each operation occurs, the most frequent first; depthwise convolutions apart.

    Constants and what only handles shapes are counted too: XLA has yet to fuse.
    """
    need("flatbuffers", "StableHLO")
    found = collections.Counter()
    for match in _OPERATION.finditer(jax.export.deserialize(bytearray(model)).mlir_module()):
        name = match["name"]
        if name == "convolution" and int(_GROUPS.search(match["rest"])[1]) > 1:
            name = DEPTHWISE
        found[name] += 1
    return dict(found.most_common())
