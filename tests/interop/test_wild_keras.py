"""Fine-tuned Keras networks: the backbone is a layer of another, and the head is a new one."""

import functools
import re
import warnings

import jax
import numpy as np
import pytest
from peer_compare import TOLERANCE, error, import_peer, keras_peers
from peer_values import redraw

from mbv3_jax import __main__
from mbv3_jax.interop import mapping, networks, weight_files
from mbv3_jax.nn import functional
from mbv3_jax.run.model import load_model

SHAPE = (64, 64, 3)
QUICKLY = {"xla_backend_optimization_level": 0}
FILES = ("x.keras", "x.h5", "x.weights.h5")


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def _ours(spec, variables, images):
    embedding = functional.embed(spec, variables, images)
    return functional.apply(spec, variables, images)[0], embedding


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A network of each tutorial: (folder of its files, images, logits, pooled features)."""
    keras = keras_peers().keras
    rng = np.random.default_rng(0)
    peer = keras_peers().KerasPeer(
        "MobileNetV3Small", SHAPE, include_top=False, minimalistic=True, alpha=0.75
    )
    peer.prepare(rng, bn_eps=1e-3, bn_decay=0.2)
    base = peer.model
    images = rng.uniform(-1, 1, size=(2, *SHAPE)).astype(np.float32)
    inputs = keras.Input(SHAPE)
    pooled = keras.layers.GlobalAveragePooling2D()(base(inputs))
    head = keras.layers.Dense(5)
    peer.model = keras.Model(inputs, head(keras.layers.Dropout(0.2)(pooled)))
    for v in head.variables:
        v.assign(redraw(v.name, v.shape, rng, v.shape[0]))
    peer.forward(images, train=True)
    logits = peer.forward(images, train=False)
    kernel, bias = (np.asarray(v.value) for v in head.variables)
    for layer in base.layers[:60]:  # frozen, so that older files have another order
        layer.trainable = False
    folder = tmp_path_factory.mktemp("tuned")
    layers = [keras.Input(SHAPE), keras.layers.RandomFlip(), base]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.2), head]
    for name, model in (("functional", peer.model), ("sequential", keras.Sequential(layers))):
        model.compile("adam", "mse", metrics=["mae"])
        model.optimizer.build(model.trainable_variables)
        (folder / name).mkdir()
        for file in FILES:
            _save(model, folder / name / file)
    return folder, images, logits, (kernel, bias)


def _save(model, file) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_weights(file) if file.name.endswith(".weights.h5") else model.save(file)


def run(*arguments) -> int:
    return __main__.main([str(a) for a in arguments])


def flat(model) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(model.variables)
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}


def test_a_nested_backbone_computes_the_same(tuned, tmp_path, capsys):
    folder, images, logits, (kernel, bias) = tuned
    first = None
    for file in FILES:
        source, out = folder / "functional" / file, tmp_path / file
        assert run("import", "--from=keras", f"--weights={source}", f"--out={out}") == 0
        said = capsys.readouterr().out
        assert "imported keras's MobileNetV3Small_minimalistic (width 0.75)" in said
        assert "5 classes" in said and "new:" not in said
        assert "found under: layers/functional/" in said
        assert ("left out: optimizer\n" in said) == (file != "x.h5")
        imported = flat(load_model(out))
        first = first or imported
        assert all(np.array_equal(imported[n], first[n]) for n in first)
    model = load_model(tmp_path / FILES[0])
    assert (model.spec.head, model.spec.num_classes) == (None, 5)
    with jax.default_matmul_precision("highest"):
        ours, embedding = _ours(model.spec, model.variables, images)
    assert error(ours, logits, varied=True) < TOLERANCE
    assert error(np.asarray(embedding) @ kernel + bias, logits, varied=True) < TOLERANCE


def test_a_convolution_before_the_backbone_is_left_out(tuned, tmp_path, capsys):
    h5py = import_peer("h5py", "files of Keras")
    file = tmp_path / "x.weights.h5"
    file.write_bytes((tuned[0] / "functional" / "x.weights.h5").read_bytes())
    with h5py.File(file, "a") as made:
        made["layers/conv2d/vars/0"] = np.ones((1, 1, 1, 3), np.float32)  # grey to colours
    assert run("import", "--from=keras", f"--weights={file}", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "left out: layers/conv2d, layers/dense, optimizer\n" in said and "new: logits" in said


def test_sequential(tuned, tmp_path):
    folder = tuned[0]
    wanted = weight_files.read("keras", folder / "functional" / "x.keras")
    for file in FILES:
        got = weight_files.read("keras", folder / "sequential" / file)
        assert got.tensors.keys() == wanted.tensors.keys()
        assert all(np.array_equal(got.tensors[n], wanted.tensors[n]) for n in got.tensors)
        assert got.beside.keys() == wanted.beside.keys() == {f"layers/dense/vars/{i}" for i in "01"}


def _keras_2_name(name: str) -> str:
    """The name of a variable in Keras 2, whose V3 networks have slashes in names of layers."""
    layer, _, leaf = name.rpartition("/")
    layer = re.sub(r"^(conv\w*?)_bn$", r"\1/BatchNorm", layer)
    layer = re.sub(r"^(expanded_conv(_\d+)?)_(expand|depthwise|project)", r"\1/\3", layer)
    layer = re.sub(r"^conv", "Conv", layer.replace("_bn", "/BatchNorm"))
    leaf = "depthwise_kernel" if layer.endswith("depthwise") else leaf
    return f"{layer}/{leaf}:0"


def test_the_layout_of_keras_2(tuned, tmp_path):
    h5py = import_peer("h5py", "files of Keras 2")
    folder = tuned[0]
    with (
        h5py.File(folder / "functional" / "x.h5") as new,
        h5py.File(tmp_path / "x.h5", "w") as old,
    ):
        group = new["model_weights"]
        old.attrs["layer_names"] = [n.encode() for n in group.attrs["layer_names"]]
        for layer in group.attrs["layer_names"]:
            names = list(group[layer].attrs["weight_names"])
            renamed = [_keras_2_name(n) for n in names] if len(names) > 4 else names
            made = old.create_group(layer)
            made.attrs["weight_names"] = [n.encode() for n in renamed]
            for name, newer in zip(names, renamed, strict=True):
                made[newer] = group[layer][name][()]
        assert "expanded_conv_1/expand/BatchNorm/gamma:0" in made.parent["MobileNetV3Small"]
    got = weight_files.read("keras", tmp_path / "x.h5")
    wanted = weight_files.read("keras", folder / "functional" / "x.keras")
    assert got.tensors.keys() == wanted.tensors.keys()
    assert all(np.array_equal(got.tensors[n], wanted.tensors[n]) for n in got.tensors)
    assert got.prefix == wanted.prefix == "layers/functional/"


def test_squeeze_and_excite_and_v2_in_older_files(tmp_path):
    """Every layer that is partly frozen has its place, in both families."""
    from mbv3_jax.interop import keras_files

    keras = keras_peers().keras
    for name, options in (("MobileNetV3Small", {}), ("MobileNetV2", {"alpha": 0.35})):
        base = keras_peers().KerasPeer(name, SHAPE, include_top=False, **options).model
        layers = [layer.name for layer in base.layers if layer.variables]
        shuffled = layers[40:] + layers[:40]
        kinds = (keras.layers.BatchNormalization, keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        for kind in kinds:
            same = {layer.name for layer in base.layers if type(layer) is kind}
            back = [n for n in sorted(shuffled, key=keras_files._order) if n in same]
            assert back == [n for n in layers if n in same]


def test_only_layers_of_compiled_networks_are_read(tmp_path, capsys):
    """As tf.keras 2.12 to 2.15 and Keras 3 with mixed precision save them after `fit`."""
    h5py = import_peer("h5py", "files of Keras")
    spec = networks.get("keras", "MobileNetV2", width=0.35).spec.replace(num_classes=3)
    rng = np.random.default_rng(0)
    tensors = {
        p.theirs: rng.uniform(0.5, 1, p.their_shape).astype(np.float32)
        for p in mapping.pairs("keras", spec)
    }
    states = {
        "metrics/mean/vars/0": np.zeros((), np.float32),
        "metrics/mean_metric_wrapper/vars/1": np.full(2, np.nan, np.float32),
        "optimizer/vars/0": np.zeros((), np.int64),
        "optimizer/inner_optimizer/vars/3": np.zeros((3, 3, 3, 16), np.float32),
        "optimizer/average/layers/conv2d/vars/0": np.zeros((3, 3, 3, 16), np.float32),
    }
    for i, layers in enumerate(("layers/", "_layer_checkpoint_dependencies/", "layers\\")):
        file = tmp_path / f"{i}.weights.h5"
        with h5py.File(file, "w") as made:
            for name, value in (tensors | states).items():
                made[name.replace("layers/", layers, 1)] = value
        got = weight_files.read("keras", file)
        assert got.tensors.keys() == tensors.keys()
        assert all(np.array_equal(got.tensors[n], tensors[n]) for n in tensors)
        assert run("import", "--from=keras", f"--weights={file}", "--dry-run") == 0
        said = capsys.readouterr().out
        assert "would import keras's MobileNetV2 (width 0.35): " in said and "3 classes" in said
        assert "left out: metrics, optimizer\n" in said


def test_bfloat16_layers(tmp_path):
    h5py = import_peer("h5py", "files of Keras")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(0).normal(size=(3, 3, 3, 16)).astype(ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        made = file.create_dataset("layers/conv2d/vars/0", data=values)
        made.attrs["dtype"] = "bfloat16"  # as Keras 3 marks it
    got = weight_files.read("keras", tmp_path / "x.weights.h5").tensors
    assert np.array_equal(got["layers/conv2d/vars/0"], values.astype(np.float32))
