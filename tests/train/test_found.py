"""config.spec and configs/found.py: a network from a file."""

from pathlib import Path

import pytest

from mbv3_jax.arch import build, spec_from_json, spec_to_json
from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.config import config_from_json, config_to_json, parse_config, spec_of
from mbv3_jax.run.folder import claim_folder

FOUND = str(Path(__file__).resolve().parents[2] / "configs" / "found.py")


@pytest.fixture
def file(tmp_path, tiny_spec):
    path = tmp_path / "spec.json"
    path.write_text(
        spec_to_json(tiny_spec.replace(resolution=48, padding="symmetric", bn_eps=1e-5))
    )
    return path


def test_the_network_is_the_files_and_the_constants_are_the_recipes(file, tiny_spec):
    config = parse_config(f"{FOUND}:spec={file}")
    assert spec_of(config) == tiny_spec.replace(
        resolution=48, padding="symmetric", bn_eps=1e-5, bn_decay=0.9, dropout=0.2, num_classes=10
    )
    imagenet = spec_of(parse_config(f"{FOUND}:spec={file},imagenet,recipe=timm"))
    assert (imagenet.num_classes, imagenet.resolution) == (1000, 48)
    assert (imagenet.padding, imagenet.bn_eps, imagenet.drop_path) == ("symmetric", 1e-5, 0.2)
    assert parse_config(f"{FOUND}:spec={file},folder=/photos").data.name == "folder:/photos"
    assert spec_of(config_from_json(config_to_json(config))) == spec_of(config)


def test_what_is_no_layer_can_be_changed(file):
    overrides = ("--config.net.resolution=32", "--config.net.padding=same")
    spec = spec_of(parse_config(f"{FOUND}:spec={file}", overrides))
    assert (spec.resolution, spec.padding) == (32, "same")
    published = build("mobilenet_v3_large")
    file.write_text(spec_to_json(published))
    same = spec_of(parse_config(f"{FOUND}:spec={file},imagenet"))
    assert same == published


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.net.width=0.5", r"net.width: got 0.5, but the network is that of config.spec"),
        ("--config.net.se=none", "net.se: got 'none'"),
        ("--config.net.name=mobilenet_v2", r"net.name: None is the network of .*, a tiny"),
        ("--config.net.resolution=8", "net.resolution: got 8"),
        ("--config.init=/somewhere", "config.init has a network too"),
        ("--config.spec=nowhere.json", "config.spec: nowhere.json: No such file"),
        ("--config.spec=None", "config.init: got None"),
    ],
)
def test_what_contradicts_the_file_is_refused(file, override, words):
    config = parse_config(f"{FOUND}:spec={file}", [override])
    with pytest.raises(UsageError, match=words):
        spec_of(config)


def test_a_file_that_is_no_network_is_refused_with_its_path(file):
    config = parse_config(f"{FOUND}:spec={file}")
    file.write_text('{"name": "half"}')
    with pytest.raises(UsageError, match=r"spec.json: spec: unknown fields \[\], missing fields"):
        spec_of(config)
    with pytest.raises(UsageError, match="expected spec=FILE"):
        parse_config(f"{FOUND}:digits")


def test_another_network_in_the_same_file_is_another_run(tmp_path, file):
    config, run = parse_config(f"{FOUND}:spec={file}"), tmp_path / "run"
    spec = spec_of(config)
    claim_folder(run, config, spec).close()
    claim_folder(run, config, spec).close()
    file.write_text(spec_to_json(spec_from_json(file.read_text()).replace(resolution=32)))
    with pytest.raises(UsageError, match="holds a run of another network"):
        claim_folder(run, config, spec_of(config))
