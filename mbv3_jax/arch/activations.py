"""Activations and gates: everything the package knows about each of them, in one entry.

To add one, add an entry below; nothing else needs to change. Building, training, counting,
quantizing, exporting, pricing and searching all read `ACTIVATIONS` and `GATES`, and an entry that
lacks anything that they need is refused when it is registered.

The two hard functions are those of MobileNetV3 section 5.2: hard_sigmoid(x) = relu6(x + 3) / 6 and
h_swish(x) = x * hard_sigmoid(x). (Keras' former hard sigmoid, 0.2x + 0.5, is another function.)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mbv3_jax.core.registry import definition_place


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxNode:
    """One ONNX node of an activation.

    Attributes:
      op: the operator, such as "Relu".
      inputs: names of tensors: "x" is the activation's input, other names are the outputs of
        earlier nodes.
      output: a name for a later node to read; "" for the last node, whose output is the result.
      attributes: the operator's attributes.
      constants: scalar inputs that follow `inputs`, by name.
    """

    op: str
    inputs: tuple[str, ...] = ("x",)
    output: str = ""
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relu6Form:
    """A gate written as relu6(x + offset), which is `factor` times the gate.

    Runtimes compute it inside the preceding convolution; the factor moves into the next kernel.
    """

    offset: float
    factor: float


# Compared and hashed by identity: an entry exists once, and static arguments of jitted functions
# need a hash.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Entry:
    name: str
    fn: Callable[[Any], Any]
    onnx: tuple[OnnxNode, ...]
    tflite: Mapping[str, int]

    def __call__(self, x):
        """Applies the function to an array of any shape, elementwise, in the array's type."""
        return self.fn(x)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Activation(_Entry):
    """A nonlinearity after a convolution. Every field must be given.

    Attributes:
      name: what a spec or a configuration calls it.
      fn: the elementwise JAX function. It imports JAX only when called.
      onnx: the nodes that compute it.
      tflite: the operations, with their number, that each layer with it must have after the TFLite
        converter; empty if the converter fuses it into the convolution. Leave out operations that
        the network also uses elsewhere (MUL, ADD): exported files are checked against this.
      homogeneous: whether fn(a * x) = a * fn(x) for every a > 0, so that cross-layer equalisation
        may rescale the channels before and after it.
      passes: how often a runtime reads and writes the whole feature map to compute it after the
        convolution; 0 if it is fused. The latency model uses this number for an activation that is
        not in its table.
      gate: the name of the gate g with fn(x) = x * g(x), or None. An int8 runtime without an
        operation for `fn` stores this gate and multiplies.
    """

    homogeneous: bool
    passes: float
    gate: str | None

    @property
    def fused(self) -> bool:
        """Whether a runtime computes it inside the convolution and stores nothing in between."""
        return self.passes == 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Gate(_Entry):
    """What squeeze-and-excite scales a channel by. Every field must be given.

    Attributes:
      name, fn, onnx, tflite: as for `Activation`.
      relu6_form: how to write it with relu6, or None.
      int8_range: the range (low, high) that int8 runtimes prescribe for its output, or None if the
        range is measured.
    """

    relu6_form: Relu6Form | None
    int8_range: tuple[float, float] | None

    @property
    def tensor(self) -> str:
        """What the stored output is called; see `fixed_range`."""
        return self.name if self.int8_range else "gate"


ACTIVATIONS: dict[str, Activation] = {}
GATES: dict[str, Gate] = {}
RELU6_TENSOR, _RELU6_RANGE = "relu6", (0.0, 6.0)


def register(entry: Activation | Gate) -> None:
    """Adds an entry to `ACTIVATIONS` or `GATES`.

    Raises:
      ValueError: the name is taken, or a field does not say what it should; the message names the
        entry and the field. (A field that is left out is already a TypeError of the class.)
    """

    def require(field: str, is_valid: bool, expected: str) -> None:
        if not is_valid:
            path, got = f"activation {entry.name!r}: {field}", getattr(entry, field)
            raise ValueError(f"{path}: got {got!r}, expected {expected}")

    require("name", isinstance(entry.name, str) and entry.name.isidentifier(), "an identifier")
    require("fn", callable(entry.fn), "a function of an array")
    # A configuration file is executed again for every configuration that is read from it, so an
    # entry replaces an earlier one that was defined at the same place.
    existing = ACTIVATIONS.get(entry.name) or GATES.get(entry.name)
    is_new = existing is None or definition_place(existing.fn) == definition_place(entry.fn)
    require("name", is_new, "a name that is not taken yet")
    require("onnx", _are_nodes(entry.onnx), "OnnxNodes that lead from 'x' to a last one without "
            "an output name, each reading only 'x' and outputs of earlier nodes")  # fmt: skip
    counts = entry.tflite.values() if isinstance(entry.tflite, Mapping) else [None]
    require("tflite", all(isinstance(n, int) and n > 0 for n in counts),
            "operation names with their number, {} if it is fused")  # fmt: skip
    if isinstance(entry, Gate):
        form, limits = entry.relu6_form, entry.int8_range
        require("relu6_form", form is None or isinstance(form, Relu6Form), "a Relu6Form or None")
        require("int8_range", limits is None or (len(limits) == 2 and limits[0] < limits[1]),
                "(low, high) or None")  # fmt: skip
        GATES[entry.name] = entry
        return
    require("homogeneous", isinstance(entry.homogeneous, bool), "True or False")
    is_number = isinstance(entry.passes, int | float) and not isinstance(entry.passes, bool)
    require("passes", is_number and entry.passes >= 0, "a number of at least 0")
    require("gate", entry.gate is None or entry.gate in GATES, f"None or one of {sorted(GATES)}")
    ACTIVATIONS[entry.name] = entry


def _are_nodes(nodes: Any) -> bool:
    if not isinstance(nodes, tuple) or not nodes:
        return False
    readable = {"x"}
    for node in nodes:
        if not isinstance(node, OnnxNode) or not node.op or not set(node.inputs) <= readable:
            return False
        if not node.output and node is not nodes[-1]:
            return False
        readable.add(node.output)
    return nodes[-1].output == ""


def fixed_range(tensor: str) -> tuple[float, float] | None:
    """The range of a tensor that an int8 runtime stores, if it does not depend on the data.

    Args:
      tensor: its name in the folded network; the last part tells what it is: "stem/relu6".
    """
    kind = tensor.rpartition("/")[2]
    if kind == RELU6_TENSOR:
        return _RELU6_RANGE
    return GATES[kind].int8_range if kind in GATES else None


def _jax_nn(name: str) -> Callable[[Any], Any]:
    """`jax.nn.name`, imported at the first call: this package needs only the standard library."""

    def function(x):
        import jax

        return getattr(jax.nn, name)(x)

    function.__name__ = name
    return function


# Gates, before the activations that are products with them.

register(
    Gate(
        name="hard_sigmoid",  # relu6(x + 3) / 6
        fn=_jax_nn("hard_sigmoid"),
        onnx=(OnnxNode(op="HardSigmoid", attributes={"alpha": 1 / 6, "beta": 0.5}),),
        tflite={},
        relu6_form=Relu6Form(offset=3.0, factor=6.0),
        int8_range=None,
    )
)
register(
    Gate(
        name="sigmoid",
        fn=_jax_nn("sigmoid"),
        onnx=(OnnxNode(op="Sigmoid"),),
        tflite={"LOGISTIC": 1},
        relu6_form=None,
        int8_range=(0.0, 255 / 256),  # TFLite's quantization specification
    )
)

# Activations.

register(
    Activation(
        name="relu",
        fn=_jax_nn("relu"),
        onnx=(OnnxNode(op="Relu"),),
        tflite={},
        homogeneous=True,
        passes=0,
        gate=None,
    )
)
register(
    Activation(
        name="relu6",
        fn=_jax_nn("relu6"),
        onnx=(OnnxNode(op="Clip", constants={"min": 0.0, "max": 6.0}),),
        tflite={},
        homogeneous=False,  # its 6 does not scale
        passes=0,
        gate=None,
    )
)
register(
    Activation(
        name="h_swish",  # x * relu6(x + 3) / 6
        fn=_jax_nn("hard_swish"),
        onnx=(OnnxNode(op="HardSwish"),),
        tflite={"HARD_SWISH": 1},
        homogeneous=False,
        passes=1,
        gate="hard_sigmoid",
    )
)
register(
    Activation(
        name="swish",  # x * sigmoid(x)
        fn=_jax_nn("silu"),
        onnx=(
            OnnxNode(op="Sigmoid", output="sigmoid"),
            OnnxNode(op="Mul", inputs=("x", "sigmoid")),
        ),
        tflite={"LOGISTIC": 1},
        homogeneous=False,
        passes=2,
        gate="sigmoid",
    )
)
