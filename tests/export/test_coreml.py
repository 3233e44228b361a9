"""Core ML packages, read back from the disk and computed here operation by operation.

Core ML itself exists on Apple's systems only.
"""

import dataclasses
import importlib.util
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_net import random_variables
from small_net import NET, random_images

from mbv3_jax.arch import edits
from mbv3_jax.arch.activations import ACTIVATIONS, Activation, OnnxNode, register
from mbv3_jax.core.errors import UsageError
from mbv3_jax.export import check, coreml, formats, metadata
from mbv3_jax.export.formats import Target
from mbv3_jax.nn import functional
from mbv3_jax.run.model import Model, Preprocessing

if not os.environ.get("MBV3_REQUIRE_PEERS") and not importlib.util.find_spec("coremltools"):
    pytest.skip("coremltools is not installed", allow_module_level=True)


def a_model(spec, names=None):
    channels = spec.in_channels
    return Model(
        spec=spec,
        variables=random_variables(functional.shapes(spec)),
        preprocessing=Preprocessing(
            mean=(0.4, 0.5, 0.6, 0.7)[:channels], std=(0.2, 0.25, 0.3, 0.35)[:channels]
        ),
        class_names=names or tuple(f"é {i}" for i in range(spec.num_classes)),
    )


def written(model, folder, **target):
    """The package, as a folder."""
    target = Target(file_format="coreml", **target)
    package = formats.write(model, target)
    assert check.defects(package, target, model) == []
    coreml.save(package, folder)
    return folder


def read(folder):
    """The description of a package and its program, which coremltools reads back."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = coremltools.utils.load_spec(str(folder))
    weights = folder / "Data" / "com.apple.CoreML" / "weights"
    return spec.description, load(spec, spec.specificationVersion, str(weights))


def conv(x, weight, bias, strides, pad_type, pad, dilations, groups):
    assert (pad_type, list(dilations)) == ("custom", [1, 1])
    pads = np.reshape(pad, (2, 2)).tolist()
    y = jax.lax.conv_general_dilated(
        x, weight, strides, pads, feature_group_count=int(groups), precision="highest"
    )
    return y + bias[:, None, None]


def batch_norm(x, mean, variance, gamma, beta, epsilon):
    scale = gamma / np.sqrt(variance + epsilon)
    return x * scale[:, None, None] + (beta - mean * scale)[:, None, None]


# As https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html says.
OPERATIONS = {
    "add": lambda x, y: x + y,
    "batch_norm": batch_norm,
    "cast": lambda x, dtype: x.astype({"fp16": np.float16, "fp32": np.float32}[dtype]),
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "conv": conv,
    "linear": lambda x, weight, bias: x @ weight.T + bias,
    "mul": lambda x, y: x * y,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(axes), keepdims=bool(keep_dims)),
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sigmoid_hard": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softmax": lambda x, axis: np.asarray(jax.nn.softmax(x, axis)),
    "softplus": lambda x: np.logaddexp(0, x),
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
    "tanh": lambda x: np.tanh(x),
}


def compute(program, images):
    """What the outputs of the program are for images [1, C, H, W], by name."""
    (function,) = program.functions.values()
    (argument,) = function.inputs.values()
    values = {argument.name: images}
    outputs = {}

    def value(variable):
        return values.get(variable.name, variable.val)

    for op in function.operations:
        inputs = {n: value(v) for n, v in op.inputs.items() if v is not None}
        if op.op_type == "classify":
            label, probabilities = (v.name for v in op.outputs)
            classes = list(inputs["classes"])
            found = inputs["probabilities"][0]
            outputs[label] = classes[int(found.argmax())]
            outputs[probabilities] = dict(zip(classes, found, strict=True))
        elif op.op_type != "const":
            values[op.outputs[0].name] = np.asarray(OPERATIONS[op.op_type](**inputs))
    return {v.name: outputs.get(v.name, values.get(v.name)) for v in function.outputs}


GREY = NET.replace(name="grey", in_channels=1, resolution=(32, 40), padding="symmetric")


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("input_dtype", ["float32", "uint8"])
@pytest.mark.parametrize("spec", [NET, GREY], ids=lambda s: s.name)
def test_the_package_is_the_network(spec, input_dtype, precision, tmp_path):
    model = a_model(spec)
    folder = written(model, tmp_path / "a.mlpackage", precision=precision, input_dtype=input_dtype)
    described, program = read(folder)
    (given,) = described.input
    height, width, channels = spec.input_shape
    if input_dtype == "uint8":
        kind = given.type.imageType
        colours = {1: kind.GRAYSCALE, 3: kind.RGB}[channels]
        assert (kind.height, kind.width, kind.colorSpace) == (height, width, colours)
    else:
        assert list(given.type.multiArrayType.shape) == [1, channels, height, width]
    assert described.predictedFeatureName == coreml.CLASS
    assert described.predictedProbabilitiesName == coreml.PROBABILITIES
    names = [output.name for output in described.output]
    assert sorted(names) == sorted(["logits", coreml.CLASS, coreml.PROBABILITIES])

    pixels = np.random.default_rng(2).integers(0, 256, (1, *spec.input_shape))
    normalised = ((pixels / 255 - model.preprocessing.mean) / model.preprocessing.std).astype("f4")
    expected = check.reference(model, normalised)
    images = (pixels if input_dtype == "uint8" else normalised).transpose(0, 3, 1, 2).astype("f4")
    got = compute(program, images)
    limit = {"float32": 1e-5, "float16": 2e-2}[precision] * np.abs(expected).max()
    assert np.abs(got["logits"] - expected).max() < limit
    assert got[coreml.CLASS] == model.class_names[expected.argmax()]
    probabilities = got[coreml.PROBABILITIES]
    assert tuple(probabilities) == model.class_names
    wanted = np.asarray(jax.nn.softmax(expected[0]))
    assert np.abs(np.array(list(probabilities.values())) - wanted).max() < limit


def test_weights_are_those_of_the_network(tmp_path):
    from mbv3_jax.nn.folded import fold

    model = a_model(NET)
    _, program = read(written(model, tmp_path / "a.mlpackage"))
    (function,) = program.functions.values()
    found = {op.outputs[0].name: op for op in function.operations}
    folded = fold(NET, model.variables)
    for path, name in (("stem", "stem_conv"), ("block1", "block1_depthwise_conv")):
        layer = folded[path]["conv"] if path == "stem" else folded[path]["depthwise"]["conv"]
        kernel = np.asarray(layer["kernel"]).transpose(3, 2, 0, 1)
        np.testing.assert_allclose(found[name].inputs["weight"].val, kernel, rtol=1e-6)
        np.testing.assert_allclose(
            found[name].inputs["bias"].val, layer["bias"], rtol=1e-5, atol=1e-6
        )
    kernel = np.asarray(folded["logits"]["kernel"])[0, 0].T
    assert np.array_equal(found["logits"].inputs["weight"].val, kernel)


def test_what_is_no_classifier(tmp_path):
    model = a_model(NET)
    for number, (other, target) in enumerate(
        (
            (dataclasses.replace(model, multi_label=True), {"input_dtype": "uint8"}),
            (model, {"batch": 3}),
        )
    ):
        described, program = read(written(other, tmp_path / f"{number}.mlpackage", **target))
        assert [output.name for output in described.output] == ["logits"]
        assert described.predictedFeatureName == ""
    images = random_images(NET, batch=3)
    got = compute(program, images.transpose(0, 3, 1, 2))["logits"]
    expected = check.reference(model, images)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_equal_names_are_told_apart(tmp_path):
    names = ("crane", "dog", "crane", *(f"{i}" for i in range(NET.num_classes - 3)))
    _, program = read(written(a_model(NET, names), tmp_path / "a.mlpackage"))
    shape = (1, NET.in_channels, *NET.input_shape[:2])
    probabilities = compute(program, np.zeros(shape, np.float32))[coreml.PROBABILITIES]
    assert list(probabilities)[:4] == ["crane (0)", "dog", "crane (2)", "0"]


def test_activations_by_their_onnx_nodes(tmp_path):
    mish = Activation(
        name="mish",
        fn=lambda x: x * jnp.tanh(jax.nn.softplus(x)),
        onnx=(
            OnnxNode(op="Softplus", output="softplus"),
            OnnxNode(op="Tanh", inputs=("softplus",), output="tanh"),
            OnnxNode(op="Mul", inputs=("x", "tanh")),
        ),
        tflite={},
        homogeneous=False,
        passes=3,
        gate=None,
    )
    register(mish)
    register(dataclasses.replace(mish, name="odd", onnx=(OnnxNode(op="Mish"),)))
    try:
        model = a_model(edits.nonlinearity(NET, "mish"))
        _, program = read(written(model, tmp_path / "a.mlpackage"))
        images = random_images(NET, batch=1)
        expected = check.reference(model, images)
        got = compute(program, images.transpose(0, 3, 1, 2))["logits"]
        assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
        with pytest.raises(UsageError, match="'odd' needs Mish, which --format=coreml does not"):
            written(a_model(edits.nonlinearity(NET, "odd")), tmp_path / "b.mlpackage")
    finally:
        del ACTIVATIONS["mish"], ACTIVATIONS["odd"]


def test_images_of_other_channels_are_refused(tmp_path):
    model = a_model(NET.replace(in_channels=4))
    with pytest.raises(UsageError, match="images of Core ML have 1 or 3 channels, the network 4"):
        written(model, tmp_path / "a.mlpackage", input_dtype="uint8")
    written(model, tmp_path / "a.mlpackage")


def test_weights_too_large_for_float16_are_named(tmp_path):
    model = a_model(NET)
    model.variables["params"]["logits"]["bias"][0] = 1e5
    with pytest.raises(ValueError, match=r"logits/bias: 1e\+05 is too large for float16"):
        written(model, tmp_path / "a.mlpackage", precision="float16")


def test_by_command(do, imported, model, tmp_path, monkeypatch):
    out = tmp_path / "a.mlpackage"
    arguments = (f"--import={imported}", "--format=coreml", f"--out={out}")
    code, said, errors = do(*arguments, "--input=uint8")
    assert (code, errors) == (0, "")
    assert "conv (depthwise)" in said
    assert "checked by its operations, not run: Core ML exists only on Apple's systems" in said
    assert sorted(path.name for path in out.iterdir()) == ["Data", "Manifest.json"]
    entries = metadata.read(out)
    assert entries["classes"] == list(model.class_names)
    assert (entries["input"]["dtype"], entries["origin"]) == ("uint8", {"import": "tiny"})
    code, _, said = do(*arguments)
    assert (code, "exists already; a Core ML package is a new folder" in said) == (2, True)
    for options, reason in (
        (["--precision=int8"], "--precision=int8 (ML programs compute in float"),
        (["--batch=any"], "--batch=any: a Core ML package has a fixed batch"),
        (["--batch=2", "--input=uint8"], "--batch=2: --input=uint8 of Core ML is a single image"),
        (["--images", str(tmp_path)], "--images: has no effect with --format=coreml"),
    ):
        code, _, said = do(*arguments[:2], f"--out={tmp_path}/b.mlpackage", *options)
        assert (code, reason in said) == (2, True), said
    monkeypatch.setitem(sys.modules, "coremltools", None)
    code, _, said = do(*arguments[:2], f"--out={tmp_path}/b.mlpackage")
    assert code == 2
    assert "Core ML needs coremltools" in said and "[coreml]" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.mlpackage"]
