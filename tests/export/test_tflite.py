"""Functions and networks as TFLite files: the same numbers, few operations."""

import importlib.util
import os

import jax
import numpy as np
import pytest

from mbv3_jax.arch import build
from mbv3_jax.core import packages
from mbv3_jax.core.errors import UsageError
from mbv3_jax.export import tflite
from mbv3_jax.nn import functional
from mbv3_jax.nn.folded import Forms, apply_folded, fold

if not os.environ.get("MBV3_REQUIRE_PEERS"):
    for extra in ("litert_converter", "ai_edge_litert"):
        if importlib.util.find_spec(extra) is None:
            pytest.skip(f"{extra} is not installed", allow_module_level=True)


def run(model: bytes, images):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=model).get_signature_runner()(images=images)["logits"]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v2"])
def test_networks_have_few_operations_and_the_same_logits(name):
    spec = build(name, resolution=64, num_classes=7)
    variables = functional.init(spec, jax.random.key(0))
    folded = jax.tree.map(np.asarray, fold(spec, variables))
    forms = Forms(hard_sigmoid="rescaled")

    def function(x):
        return apply_folded(spec, folded, x, forms=forms)

    model = tflite.to_tflite(function, jax.ShapeDtypeStruct((2, 64, 64, 3), "float32"))
    found = tflite.counts(model)
    blocks = len(spec.blocks)
    squeezed = sum(block.se is not None for block in spec.blocks)
    assert found["DEPTHWISE_CONV_2D"] == blocks
    assert found["CONV_2D"] + found.get("FULLY_CONNECTED", 0) == (
        sum(spec.has_expand(i) for i in range(blocks))
        + blocks  # projections
        + 2 * squeezed
        + 3  # stem, last, logits
        + (spec.head is not None)
    )
    h_swish = {"mobilenet_v3_small": 19, "mobilenet_v3_large": 21}.get(name, 0)
    assert found.get("HARD_SWISH", 0) == h_swish
    assert found.get("MUL", 0) == squeezed
    shortcuts = sum(spec.has_shortcut(i) for i in range(blocks))
    assert found.get("ADD", 0) == shortcuts
    assert found["MEAN"] == squeezed + 1
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    wanted = np.asarray(function(images))
    assert np.max(np.abs(run(model, images) - wanted)) < 1e-5 * max(1, np.max(np.abs(wanted)))


def test_operations_say_what_they_write():
    model = tflite.to_tflite(
        lambda x: jax.nn.relu(x) * 2.0, jax.ShapeDtypeStruct((1, 3), "float32")
    )
    last = tflite.operations(model)[-1]
    assert (last.name, last.shape, last.dtype) == ("MUL", (1, 3), "FLOAT32")


def test_what_is_not_installed_is_named_with_the_command():
    with pytest.raises(
        UsageError, match=r"TFLite needs no_such_package: pip install .*\[export\]'"
    ):
        packages.need("no_such_package.inner", "TFLite", "export")
    assert packages.installed("json") and not packages.installed("no_such_package")
