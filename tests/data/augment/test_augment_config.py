"""Configurations reach every option, with nothing on by default; recipes turn them on."""

import inspect
from pathlib import Path

import pytest

from mbv3_jax.data import augment
from mbv3_jax.run.config import parse_config

CONFIGS = Path(__file__).parents[3] / "configs"


def options_of(argument):
    return parse_config(f"{CONFIGS / 'large.py'}:{argument}").augment.to_dict()


def test_fields_are_the_options_and_defaults_agree():
    parameters = inspect.signature(augment.make_preprocess).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "num_classes"}
    assert options_of("imagenet,recipe=paper") == {**defaults, "flip": True}


@pytest.mark.parametrize("recipe", ["garden", "timm", "modest", "slim"])
def test_options_of_recipes_are_accepted(recipe):
    augment.make_preprocess(**options_of(f"imagenet,recipe={recipe}"), num_classes=1000)


def test_published_policies():
    assert options_of("imagenet,recipe=garden")["policy"] == "autoaugment_v0"
    timm = {k: v for k, v in options_of("imagenet,recipe=timm").items() if "randaugment" in k}
    assert timm == {
        "randaugment_layers": 2,
        "randaugment_magnitude": 9.0,
        "randaugment_magnitude_std": 0.5,
        "randaugment_prob": 0.5,
        "randaugment_cutout": 0.0,
    }
