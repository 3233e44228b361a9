import json

import pytest

from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.config import (
    config_differences,
    config_from_json,
    config_to_json,
    parse_config,
    spec_of,
)


@pytest.fixture
def write(tmp_path):
    """write(text) -> path of a configuration file of this text."""

    def make(text):
        path = tmp_path / "mine.py"
        path.write_text(text)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("override", "field", "want"),
    [
        ("--config.seed=3", "seed", 3),
        ("--config.seed=0x10", "seed", 16),
        ("--config.net.width=1", "net.width", 1.0),
        ("--config.label_smoothing=1e-1", "label_smoothing", 0.1),
        ("--config.optimizer.clip_norm=1", "optimizer.clip_norm", 1.0),  # None in the file
        ("--config.optimizer.nesterov=true", "optimizer.nesterov", True),
        ("--config.net.stem_filters=16", "net.stem_filters", 16),
        ("--config.net.se_of=input", "net.se_of", "input"),
        ("--config.data.data_dir=/data/a b", "data.data_dir", "/data/a b"),
        ("--config.data.data_dir=None", "data.data_dir", None),
        ("--config.ema_decay=None", "ema_decay", None),  # 0.9 in the file
        ("--config.net.shortcut=False", "net.shortcut", False),
        ("--noconfig.net.shortcut", "net.shortcut", False),
        ("--config.schedule.boundary_epochs=(1,2.5)", "schedule.boundary_epochs", (1, 2.5)),
        ("--config.schedule.boundary_epochs=(30,)", "schedule.boundary_epochs", (30,)),
    ],
)
def test_overrides_have_the_type_of_their_field(tiny_config, override, field, want):
    node = tiny_config(override)
    for part in field.split("."):
        node = node[part]
    assert node == want and type(node) is type(want)


def test_overrides_are_taken_in_order(tiny_config):
    config = tiny_config("--config.seed", "4", "--config.seed=5", "--config.total_steps=7")
    assert (config.seed, config.total_steps) == (5, 7)
    assert config.is_locked


def test_one_duration_can_replace_another(tiny_config):
    config = tiny_config("--config.total_steps=None", "--config.total_epochs=2")
    assert (config.total_steps, config.total_epochs) == (None, 2.0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "--config.nope=1",
            ["config has no field 'nope'", "accum_steps, augment, average_ep"],
        ),
        ("--config.net.nope=1", ["config.net has no field 'nope'", "width, width_rule"]),
        ("--config.nope=None", ["config has no field 'nope'"]),
        ("--noconfig.net.nope", ["config.net has no field 'nope'"]),
        ("--config.seed.low=1", ["config.seed has no field 'low'"]),
        ("--config.compute=1", ["a group of fields", "batch_norm, depthwise, dtype"]),
        ("--config.seed=1.5", ["--config.seed: got '1.5', expected a value of type int"]),
        ("--config.seed=", ["--config.seed: got '', expected a value of type int"]),
        ("--config.seed=None", ["got None, expected a value of type int"]),
        ("--config.net.width=wide", ["--config.net.width: got 'wide'", "of type float"]),
        ("--config.ema_decay=high", ["--config.ema_decay: got 'high'", "of type float"]),
        ("--config.net.shortcut=maybe", ["--config.net.shortcut: got 'maybe'", "of type bool"]),
        ("--seed=1", ["unknown option --seed", "--config.NAME=VALUE"]),
        ("seed=1", ["unknown option seed=1", "--config.NAME=VALUE"]),
    ],
)
def test_wrong_overrides_say_what_would_be_right(tiny_config, override, words):
    with pytest.raises(UsageError) as caught:
        tiny_config(override)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("no_such.py", "no Python file 'no_such.py'; "),
        ("configs", "no configuration is named 'configs'; "),
        ("README.md", "no configuration is named 'README.md'; "),
        ("", "no configuration is named ''; "),
    ],
)
def test_no_such_file(path, start):
    with pytest.raises(UsageError) as caught:
        parse_config(path)
    assert str(caught.value).startswith(f"--config: {start}the shipped ones are finetune, found, ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config(:", "SyntaxError"),
        ("x = 1", "it has no get_config(argument)"),
        ("def get_config(): return None", "get_config returned None, expected a ConfigDict"),
        ("def get_config(): raise ValueError('recipe: got 1')", "recipe: got 1"),
    ],
)
def test_a_file_that_fails_is_one_line(write, text, words):
    path = write(text)
    with pytest.raises(UsageError) as caught:
        parse_config(path)
    assert str(caught.value).startswith(f"--config={path}: ")
    assert words in str(caught.value)


def test_a_file_that_needs_an_argument_says_which():
    expected = r"--config=finetune:ARGUMENT with the data: folder=PATH, table=PATH"
    with pytest.raises(UsageError, match=expected):
        parse_config("finetune")
    with pytest.raises(UsageError, match=r"--config=configs/finetune.py:ARGUMENT with the data: "):
        parse_config("configs/finetune.py")


def test_arguments_reach_the_file(write):
    text = "from ml_collections import ConfigDict\n"
    path = write(text + "def get_config(argument='a'): return ConfigDict({'argument': argument})")
    assert parse_config(path).argument == "a"
    assert parse_config(f"{path}:b,c=1").argument == "b,c=1"
    path = write(text + "def get_config(): return ConfigDict({})")
    with pytest.raises(UsageError, match="it takes no argument, got 'b'"):
        parse_config(f"{path}:b")


def test_json_round_trip(tiny_config):
    config = tiny_config("--config.schedule.boundary_epochs=(1,2)", "--config.label_smoothing=0.1")
    back = config_from_json(config_to_json(config))
    assert back.is_locked
    assert config_differences(config, back) == {}
    assert config_to_json(back) == config_to_json(config)
    assert spec_of(back) == spec_of(config)


def test_differences_by_field(tiny_config):
    ours, theirs = tiny_config(), tiny_config("--config.seed=1", "--config.net.width=0.5")
    assert config_differences(ours, theirs) == {"net.width": (1.0, 0.5), "seed": (0, 1)}
    with theirs.unlocked():
        del theirs.compute.dtype
        theirs.new = 3
    assert config_differences(ours, theirs) == {
        "compute.dtype": ("float32", "(absent)"),
        "net.width": (1.0, 0.5),
        "new": ("(absent)", 3),
        "seed": (0, 1),
    }


def test_a_configuration_of_version_1_is_that_of_a_run_today(tiny_config):
    """Fields that did not exist count as having their defaults; removed values are translated."""
    ours, tree = tiny_config(), json.loads(config_to_json(tiny_config()))
    del tree["loss"], tree["optimizer"]["b1"]
    tree["compute"]["depthwise"] = "pallas"
    old = config_from_json(json.dumps(tree))
    assert config_differences(ours, old) == config_differences(old, ours) == {}
    assert (old.loss.name, old.compute.depthwise) == ("cross_entropy", "auto")
    search = config_from_json(json.dumps({"program": "search", "final": tree}))
    assert search.final.loss.name == "cross_entropy" and "loss" not in search
    other = tiny_config("--config.optimizer.b1=0.5")
    assert config_differences(other, old) == {"optimizer.b1": (0.5, "(absent)")}


def test_reading_a_configuration_does_not_wait_for_jax(command):
    code = (
        "import sys; from mbv3_jax.run.config import parse_config; "
        "parse_config('configs/small.py'); print('jax' in sys.modules)"
    )
    assert command("-c", code).stdout == "False\n"


def test_network_of_a_configuration(tiny_config, tiny_spec):
    assert spec_of(tiny_config("--config.net.dropout=0")) == tiny_spec.replace(bn_decay=0.9)
    with pytest.raises(UsageError, match=r"config.net.se: got 'some', expected one of 'paper'"):
        spec_of(tiny_config("--config.net.se=some"))
    config = tiny_config()
    with config.unlocked():
        config.net.depth = 3
    with pytest.raises(UsageError, match=r"config.net: unknown fields depth; they are name, width"):
        spec_of(config)
