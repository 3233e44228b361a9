"""The registry refuses entries that lack anything, and its names are what specs accept."""

import dataclasses

import pytest

from mbv3_jax.arch import ConvSpec, SESpec, build
from mbv3_jax.arch.activations import (
    ACTIVATIONS,
    GATES,
    Activation,
    Gate,
    OnnxNode,
    Relu6Form,
    fixed_range,
    register,
)

ENTRY = {
    "name": "double",
    "fn": lambda x: 2 * x,
    "onnx": (OnnxNode(op="Add", inputs=("x", "x")),),
    "tflite": {},
    "homogeneous": True,
    "passes": 1,
    "gate": None,
}
GATE = {key: ENTRY[key] for key in ("name", "fn", "onnx", "tflite")} | {
    "relu6_form": None,
    "int8_range": None,
}


@pytest.fixture
def registry():
    """Forgets what a test registers."""
    before = dict(ACTIVATIONS), dict(GATES)
    yield
    for entries, old in zip((ACTIVATIONS, GATES), before, strict=True):
        entries.clear()
        entries.update(old)


@pytest.mark.parametrize(
    ("kind", "field"), [(Activation, f) for f in ENTRY] + [(Gate, f) for f in GATE]
)
def test_every_field_must_be_given(kind, field):
    fields = {k: v for k, v in (ENTRY if kind is Activation else GATE).items() if k != field}
    with pytest.raises(TypeError, match=field):
        kind(**fields)
    assert "double" not in {**ACTIVATIONS, **GATES}


WRONG = {
    "name": ["", "h-swish", None, "relu", "sigmoid"],
    "fn": [None, "jax.nn.relu"],
    "onnx": [
        (),
        "Relu",
        (OnnxNode(op=""),),
        (OnnxNode(op="Relu", output="y"),),
        (OnnxNode(op="Mul", inputs=("x", "y")),),
        (OnnxNode(op="Relu"), OnnxNode(op="Relu")),
    ],
    "tflite": [None, {"MUL": 0}, {"MUL": "1"}],
    "homogeneous": [None, 1],
    "passes": [None, -1, True],
    "gate": ["tanh", "relu"],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in WRONG.items() for v in vs])
def test_a_wrong_field_is_refused_by_name(field, value, registry):
    entry = Activation(**ENTRY | {field: value})
    with pytest.raises(ValueError, match=rf"activation {entry.name!r}: {field}: got .* expected"):
        register(entry)
    assert entry not in ACTIVATIONS.values()


@pytest.mark.parametrize(("field", "value"), [("relu6_form", (3, 6)), ("int8_range", (1, 0))])
def test_a_wrong_gate_is_refused_by_name(field, value, registry):
    with pytest.raises(ValueError, match=rf"activation 'double': {field}: got"):
        register(Gate(**GATE | {field: value}))
    assert "double" not in GATES


def test_a_complete_entry_is_a_choice_everywhere(registry):
    with pytest.raises(ValueError, match="act: got 'double', expected one of 'relu', 'relu6'"):
        ConvSpec(kernel=1, out=8, act="double")
    register(Activation(**ENTRY))
    assert ConvSpec(kernel=1, out=8, act="double").act == "double"
    spec = build("mobilenet_v3_small", nonlinearity="double")
    assert {spec.stem.act, spec.last.act, *(b.act for b in spec.blocks)} == {"double"}
    with pytest.raises(ValueError, match="gate: got 'double'"):
        SESpec(gate="double")
    again = Activation(**ENTRY)
    register(again)  # a configuration file that is executed again
    assert ACTIVATIONS["double"] is again
    with pytest.raises(ValueError, match="'double': name: got 'double', expected a name that is"):
        register(Activation(**ENTRY | {"fn": lambda x: x}))


def test_fixed_ranges():
    assert fixed_range("stem/relu6") == fixed_range("block1/se/relu6") == (0, 6)
    assert fixed_range("stem/sigmoid") == (0, 255 / 256)
    for name in ("stem", "stem/pre", "block1/se/gate", "block1/depthwise"):
        assert fixed_range(name) is None


def test_entries_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ACTIVATIONS["relu"].passes = 3
    assert Relu6Form(offset=3, factor=6) == GATES["hard_sigmoid"].relu6_form
