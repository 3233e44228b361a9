"""Every activation of the registry in every format; and a new one, from a single entry."""

import dataclasses
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_net import random_variables
from small_net import NET, random_images

from mbv3_jax.arch import cost, edits, spec_from_json, spec_to_json
from mbv3_jax.arch.activations import ACTIVATIONS, Activation, OnnxNode, register
from mbv3_jax.export import check, formats
from mbv3_jax.export.formats import Target
from mbv3_jax.latency import cost_model
from mbv3_jax.latency.pieces import pieces
from mbv3_jax.latency.table import Table
from mbv3_jax.nn import fake_quant, functional
from mbv3_jax.nn.folded import apply_folded, fold
from mbv3_jax.quant.weight_corrections import equalize
from mbv3_jax.run.model import Model, Preprocessing
from mbv3_jax.search.space import Stage

if not os.environ.get("MBV3_REQUIRE_PEERS"):
    for extra in ("litert_converter", "ai_edge_litert", "onnx", "onnxruntime"):
        if importlib.util.find_spec(extra) is None:
            pytest.skip(f"{extra} is not installed", allow_module_level=True)

MISH = Activation(
    name="mish",
    fn=lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    onnx=(
        OnnxNode(op="Softplus", output="softplus"),
        OnnxNode(op="Tanh", inputs=("softplus",), output="tanh"),
        OnnxNode(op="Mul", inputs=("x", "tanh")),
    ),
    tflite={"EXP": 1, "LOG": 1, "TANH": 1},
    homogeneous=False,
    passes=3,
    gate=None,
)


@pytest.fixture
def mish():
    register(MISH)
    yield "mish"
    del ACTIVATIONS["mish"]


def with_act(act: str):
    """The small network with this activation everywhere, squeeze-and-excite included."""
    spec = edits.nonlinearity(NET, act)
    blocks = [
        dataclasses.replace(b, se=b.se and dataclasses.replace(b.se, act=act)) for b in spec.blocks
    ]
    return spec.replace(name=f"net_{act}", blocks=tuple(blocks))


def exported(spec, file_format: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits of the network and of its file, and what `check` finds wrong with the file."""
    model = Model(
        spec=spec,
        variables=random_variables(functional.shapes(spec)),
        preprocessing=Preprocessing(),
        class_names=tuple(map(str, range(spec.num_classes))),
    )
    target = Target(file_format=file_format)
    file = formats.write(model, target)
    images = random_images(spec, batch=2)
    logits = check.reference(model, images)
    return logits, check.run_file(file, target, images), check.defects(file, target, model)


@pytest.mark.parametrize("file_format", ["onnx", "tflite"])
@pytest.mark.parametrize("act", list(ACTIVATIONS))
def test_files_have_the_operations_of_the_entry(act, file_format):
    expected, got, defects = exported(with_act(act), file_format)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert defects == []


def test_a_missing_operation_is_a_defect(monkeypatch):
    monkeypatch.setattr(check, "activation_counts", lambda spec, file_format: {"HardSwish": 3})
    *_, defects = exported(with_act("relu"), "onnx")
    assert defects == ["0 HardSwish, expected 3 for activations"]


def test_counts_are_of_the_layers():
    # NET: h_swish in stem, block3 (twice) and head; swish in last; one sigmoid gate.
    assert check.activation_counts(NET, "tflite") == {"HARD_SWISH": 4, "LOGISTIC": 2}
    onnx = {"Relu": 4, "Clip": 2, "HardSwish": 4, "Sigmoid": 2, "HardSigmoid": 2}
    assert check.activation_counts(NET, "onnx") == onnx
    assert check.activation_counts(NET, "stablehlo") == {}


def measured(spec, ms: float) -> Table:
    """A table of a machine on which every piece of a network takes as long."""
    return Table("litert", 1, {"cpu": "made"}, {"made": "1"}, dict.fromkeys(pieces(spec), ms))


def test_a_new_activation_is_one_entry(mish):
    spec, relu = with_act(mish), with_act("relu")
    assert spec_from_json(spec_to_json(spec)) == spec
    assert Stage(out=(8,), act=("relu", mish)).act == ("relu", mish)
    # It costs what the convolutions cost, in the papers' way of counting.
    assert cost.params(spec) == cost.params(relu) and cost.madds(spec) == cost.madds(relu)

    # It trains.
    variables = functional.init(spec, jax.random.key(0))
    images, labels = random_images(spec, batch=8), np.arange(8) % spec.num_classes

    @jax.jit
    def loss(params):
        logits, _ = functional.apply(spec, variables | {"params": params}, images, train=True)
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(8), labels])

    before, gradient = jax.value_and_grad(loss)(variables["params"])
    stepped = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], gradient)
    assert float(loss(stepped)) < float(before)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient["block2"]))

    # It is the function, and folds, is quantized in simulation, and is left out of equalisation.
    np.testing.assert_allclose(
        ACTIVATIONS[mish](np.float32([-1, 0, 2])), [-0.303401, 0, 1.943959], rtol=1e-5
    )
    variables = random_variables(functional.shapes(spec))
    expected, _ = functional.apply(spec, variables, images)
    folded = jax.tree.map(np.asarray, fold(spec, variables))
    np.testing.assert_allclose(
        apply_folded(spec, folded, images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )
    assert {"stem/pre", "stem", "block1/depthwise/pre"} < set(fake_quant.tensors(spec))
    assert equalize(spec, folded)[1] == 0

    # Files compute it.
    for file_format in ("onnx", "tflite"):
        expected, got, defects = exported(spec, file_format)
        assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
        assert defects == []


def test_a_new_activation_has_a_price(mish):
    """Three passes cost thrice the one of h-swish, or of writing where nothing is measured."""
    (piece,) = (p for p in pieces(with_act(mish)) if p.kind == "stem")
    work = cost_model.work(piece)
    assert work["mish"] == work["written"] == 16 * 16 * 8 / 1e6
    assert set(cost_model.work(piece)) >= {"h_swish", "swish"} and work["h_swish"] == 0

    def price(of: str, table: Table) -> float:
        model = cost_model.fit(table)
        same = dataclasses.replace(piece, act="relu")
        other = dataclasses.replace(piece, act=of)
        return float(model.predicted([other])[0] - model.predicted([same])[0])

    table = measured(with_act("relu"), 1e-3)
    slower = measured(with_act("h_swish"), 2e-3).pieces
    table.pieces.update(slower)
    assert price("h_swish", table) > 0
    assert price("mish", table) == pytest.approx(3 * price("h_swish", table))
    assert price("swish", table) == pytest.approx(2 * price("h_swish", table))
    only_relu = measured(with_act("relu"), 1e-3)
    assert price("mish", only_relu) >= 0
    assert price("relu6", only_relu) == 0
