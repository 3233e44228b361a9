"""A file of Keras through the commands: the same features, the same logits, and back the bits."""

import functools
import warnings

import jax
import numpy as np
import pytest
from peer_compare import IMAGE_SHAPE, TOLERANCE, check_shapes, error, import_peer, keras_peers

from mbv3_jax import __main__
from mbv3_jax.interop import networks, weight_files
from mbv3_jax.interop.pretrained import PRETRAINED
from mbv3_jax.nn import functional
from mbv3_jax.run.model import load_model

BN_DECAY = 0.2  # see `peer_compare`
QUICKLY = {"xla_backend_optimization_level": 0}

CASES = [
    # network, options of Keras, file, whether it scales pixels itself
    ("MobileNetV3Small", {"include_preprocessing": True}, "x.keras", True),
    ("MobileNetV3Small_minimalistic", {"minimalistic": True}, "x.h5", False),
    ("MobileNetV2", {"alpha": 0.35}, "x.weights.h5", False),
]


def run(*arguments) -> int:
    return __main__.main([str(a) for a in arguments])


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=QUICKLY)
def _ours(spec, variables, images, stages):
    maps = functional.features(spec, variables, images, stages=stages)
    return [m.values for m in maps], functional.apply(spec, variables, images)[0]


def _theirs(model, count, images):
    """The outputs of all blocks, and the logits."""
    names, ends = {layer.name for layer in model.layers}, []
    for i in range(count):
        before = f"expanded_conv_{i}_" if "expanded_conv_1_project" in names else f"block_{i}_"
        before = before if i else "expanded_conv_"
        tried = [before + end for end in ("add", "project_bn", "project_BN")]
        ends.append(model.get_layer(next(n for n in tried if n in names)).output)
    part = keras_peers().keras.Model(model.input, [*ends, model.output])
    values = [[v.value for v in vs] for vs in (part.trainable_variables, part.variables)]
    trained = {id(v) for v in part.trainable_variables}
    values[1] = [v.value for v in part.variables if id(v) not in trained]
    run = jax.jit(part.stateless_call, compiler_options=QUICKLY)
    *maps, logits = run(*values, images)[0]
    return [np.asarray(m) for m in maps], np.asarray(logits)


def _save(model, file) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_weights(file) if file.name.endswith(".weights.h5") else model.save(file)


@pytest.mark.parametrize(("name", "options", "file", "scales"), CASES, ids=lambda v: str(v))
def test_keras_files(name, options, file, scales, tmp_path, capsys):
    rng = np.random.default_rng(0)
    peer = keras_peers().KerasPeer(name.partition("_")[0], IMAGE_SHAPE, classes=10, **options)
    peer.prepare(rng, bn_eps=1e-3, bn_decay=BN_DECAY)
    images = rng.uniform(-1, 1, size=(2, *IMAGE_SHAPE)).astype(np.float32)
    pixels = (images + 1) * 127.5 if scales else images
    peer.forward(pixels, train=True)
    source, folder = tmp_path / file, tmp_path / "imported"
    _save(peer.model, source)
    assert run("import", "--from=keras", f"--weights={source}", f"--out={folder}") == 0
    assert f"imported keras's {name}" in capsys.readouterr().out
    imported = load_model(folder)
    how = imported.preprocessing
    assert (how.mean, how.std, imported.spec.bn_eps) == ((0.5,) * 3, (0.5,) * 3, 1e-3)

    count = len(imported.spec.blocks)
    stages = tuple(f"block{i + 1}" for i in range(count))
    with jax.default_matmul_precision("highest"):
        maps, logits = _ours(imported.spec, imported.variables, images, stages)
        their_maps, theirs = _theirs(peer.model, count, pixels)
    assert error(logits, theirs, varied=True) < TOLERANCE
    assert max(map(error, maps, their_maps)) < TOLERANCE

    before, again = weight_files.read("keras", source).tensors, tmp_path / "again.weights.h5"
    assert run("export-weights", f"--import={folder}", "--to=keras", f"--out={again}") == 0
    after = weight_files.read("keras", again).tensors
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[n], before[n]) for n in before)
    printed = capsys.readouterr().out
    assert f"include_preprocessing={name.startswith('MobileNetV3')}" in printed or name[-1] == "2"
    peer.prepare(rng, bn_eps=1e-3, bn_decay=BN_DECAY)  # other values
    peer.model.load_weights(again)
    loaded = peer.tensors()
    assert all(np.array_equal(loaded[n], before[n]) for n in before)

    if file.endswith("x.h5"):  # what Keras 2 called model.save_weights: the same without a root
        older = tmp_path / "older.h5"
        h5py = import_peer("h5py", "files of Keras 2")
        with h5py.File(source) as whole, h5py.File(older, "w") as weights:
            for key in whole["model_weights"]:
                whole.copy(f"model_weights/{key}", weights)
            for key, value in whole["model_weights"].attrs.items():
                weights.attrs[key] = value
        tensors = weight_files.read("keras", older).tensors
        assert all(np.array_equal(tensors[n], before[n]) for n in before)


def test_hashes_and_addresses_are_those_of_keras():
    keras_peers()
    from keras.src.applications import mobilenet_v2, mobilenet_v3

    entries = {entry.name: entry for entry in PRETRAINED["keras"]}
    v3 = {e.url: e.md5 for e in entries.values() if e.network.startswith("MobileNetV3")}
    base = f"{mobilenet_v3.BASE_WEIGHT_PATH}weights_mobilenet_v3_"
    hashes = mobilenet_v3.WEIGHTS_HASHES
    assert v3 == {f"{base}{name}.h5": with_top for name, (with_top, _) in hashes.items()}
    v2 = [e.url for e in entries.values() if e.network == "MobileNetV2"]
    assert len(v2) == 22
    assert all(url.startswith(mobilenet_v2.BASE_WEIGHT_PATH) for url in v2)


def test_the_printed_line_builds_the_network():
    network = networks.get("keras", "MobileNetV3Small_minimalistic", width=0.5)
    spec = network.spec.replace(num_classes=3, resolution=32)
    # The peer draws no values, which takes Keras twenty seconds.
    classifier = type("", (), {"MobileNetV3Small": lambda **how: how})
    scope = {"keras": type("", (), {"applications": classifier})}
    options = eval(networks.construction(network, spec), scope)
    assert (options.pop("weights"), options.pop("input_shape")) == (None, (32, 32, 3))
    assert options["include_preprocessing"] is True
    peer = keras_peers().KerasPeer("MobileNetV3Small", (32, 32, 3), **options)
    check_shapes(peer, spec)
