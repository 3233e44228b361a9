"""Networks that only look alike are named for what they are; widths and dilation are said."""

import numpy as np
import pytest
from peer_compare import import_peer, keras_peers, torch_peers

from mbv3_jax import __main__
from mbv3_jax.core.errors import UsageError
from mbv3_jax.interop import layout, mapping, networks
from mbv3_jax.interop.identify import identify
from mbv3_jax.interop.look_alikes import look_alike

TIMM = {
    "mobilenetv1_100": "MobileNetV1",
    "mobilenetv4_conv_small": "MobileNetV4",
    "lcnet_050": "LCNet",
    "ghostnet_050": "GhostNet",
    "efficientnet_b0": "EfficientNet",
    "mixnet_s": "MixNet",
    "tf_efficientnetv2_b0": "EfficientNetV2 or MobileNet-EdgeTPU",
    "mobilenetv3_large_150d": "mobilenetv3_large_150d, with two 1x1 convolutions before pooling",
}


def _refused(library, shapes, **options) -> str:
    place = layout.locate(library, shapes)
    with pytest.raises(UsageError) as caught:
        identify(library, {n: shapes[old] for n, old in place.inside.items()}, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _shapes(model) -> dict:
    return {n: tuple(v.shape) for n, v in model.state_dict().items()}


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name):
    peers = torch_peers()
    with peers.torch.device("meta"):
        shapes = _shapes(peers.timm.create_model(name))
    said = _refused("timm", {f"module.{n}": s for n, s in shapes.items()})
    assert said.startswith(f"the file holds a network of another kind: {TIMM[name]}; ")
    assert TIMM[name] in _refused("torchvision", shapes)
    assert TIMM[name] in _refused("timm", shapes, name="mobilenetv3_small_100")


def test_efficientnet_of_torchvision():
    peers = torch_peers()
    with peers.torch.device("meta"):
        shapes = _shapes(peers.torchvision.models.efficientnet_b0())
    assert ": EfficientNet; " in _refused("torchvision", shapes)


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("MobileNet", {"alpha": 0.25}, "MobileNet (V1)"),
        ("MobileNet", {"alpha": 0.25, "include_top": False}, "MobileNet (V1)"),
        ("EfficientNetB0", {"include_top": False}, "EfficientNet"),
    ],
)
def test_networks_of_keras(name, options, found):
    peer = keras_peers().KerasPeer(name, (32, 32, 3), **options)
    shapes = {n: t.shape for n, t in peer.tensors().items()}
    assert f": {found}; " in _refused("keras", shapes)


def test_networks_of_transformers():
    names = ("conv_stem.first_conv", "conv_stem.conv_3x3", "layer.0.expand_1x1", "conv_1x1")
    shapes = {f"mobilenet_v2.{name}.convolution.weight": (8, 3, 3, 3) for name in names}
    assert ": MobileNetV1 or V2 of transformers, whose layers" in _refused("timm", shapes)


def test_no_network_of_ours_looks_like_another():
    for library in networks.LIBRARIES:
        for network in networks.candidates(library):
            names = [p.theirs for p in mapping.pairs(library, network.spec) if p.theirs]
            assert look_alike(names) is None, network.label


@pytest.mark.parametrize("with_top", [True, False])
@pytest.mark.parametrize(
    ("library", "name"),
    [("keras", "MobileNetV3Small"), ("keras", "MobileNetV2"), ("torchvision", "mobilenet_v2")],
)
def test_an_unusual_width_is_asked_for(library, name, with_top):
    spec = networks.get(library, name, width=0.6).spec
    shapes = {
        p.theirs: p.their_shape
        for p in mapping.pairs(library, spec)
        if with_top or p.ours.split("/")[1] not in ("head", "logits")
    }
    said = _refused(library, shapes)
    assert f"has the layers of {library}'s {name} in a width that is not tried" in said
    assert said.endswith(f"give its width_mult or alpha: --network={name} --width=NUMBER")
    assert identify(library, shapes, name, 0.6).network.label == f"{name} (width 0.6)"


def test_the_messages_of_the_command(tmp_path, capsys):
    h5py = import_peer("h5py", "files of Keras")
    spec = networks.get("keras", "MobileNetV2", width=0.3).spec.replace(num_classes=3)
    file = tmp_path / "x.weights.h5"
    with h5py.File(file, "w") as made:
        for p in mapping.pairs("keras", spec):
            made[p.theirs] = np.ones(p.their_shape, np.float32)
    arguments = ["import", "--from=keras", f"--weights={file}", "--dry-run"]
    assert __main__.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {file} has the layers of keras's MobileNetV2 in a width")
    assert __main__.main([*arguments, "--network=MobileNetV2", "--width=0.3"]) == 0
    assert "MobileNetV2 (width 0.3)" in capsys.readouterr().out


def test_dilation_is_said(tmp_path, capsys):
    peers = torch_peers()
    with peers.torch.device("meta"):
        dilated = peers.torchvision.models.mobilenet_v3_small(dilated=True, width_mult=0.5)
        plain = peers.torchvision.models.mobilenet_v3_small(width_mult=0.5)
        v2 = peers.torchvision.models.mobilenet_v2(width_mult=0.35)
    assert _shapes(dilated) == _shapes(plain)  # else the file could tell
    for network, is_said in ((dilated, True), (v2, False)):
        state = {n: peers.torch.ones(s) for n, s in _shapes(network).items()}
        peers.torch.save(state, tmp_path / "x.pth")
        arguments = ["import", "--from=torchvision", f"--weights={tmp_path / 'x.pth'}", "--dry-run"]
        assert __main__.main(arguments) == 0
        assert ("note: a network built with dilated=True" in capsys.readouterr().out) == is_said
