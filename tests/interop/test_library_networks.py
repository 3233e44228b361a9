"""Every network that is said to be timm's or torchvision's has its tensors, by name and shape.

PyTorch builds them without values. Keras' are compared in tests/peers/ and test_keras_weights.py.
"""

import functools

import pytest
from peer_compare import torch_peers

from mbv3_jax.interop import mapping, networks
from mbv3_jax.interop.pretrained import PRETRAINED, find_pretrained, usual_preprocessing


@pytest.fixture(scope="module")
def torch():
    return torch_peers().torch


@pytest.fixture(scope="module")
def timm():
    return torch_peers().timm


@pytest.fixture(scope="module")
def torchvision():
    return torch_peers().torchvision


def _built(network, spec):
    libraries = {name: getattr(torch_peers(), name) for name in ("torch", "timm", "torchvision")}
    with torch_peers().torch.device("meta"):
        return eval(networks.construction(network, spec), {"functools": functools, **libraries})


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_tensors_and_constants(library, torch):
    for network in networks.candidates(library):
        spec = network.spec.replace(num_classes=7)
        model = _built(network, spec)
        shapes = {
            name: tuple(value.shape)
            for name, value in model.state_dict().items()
            if not name.endswith(mapping.BOOKKEEPING)
        }
        assert not mapping.problems(mapping.pairs(library, spec), shapes), network.label
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        constants = {(m.eps, round(1 - m.momentum, 9)) for m in norms}
        assert constants == {(spec.bn_eps, spec.bn_decay)}, network.label
        same = {type(m).__name__ for m in model.modules() if "Same" in type(m).__name__}
        assert bool(same) == (spec.padding == "same"), network.label


def test_constants_and_padding_can_be_asked_for():
    network = networks.get("timm", "mobilenetv2_050")
    model = _built(network, network.spec.replace(bn_eps=1e-3, bn_decay=0.99, padding="same"))
    assert (model.bn1.eps, round(model.bn1.momentum, 9)) == (1e-3, 0.01)
    assert type(model.conv_stem).__name__ == "Conv2dSame"
    network = networks.get("timm", "tf_mobilenetv3_small_100")
    model = _built(network, network.spec.replace(padding="symmetric"))
    assert model.conv_stem.padding == (1, 1)
    network = networks.get("torchvision", "mobilenet_v2", width=0.5)
    model = _built(network, network.spec.replace(bn_eps=1e-3))
    assert model.features[0][1].eps == 1e-3


def test_every_timm_network_of_the_three_kinds_is_here_or_refused(timm):
    kinds = ("*mobilenetv2_*", "*mobilenetv3_*", "*mnasnet_*")
    theirs = {name for kind in kinds for name in timm.list_models(kind)}
    assert theirs == set(networks.NAMES["timm"]) | set(networks.UNSUPPORTED)


def test_a_refused_network_is_one_that_a_spec_cannot_say(torch, timm):
    with torch.device("meta"):
        model = timm.create_model("mobilenetv3_large_150d")
    assert len(model.blocks[-1]) == 2  # 1x1 convolutions before pooling


def test_preprocessing_of_every_timm_tag(timm):
    ours = {entry.name: entry for entry in PRETRAINED["timm"]}
    kinds = ("*mobilenetv2_*", "*mobilenetv3_*", "*mnasnet_*")
    theirs = {name for kind in kinds for name in timm.list_pretrained(kind)}
    assert theirs - set(ours) == {"mobilenetv3_large_150d.ra4_e3600_r256_in1k"}
    for name, entry in ours.items():
        config, how = timm.get_pretrained_cfg(name), entry.preprocessing
        assert (how.mean, how.std) == (config.mean, config.std), name
        assert (how.interpolation, how.crop_fraction) == (config.interpolation, config.crop_pct)
        assert entry.num_classes == config.num_classes, name
        assert config.input_size == (3, entry.resolution, entry.resolution)
        assert entry.hub == config.hf_hub_id + name if config.hf_hub_id.endswith("/") else True
        if entry.sha256:
            assert config.url.endswith(f"-{entry.sha256}.pth"), name
    for network in networks.NAMES["timm"]:
        config, how = timm.get_pretrained_cfg(network), usual_preprocessing("timm", network)
        assert (how.mean, how.interpolation) == (config.mean, config.interpolation), network
        assert (
            find_pretrained("timm", network).name == f"{network}.{config.tag}"
            if (config.has_weights)
            else True
        )


def test_preprocessing_of_every_torchvision_tag(torchvision):
    theirs = {}
    for name in networks.NAMES["torchvision"]:
        for weights in torchvision.models.get_model_weights(name):
            theirs[f"{name}.{weights.name}"] = weights
    ours = {entry.name: entry for entry in PRETRAINED["torchvision"]}
    assert set(ours) == set(theirs)
    for name, entry in ours.items():
        preset, how = theirs[name].transforms(), entry.preprocessing
        assert entry.url == theirs[name].url
        assert how.crop_fraction == preset.crop_size[0] / preset.resize_size[0], name
        assert (list(how.mean), list(how.std)) == (preset.mean, preset.std)
        assert how.interpolation == preset.interpolation.value
    for name in networks.NAMES["torchvision"]:
        default = torchvision.models.get_model_weights(name).DEFAULT
        assert find_pretrained("torchvision", name).url == default.url


def test_class_names_are_those_of_torchvision(torchvision):
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    from mbv3_jax.interop.class_names import find_class_names, imagenet_names

    assert list(imagenet_names()) == list(_IMAGENET_CATEGORIES)
    names, _ = find_class_names(11221, None)
    assert (len(names), names[5]) == (11221, "food, nutrient")
