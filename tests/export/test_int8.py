"""Int8 files: the integers and the scales of the simulation, and its logits."""

import dataclasses
import importlib.util
import os

import jax
import numpy as np
import pytest

from mbv3_jax.nn import fake_quant, functional
from mbv3_jax.nn.folded import INT8, apply_folded
from mbv3_jax.quant.observers import observe
from mbv3_jax.quant.post_training import quantize

if not os.environ.get("MBV3_REQUIRE_PEERS"):
    for extra in ("litert_converter", "ai_edge_litert"):
        if importlib.util.find_spec(extra) is None:
            pytest.skip(f"{extra} is not installed", allow_module_level=True)

from mbv3_jax.export import check, tflite, tflite_edits
from mbv3_jax.export.formats import BOUNDARY, Target


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0)
    smooth = noise.uniform(-1, 1, (32, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(smooth + noise.normal(0, 0.1, smooth.shape), -1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def network(tiny_spec, images):
    """A network whose channels are of very different size, as training makes them."""
    variables = functional.init(tiny_spec, jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))

    def spread(path, x):
        if path[-1].key in ("scale", "kernel") and x.ndim in (1, 4):
            return x * jax.random.uniform(next(keys), (x.shape[-1],), minval=0.3, maxval=1.2)
        return x

    variables = jax.tree_util.tree_map_with_path(spread, variables)
    return quantize(tiny_spec, variables, [images])


def run(file, images, batch):
    return check.run_file(file, Target(file_format="tflite", precision="int8", batch=batch), images)


def step_of_logits(network):
    low, high = network.ranges()["logits"]
    return float(fake_quant.activation_scale(np.float32(low), np.float32(high), np)[0])


def test_the_file_computes_what_is_simulated(network, images):
    file = tflite.to_int8_tflite(network, batch=8)
    found = run(file, images, 8)
    wanted = np.asarray(network.simulate(images))
    steps = np.abs(found - wanted) / step_of_logits(network)
    assert np.mean(steps) < 0.35 and np.max(steps) < 4  # steps add up over fourteen layers
    assert np.ptp(wanted) > 50 * step_of_logits(network)


def test_everything_is_integer(network, tiny_spec):
    kinds = tflite.operations(tflite.to_int8_tflite(network))
    assert {op.dtype for op in kinds} == {"INT8"}
    names = [op.name for op in kinds]
    assert names.count("DEPTHWISE_CONV_2D") == len(tiny_spec.blocks)
    assert not {"HARD_SWISH", "QUANTIZE", "DEQUANTIZE", "TRANSPOSE", "CAST"} & set(names)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def pixels():
    """Noise and blocks of it, and all the values that there are."""
    blocks = np.random.default_rng(3).integers(0, 256, (16, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    noise = np.random.default_rng(4).integers(0, 256, (16, 32, 32, 3))
    return np.concatenate([blocks, noise]).astype(np.uint8)


@pytest.fixture(scope="module")
def on_pixels(network, pixels, tiny_spec):
    """The network with ranges of normalised pixels, and these."""
    normalised = ((pixels / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    low, high = observe(tiny_spec, network.folded, [normalised], observer="min_max")
    return dataclasses.replace(network, low=low, high=high), normalised


@pytest.mark.parametrize("output_dtype", BOUNDARY)
@pytest.mark.parametrize("input_dtype", BOUNDARY)
def test_images_and_logits_of_every_type(on_pixels, pixels, input_dtype, output_dtype):
    changed, normalised = on_pixels
    normalize = (MEAN, STD) if input_dtype == "uint8" else None
    file = tflite.to_int8_tflite(changed, batch=8, normalize=normalize)
    file = tflite_edits.with_boundary(file, input_dtype, output_dtype)
    found = run(file, pixels if input_dtype == "uint8" else normalised, 8)
    steps = np.abs(found - np.asarray(changed.simulate(normalised))) / step_of_logits(changed)
    assert np.mean(steps) < 0.35 and np.max(steps) < 4

    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=file).get_signature_runner("serving_default")
    images, logits = (runner.get_input_details()["images"], runner.get_output_details()["logits"])
    assert (images["dtype"], logits["dtype"]) == (np.dtype(input_dtype), np.dtype(output_dtype))
    assert list(images["shape"]) == [8, 32, 32, 3]
    if input_dtype == "uint8":  # as a decoder returns them, whatever the scale says
        assert images["quantization"] == (1.0, 0)
    if output_dtype != "float32":
        low, high = changed.ranges()["logits"]
        scale, zero = fake_quant.activation_scale(np.float32(low), np.float32(high), np)
        shift = 128 if output_dtype == "uint8" else 0
        assert logits["quantization"] == (scale, zero + shift)
    others = {op.name for op in tflite.operations(file) if op.dtype != "INT8"}
    assert others == {"float32": {"DEQUANTIZE"}, "uint8": {"QUANTIZE"}, "int8": set()}[output_dtype]


def test_normalised_pixels_are_the_integers_of_the_simulation(on_pixels, tiny_spec):
    """Of every pixel and channel; a unit of the bias is 1/127 of a pixel."""
    changed, _ = on_pixels
    values = np.arange(256, dtype=np.uint8)
    image = np.tile(values.reshape(1, 16, 16, 1), (1, 2, 2, 3))
    file = tflite.to_int8_tflite(changed, normalize=(MEAN, STD))
    file = tflite_edits.with_boundary(file, "uint8", "int8")

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=file, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    normalise = interpreter._get_ops_details()[1]
    assert normalise["op_name"] == "DEPTHWISE_CONV_2D"
    found = interpreter.get_tensor(normalise["outputs"][0]).astype(int)
    scale, zero = fake_quant.activation_scale(*map(np.float32, changed.ranges()["input"]), np)
    exact = (image / 255 - np.array(MEAN)) / np.array(STD) / scale + zero
    assert np.max(np.abs(found - np.clip(exact, -128, 127))) < 0.51
    assert np.ptp(found) == 255


def test_kernels_are_the_simulation_s_bit_for_bit(network, tiny_spec, images):
    schema = pytest.importorskip("litert_converter.schema_py_generated")
    file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite.to_int8_tflite(network), 0))
    graph, stored = file.subgraphs[0], []
    kinds = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D)
    for operator in graph.operators:
        if file.operatorCodes[operator.opcodeIndex].builtinCode in kinds:
            tensor = graph.tensors[operator.inputs[1]]
            values = np.asarray(file.buffers[tensor.buffer].data, np.uint8).view(np.int8)
            stored.append((values.reshape(tensor.shape), tensor.quantization.scale))
    wanted = []

    def note(name, kernel, axis):
        if axis is not None:
            integers, scale = fake_quant.quantize_weight(kernel, axis, np)
            # TFLite: [out, k, k, in]; depthwise, whose "in" is 1 here, [1, k, k, out].
            order = (2, 0, 1, 3) if kernel.shape[2] == 1 and "depthwise" in name else (3, 0, 1, 2)
            wanted.append((integers.transpose(order), scale))
        return kernel

    apply_folded(tiny_spec, network.folded, images[:1], forms=INT8, on_weight=note)
    assert len(stored) == len(wanted) == 12
    for (values, scale), (integers, ours) in zip(stored, wanted, strict=True):
        assert np.array_equal(values, integers.astype(np.int8))
        assert np.array_equal(np.asarray(scale, np.float32), ours)


def test_equal_biases_keep_their_scales(network, tiny_spec, images, monkeypatch):
    """litert-converter 0.5.0 gives a bias of equal values one scale, the first channel's."""
    folded = jax.tree.map(np.array, network.folded)
    gate = folded["block1"]["se"]["expand"]
    gate["bias"][:] = 0.5
    gate["kernel"] *= np.geomspace(0.1, 10, gate["kernel"].shape[-1], dtype=np.float32)
    low, high = observe(tiny_spec, folded, [images], observer="min_max")
    changed = dataclasses.replace(network, folded=folded, low=low, high=high)

    def mean_steps():
        found = run(tflite.to_int8_tflite(changed, batch=32), images, 32)
        wanted = np.asarray(changed.simulate(images))
        return np.mean(np.abs(found - wanted)) / step_of_logits(changed)

    assert mean_steps() < 0.35
    monkeypatch.setattr(tflite, "_unequal", lambda bias, unit: bias)
    assert mean_steps() > 1, "the converter is fixed: remove _unequal"
