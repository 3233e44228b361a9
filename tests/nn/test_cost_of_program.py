"""Counts of arch/cost.py against the program that JAX traces, layer by layer."""

import math

import jax
import pytest
from jax.extend import core

from mbv3_jax.arch import build, cost
from mbv3_jax.nn import functional
from mbv3_jax.nn.modules import Compute

CASES = [
    *({"name": f"mobilenet_v3_{size}"} for size in ("large", "small")),
    *({"name": f"mobilenet_v3_{size}_minimalistic"} for size in ("large", "small")),
    {"name": "mobilenet_v2"},
    {"name": "mnasnet_a1"},
    {"name": "mobilenet_v3_large", "last_stage": "original", "stem_filters": 32},
    {"name": "mobilenet_v3_large", "width": 0.75, "width_rule": "torchvision", "resolution": 193},
    {"name": "mobilenet_v3_small", "se": "everywhere", "last_se": True, "head_filters": 1280},
    {"name": "mobilenet_v3_small", "kernels": "7x7", "padding": "symmetric", "resolution": 95},
    {"name": "mnasnet_a1", "last_stage": "efficient", "width": 0.5, "in_channels": 1},
]


def products(jaxpr):
    """(multiply-adds, shape of the output) of each convolution and matrix product, in order."""
    for eqn in jaxpr.eqns:
        for inner in core.jaxprs_in_params(eqn.params):
            yield from products(inner)
        out = eqn.outvars[0].aval.shape
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out_channels = eqn.params["dimension_numbers"].rhs_spec[0]
            yield math.prod(out) * math.prod(kernel) // kernel[out_channels], out
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            yield math.prod(out) * summed, out


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_layer_by_layer(case):
    spec = build(**case)
    size = (1, spec.resolution, spec.resolution, spec.in_channels)

    def forward(variables, images):
        return functional.apply(spec, variables, images, compute=Compute(depthwise="grouped"))[0]

    variables = functional.shapes(spec)
    images = jax.ShapeDtypeStruct(size, "float32")
    traced = jax.make_jaxpr(forward)(variables, images)

    counted = [(layer.madds, math.prod(layer.outputs)) for layer in cost.layers(spec)]
    executed = [(madds, math.prod(out)) for madds, out in products(traced.jaxpr)]
    assert executed == counted

    params = {layer.name: layer.params for layer in cost.layers(spec)}
    assert {name: _size(variables["params"], name) for name in params} == params
    leaves = jax.tree.leaves(variables["params"])
    assert sum(math.prod(x.shape) for x in leaves) == cost.params(spec)


def _size(tree, name: str) -> int:
    """Number of parameters of one layer; a stem or last 1x1 has its SE counted apart."""
    for part in name.split("/"):
        tree = tree[part]
    own = {k: v for k, v in tree.items() if k != "se"}
    return sum(math.prod(x.shape) for x in jax.tree.leaves(own))
