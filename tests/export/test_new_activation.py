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
from mbv3_jax.arch.activations import ACTIVATIONS, GATES, Activation, OnnxNode, register
from mbv3_jax.export import check, formats, onnx
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


def export(spec, file_format: str):
    """The network with random weights, its file, and how the file was written."""
    model = Model(
        spec=spec,
        variables=random_variables(functional.shapes(spec)),
        preprocessing=Preprocessing(),
        class_names=tuple(map(str, range(spec.num_classes))),
    )
    target = Target(file_format=file_format)
    return model, formats.write(model, target), target


@pytest.mark.parametrize("file_format", ["onnx", "tflite"])
@pytest.mark.parametrize("act", list(ACTIVATIONS))
def test_files_have_the_operations_of_the_entry(act, file_format, monkeypatch):
    model, file, target = export(with_act(act), file_format)
    assert check.defects(file, target, model) == []
    monkeypatch.setattr(check, "activation_counts", lambda spec, file_format: {"FUNCTION": 3})
    assert check.defects(file, target, model) == ["0 FUNCTION, expected 3 for activations"]


@pytest.mark.parametrize("entry", [*ACTIVATIONS.values(), *GATES.values()], ids=lambda e: e.name)
def test_onnx_nodes_are_the_function(entry):
    import onnxruntime
    from onnx import helper

    spec = with_act("relu")
    writer = onnx._Writer(spec, {}, np.dtype("float32"))
    result = writer.elementwise(entry, "images")
    values = [helper.make_tensor_value_info(n, 1, ["N"]) for n in ("images", result)]
    graph = helper.make_graph(writer.nodes, "one", values[:1], values[1:], writer.constants)
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", onnx.OPSET)]
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.linspace(-9, 9, 101, dtype=np.float32)
    (got,) = session.run(None, {"images": x})
    np.testing.assert_allclose(got, entry(x), rtol=1e-5, atol=1e-6)


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
        model, file, target = export(spec, file_format)
        expected = check.reference(model, images)
        got = check.run_file(file, target, images)
        assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
        assert check.defects(file, target, model) == []


def test_a_new_activation_has_a_price(mish):
    """Three passes cost three of h-swish's, or of writing a map if only ReLU was measured."""
    stem = pieces(with_act(mish))[0]
    work = cost_model.work(stem)
    assert work["mish"] == work["written"] == 16 * 16 * 8 / 1e6
    assert work["h_swish"] == work["swish"] == 0

    def prices(table: Table) -> dict[str, float]:
        return dict(zip(work, cost_model.fit(table).weights, strict=True))

    table = measured(with_act("relu"), 1e-3)
    table.pieces.update(measured(with_act("h_swish"), 2e-3).pieces)
    both = prices(table)
    assert both["h_swish"] > 0
    assert both["mish"] == pytest.approx(3 * both["h_swish"])
    assert both["swish"] == pytest.approx(2 * both["h_swish"])
    only_relu = measured(with_act("relu"), 1e-3)
    most_written = max(cost_model.work(p)["written"] for p in only_relu.pieces)
    assert prices(only_relu)["mish"] == pytest.approx(3 * 1e-3 / most_written)
    predicted = cost_model.fit(only_relu).predicted([stem, dataclasses.replace(stem, act="relu")])
    assert predicted[0] > predicted[1]
