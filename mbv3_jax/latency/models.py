"""Networks with random weights as files of a runtime."""

import jax
import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.export import tflite
from mbv3_jax.nn import functional
from mbv3_jax.nn.folded import Forms, apply_folded, fold


def random_model(spec: NetSpec, runtime: str, precision: str = "float32") -> bytes:
    """The file for `measure.measure_file`, for images [1, H, W, C]."""
    variables = functional.init(spec, jax.random.key(0))
    folded = jax.tree.map(np.asarray, fold(spec, variables))
    shape = (1, spec.resolution, spec.resolution, spec.in_channels)
    return tflite.to_tflite(
        lambda x: apply_folded(spec, folded, x, forms=Forms(hard_sigmoid="rescaled")),
        jax.ShapeDtypeStruct(shape, "float32"),
    )
