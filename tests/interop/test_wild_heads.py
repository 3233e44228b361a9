"""Backbones without a head or with another: what the file has is imported, the rest is said."""

import functools
import json

import jax
import numpy as np
import pytest
from peer_compare import TOLERANCE, error, import_peer, keras_peers, torch_peers
from PIL import Image
from reference_net import random_variables

from mbv3_jax import __main__
from mbv3_jax.core.errors import UsageError
from mbv3_jax.interop import mapping, networks
from mbv3_jax.nn import functional
from mbv3_jax.run.model import Model, Preprocessing, load_model, save_model
from mbv3_jax.train.inference import Inference

SHAPE = (64, 64, 3)
QUICKLY = {"xla_backend_optimization_level": 0}
TIMM, WIDE = "mobilenetv3_small_050", 1024


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def _embed(spec, variables, images):
    return functional.embed(spec, variables, images)


@pytest.fixture(scope="module")
def torch():
    return torch_peers().torch


@pytest.fixture(scope="module")
def peers():
    """A network of either library, its images, and its features after pooling."""
    found = {}
    for name, width in ((f"timm/{TIMM}", 1.0), ("torchvision/mobilenet_v3_small", 0.5)):
        rng = np.random.default_rng(0)
        peer = torch_peers().TorchPeer(name, width, num_classes=10)
        peer.prepare(rng, bn_eps=1e-5 if "timm" in name else 1e-3, bn_decay=0.2)
        images = rng.normal(size=(2, *SHAPE)).astype(np.float32)
        peer.forward(images, train=True)
        peer.model.eval()
        found[peer.library] = peer.model, images
    return found


def imported(capsys, tmp_path, library, state, *flags):
    """The model and what is printed."""
    torch_peers().torch.save(state, tmp_path / "x.pth")
    out = tmp_path / "out"
    arguments = ["import", f"--from={library}", f"--weights={tmp_path / 'x.pth'}", *flags]
    assert __main__.main([*arguments, f"--out={out}"]) == 0
    return load_model(out), capsys.readouterr().out


def images_of(torch, images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def ours(model, images):
    with jax.default_matmul_precision("highest"):
        return np.asarray(_embed(model.spec, model.variables, images))


def test_timm_without_classes_embeds_alike(torch, peers, tmp_path, capsys):
    network, images = peers["timm"]
    state = {n: v for n, v in network.state_dict().items() if not n.startswith("classifier.")}
    model, said = imported(capsys, tmp_path, "timm", state)  # as num_classes=0 has it
    assert f"imported timm's {TIMM}: " in said and ", no head\n" in said
    assert "new: logits, to be trained: the file has none that is read\n" in said
    assert "class names: none, for the network has no head" in said
    assert (model.class_names, model.spec.head.out) == ((), WIDE)
    with torch.no_grad():
        x = network.forward_head(
            network.forward_features(images_of(torch, images)), pre_logits=True
        )
    assert error(ours(model, images), x.numpy(), varied=True) < TOLERANCE


def test_torchvision_with_identity_embeds_pooled_features(torch, peers, tmp_path, capsys):
    network, images = peers["torchvision"]
    state = {n: v for n, v in network.state_dict().items() if not n.startswith("classifier.")}
    model, said = imported(capsys, tmp_path, "torchvision", state)
    assert "mobilenet_v3_small (width 0.5)" in said and "new: logits" in said
    with torch.no_grad():
        pooled = network.features(images_of(torch, images)).mean((2, 3)).numpy()
    assert error(ours(model, images), pooled, varied=True) < TOLERANCE


def _dense(torch, outputs, inputs):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    return {"weight": weight, "bias": torch.arange(outputs, dtype=torch.float32)}


def _layer(name, tensors):
    return {f"{name}.{n}": v for n, v in tensors.items()}


# library, heads that are added to the backbone, whether the library's own head stays, classes
HEADS = [
    ("timm", {"classifier.1": (7, 1024)}, True, 7),  # nn.Sequential(Dropout, Linear)
    ("timm", {"classifier.0": (32, 1024), "classifier.2": (7, 32)}, True, None),
    ("timm", {"classifier": (7, 288)}, False, 7),  # without conv_head
    ("torchvision", {"classifier": (7, 288)}, False, 7),  # pooling and one Linear
    ("torchvision", {"classifier.1": (7, 288)}, False, 7),
    ("torchvision", {"fc": (7, 288)}, False, 7),
    ("torchvision", {"classifier.3.1": (7, 512)}, True, 7),
    ("torchvision", {"classifier.0": (64, 288), "classifier.3": (7, 64)}, False, None),
    ("torchvision", {"classifier.0": (512, 288), "classifier.2": (7, 512)}, False, None),
]


@pytest.mark.parametrize(("library", "heads", "keeps", "classes"), HEADS)
def test_other_heads(torch, peers, tmp_path, capsys, library, heads, keeps, classes):
    own = {"timm": "conv_head.", "torchvision": "classifier.0."}[library]
    state = {
        n: v
        for n, v in peers[library][0].state_dict().items()
        if not n.startswith(("classifier.", "conv_head.")) or (keeps and n.startswith(own))
    }
    for name, shape in heads.items():
        state |= _layer(name, _dense(torch, *shape))
    model, said = imported(capsys, tmp_path, library, state)
    assert bool(model.spec.head) == keeps
    if classes:
        assert f"{classes} classes" in said and "new:" not in said and "left out" not in said
        kernel = state[f"{next(iter(heads))}.weight"].numpy().T
        assert np.array_equal(model.variables["params"]["logits"]["kernel"][0, 0], kernel)
        assert np.array_equal(model.variables["params"]["logits"]["bias"], np.arange(classes))
    else:
        assert "new: logits" in said and f"left out: {', '.join(heads)}\n" in said
        assert model.class_names == ()


def test_a_head_beside_the_backbone(torch, peers, tmp_path, capsys):
    """As a Lightning module with a backbone, a head, and a loss with weights."""
    backbone = {
        f"backbone.{n}": v
        for n, v in peers["timm"][0].state_dict().items()
        if not n.startswith("classifier.")
    }
    head = _layer("head", _dense(torch, 7, WIDE))
    state = backbone | head | {"criterion.weight": torch.ones(7), "steps": torch.tensor(3)}
    model, said = imported(capsys, tmp_path, "timm", {"state_dict": state, "epoch": 1})
    assert (model.spec.num_classes, model.spec.head.out) == (7, WIDE)
    assert "found under: state_dict, backbone.\nleft out: criterion, epoch, steps\n" in said
    # Another layer between, whose nonlinearity nobody knows.
    state |= _layer("norm", {"weight": torch.ones(WIDE), "bias": torch.ones(WIDE)})
    torch.save(state, tmp_path / "y.pth")
    arguments = ["import", "--from=timm", f"--weights={tmp_path / 'y.pth'}", "--dry-run"]
    assert __main__.main(arguments) == 0
    said = capsys.readouterr().out
    assert "new: logits" in said and "left out: head, criterion, norm, steps\n" in said


def test_features_only(torch, peers, tmp_path, capsys):
    timm = torch_peers().timm
    state = timm.create_model(TIMM, features_only=True).state_dict()
    model, said = imported(capsys, tmp_path, "timm", state)
    assert "new: logits," in said and model.spec.head is None
    (tmp_path / "v2").mkdir()
    with torch.device("meta"):  # of V2, timm leaves the last 1x1 out as well
        shapes = timm.create_model("mobilenetv2_035", features_only=True).state_dict()
    state = {n: torch.ones(v.shape) for n, v in shapes.items()}
    model, said = imported(capsys, tmp_path / "v2", "timm", state)
    assert "new: last, logits," in said
    last = model.variables["params"]["last"]["conv"]["kernel"]
    assert 0.9 < last.std() / np.sqrt(2 / last.shape[3]) < 1.1


@pytest.mark.parametrize("prefix", ["", "0.", "backbone."])
def test_torchvisions_features_alone(torch, peers, tmp_path, capsys, prefix):
    network, _ = peers["torchvision"]
    state = {prefix + n: v for n, v in network.features.state_dict().items()}
    if prefix:
        state |= _layer(
            "3", _dense(torch, 7, 288)
        )  # nn.Sequential(features, pool, flatten, Linear)
    model, said = imported(capsys, tmp_path, "torchvision", state)
    assert "mobilenet_v3_small (width 0.5)" in said and model.spec.head is None
    assert model.spec.num_classes == (7 if prefix else 1)


def test_keras_v3_with_pooling_and_dense(tmp_path, capsys):
    """A Functional model on `base_model.output`, so that nothing is nested; and hidden layers."""
    h5py = import_peer("h5py", "files of Keras")
    network = networks.get("keras", "MobileNetV3Small_minimalistic", width=0.5)
    features = network.spec.last.out
    rng = np.random.default_rng(0)
    trunk = {
        p.theirs: rng.uniform(0.5, 1, p.their_shape).astype(np.float32)
        for p in mapping.pairs("keras", network.spec)
        if p.ours.split("/")[1] not in ("head", "logits")
    }

    def dense(name, inputs, outputs):
        return {
            f"layers/{name}/vars/0": rng.normal(size=(inputs, outputs)).astype(np.float32),
            f"layers/{name}/vars/1": np.ones(outputs, np.float32),
        }

    heads = {
        "one": dense("dense", features, 4),
        "hidden": dense("dense", features, 16) | dense("dense_1", 16, 4),
        "none": {},
    }
    for name, head in heads.items():
        file, out = tmp_path / f"{name}.weights.h5", tmp_path / name
        with h5py.File(file, "w") as made:
            for place, value in (trunk | head).items():
                made[place] = value
        assert __main__.main(["import", "--from=keras", f"--weights={file}", f"--out={out}"]) == 0
        said = capsys.readouterr().out
        model = load_model(out)
        assert model.spec.head is None
        if name == "one":
            logits = model.variables["params"]["logits"]["kernel"][0, 0]
            assert np.array_equal(logits, head["layers/dense/vars/0"]) and "4 classes" in said
        else:
            assert "new: logits" in said
            left = "left out: layers/dense, layers/dense_1\n"
            assert (left in said) == (name == "hidden")


def test_commands_that_need_a_head_say_so(torch, peers, tmp_path, capsys):
    state = peers["timm"][0].state_dict()
    state = {n: v for n, v in state.items() if not n.startswith("classifier.")}
    imported(capsys, tmp_path, "timm", state)
    folder = tmp_path / "out"
    assert json.loads((folder / "classes.json").read_text()) == []
    flag, picture = f"--import={folder}", tmp_path / "picture.png"
    Image.new("RGB", (40, 40), (200, 30, 60)).save(picture)
    for arguments in (
        ["predict", flag, str(picture)],
        ["eval", flag, "--data=synthetic"],
        ["export", flag, "--format=onnx", f"--out={tmp_path / 'x.onnx'}"],
        ["export-weights", flag, "--to=timm", f"--out={tmp_path / 'y.pth'}"],
    ):
        assert __main__.main(arguments) == 2
        assert capsys.readouterr().err == (
            f"error: {folder}: a network without a head, so without classes; only embed and "
            f"training (--config.init={folder}) accept it\n"
        )
    names = tmp_path / "names.txt"
    names.write_text("a\n")
    arguments = ["import", "--from=timm", f"--weights={tmp_path / 'x.pth'}", "--dry-run"]
    assert __main__.main([*arguments, f"--classes={names}"]) == 2
    assert "has no head that is read, so no classes" in capsys.readouterr().err
    (folder / "classes.json").write_text('["a", "b"]')
    with pytest.raises(Exception, match="got 2, expected the 1"):
        load_model(folder)


def test_training_starts_from_it_with_new_logits(torch, peers, tmp_path, capsys):
    from mbv3_jax.run.config import parse_config
    from mbv3_jax.train.warm_start import read_warm_start

    state = peers["timm"][0].state_dict()
    state = {n: v for n, v in state.items() if not n.startswith("classifier.")}
    imported(capsys, tmp_path, "timm", state)
    config = parse_config("finetune:folder=pictures", [f"--config.init={tmp_path / 'out'}"])
    start = read_warm_start(config)
    for classes in (1, 5):
        spec = start.spec.replace(num_classes=classes)
        record = start.record(spec, tuple(map(str, range(classes))))
        assert record["new"] == ["logits"]
        assert record["message"].endswith(f"but new logits ({classes} classes, no head there)")
        taken = start.variables(spec)["params"]
        assert "logits" not in taken and "head" in taken


def test_what_is_no_head_is_still_refused(torch, peers, tmp_path, capsys):
    state = dict(peers["timm"][0].state_dict())
    state |= {"blocks.9.0.conv.weight": torch.ones(3, 3, 1, 1)}
    torch.save(state, tmp_path / "x.pth")
    arguments = ["import", "--from=timm", f"--weights={tmp_path / 'x.pth'}", "--dry-run"]
    assert __main__.main(arguments) == UsageError.exit_code
    assert "blocks.9.0.conv.weight: surplus, has (3, 3, 1, 1)" in capsys.readouterr().err


@pytest.mark.parametrize(("channels", "has_head"), [(1, True), (5, True), (1, False)])
def test_other_numbers_of_channels(torch, tmp_path, capsys, channels, has_head):
    timm = torch_peers().timm
    network = timm.create_model(TIMM, in_chans=channels, num_classes=4 if has_head else 0).eval()
    model, said = imported(capsys, tmp_path, "timm", network.state_dict())
    assert model.spec.in_channels == channels
    if channels == 5:
        assert "the network takes images of 5 channels, which pictures do not have" in said
    else:
        assert f" {'predict --import' if has_head else 'train --config=finetune'}" in said
    kernel = network.conv_stem.weight.detach().numpy().transpose(2, 3, 1, 0)
    assert np.array_equal(model.variables["params"]["stem"]["conv"]["kernel"], kernel)
    if channels == 1 and has_head:
        images = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32)
        with torch.no_grad():
            x = network.forward_features(images_of(torch, images))
            x = network.forward_head(x, pre_logits=True).numpy()
        assert error(ours(model, images), x, varied=True) < TOLERANCE
        predicts_in_grey(torch, network, tmp_path)


def predicts_in_grey(torch, network, folder):
    """Predictions of pictures equal those of timm's network on the same view in grey."""
    picture = folder / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    Image.fromarray(pixels).save(picture)
    ((_, view, found),) = Inference(folder / "out", batch=1).predictions([str(picture)])
    # The mean and the deviation of ImageNet's luminance, to which timm's default for colours leads.
    images = (view[None] / np.float32(255) - 0.458971) / np.float32(0.225609)
    with torch.no_grad():
        shares = network(images_of(torch, images.astype(np.float32))).softmax(1).numpy()[0]
    assert view.shape == (224, 224, 1)
    np.testing.assert_allclose(found["probabilities"], shares[found["classes"]], atol=TOLERANCE)


def test_one_channel_of_keras(tmp_path, capsys):
    h5py = import_peer("h5py", "files of Keras")
    spec = networks.get("keras", "MobileNetV2", width=0.35).spec.replace(in_channels=1)
    with h5py.File(tmp_path / "x.weights.h5", "w") as made:
        for p in mapping.pairs("keras", spec):
            made[p.theirs] = np.ones(p.their_shape, np.float32)
    arguments = ["import", "--from=keras", f"--weights={tmp_path / 'x.weights.h5'}"]
    assert __main__.main([*arguments, f"--out={tmp_path / 'out'}"]) == 0
    assert "MobileNetV2 (width 0.35)" in capsys.readouterr().out
    assert load_model(tmp_path / "out").spec.in_channels == 1


# library, its own head stays, first and second layer of the new head
HIDDEN = [
    ("torchvision", False, "classifier.0", (64, 288), "classifier.3", (7, 64)),
    ("torchvision", False, "classifier.0", (512, 288), "classifier.3", (7, 512)),  # as its own
    ("torchvision", False, "fc.0", (288, 288), "fc.2", (288, 288)),
    ("timm", False, "classifier.1", (32, 288), "classifier.4", (7, 32)),
]


@pytest.mark.parametrize(("library", "keeps", "first", "inner", "second", "outer"), HIDDEN)
def test_two_dense_layers(
    torch, peers, tmp_path, capsys, library, keeps, first, inner, second, outer
):
    network, images = peers[library]
    state = {
        n: v
        for n, v in network.state_dict().items()
        if not n.startswith(("classifier.", "conv_head."))
    }
    layers = torch.nn.Linear(*inner[::-1]), torch.nn.Linear(*outer[::-1])
    for name, layer in zip((second, first), layers[::-1], strict=True):  # in any order
        state |= _layer(name, layer.state_dict())
    model, said = imported(capsys, tmp_path, library, state, "--hidden=relu")
    assert "new:" not in said and "left out" not in said
    assert (model.spec.head.act, model.spec.head.out) == ("relu", inner[0])
    with torch.no_grad():
        x = images_of(torch, images)
        x = network.features(x) if library == "torchvision" else network.forward_features(x)
        wanted = layers[1](layers[0](x.mean((2, 3))).relu()).numpy()
    found = np.asarray(functional.apply(model.spec, model.variables, images)[0])
    assert error(found, wanted, varied=True) < TOLERANCE


def test_two_dense_layers_whose_activation_is_not_told(torch, peers, tmp_path, capsys):
    network, _ = peers["timm"]
    state = {n: v for n, v in network.state_dict().items() if not n.startswith("classifier.")}
    bare = {n: v for n, v in state.items() if not n.startswith("conv_head.")}
    two = _layer("head.0", _dense(torch, 32, 288)) | _layer("head.2", _dense(torch, 7, 32))
    _, said = imported(capsys, tmp_path, "timm", bare | two)
    assert "new: logits" in said and "with --hidden=relu|relu6|h_swish|swish they are read" in said
    # Behind conv_head, a NetSpec has no place for another layer.
    behind = _layer("head.0", _dense(torch, 32, WIDE)) | _layer("head.2", _dense(torch, 7, 32))
    for other in (state | behind, bare, state):
        torch.save(other, tmp_path / "y.pth")
        arguments = ["import", "--from=timm", f"--weights={tmp_path / 'y.pth'}", "--dry-run"]
        assert __main__.main(arguments) == 0
        assert "--hidden" not in capsys.readouterr().out
        assert __main__.main([*arguments, "--hidden=relu"]) == 2
        said = capsys.readouterr().err
        assert "--hidden=relu: the head of " in said and "is not two dense layers" in said


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(
    ("to", "ending"), [("timm", ".pth"), ("torchvision", ".pth"), ("keras", ".weights.h5")]
)
def test_export_of_other_numbers_of_channels(torch, tmp_path, capsys, channels, to, ending):
    name, width = {
        "timm": (TIMM, 1.0),
        "torchvision": ("mobilenet_v2", 0.35),
        "keras": ("MobileNetV3Small", 0.5),
    }[to]
    spec = networks.get(to, name, width=width).spec
    spec = spec.replace(in_channels=channels, num_classes=4, resolution=64)
    rng = np.random.default_rng(0)
    variables = random_variables(functional.shapes(spec))
    view = Preprocessing(mean=(0.5,) * channels, std=(0.5,) * channels)
    model = Model(spec=spec, variables=variables, preprocessing=view, class_names=tuple("abcd"))
    save_model(tmp_path / "one", model, origin={})
    out = tmp_path / f"x{ending}"
    arguments = ["export-weights", f"--import={tmp_path / 'one'}", f"--to={to}", f"--out={out}"]
    assert __main__.main(arguments) == 0
    said = capsys.readouterr().out
    if to == "keras":
        keras_peers()  # Keras takes the backend that is set when it is first imported
    loaded = {}
    exec(said[said.index("import ") :], loaded)
    images = rng.uniform(-1, 1, (2, *spec.input_shape)).astype(np.float32)
    images[1] *= 0.2
    if to == "keras":
        found = np.log(np.asarray(loaded["model"](images * 127.5 + 127.5)))  # logits but for a sum
        found -= found.mean(1, keepdims=True)
        assert "include_preprocessing=True" in said
        wanted = np.asarray(functional.apply(spec, variables, images)[0])
        wanted = wanted - wanted.mean(1, keepdims=True)
    else:
        with torch.no_grad():
            found = loaded["model"].eval()(images_of(torch, images)).numpy()
        wanted = functional.apply(spec, variables, images)[0]
    assert error(np.asarray(wanted), found, varied=True) < TOLERANCE
    if to == "timm":
        folder = tmp_path / "hub"
        arguments = ["export-weights", f"--import={tmp_path / 'one'}", "--to=hf"]
        assert __main__.main([*arguments, f"--out={folder}"]) == 0
        config = json.loads((folder / "config.json").read_text())
        assert config["model_args"] == {"in_chans": channels}
        again = torch_peers().timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            assert error(again(images_of(torch, images)).numpy(), found, varied=True) < TOLERANCE
