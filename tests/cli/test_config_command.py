"""mbv3 config: every field with its value, who set it and what it means."""

import pytest

from mbv3_jax.cli.config import arguments_of, meanings_of
from mbv3_jax.cli.main import main
from mbv3_jax.run.config import flatten_config, parse_config


@pytest.mark.parametrize(
    "config", ["small", "large:imagenet", "v2", "qat", "search/small", "search/proxy"]
)
def test_every_field_has_a_meaning(config):
    fields = [*flatten_config(parse_config(config))]
    meanings = meanings_of(config, fields)
    assert [*meanings] == fields
    assert [field for field, text in meanings.items() if not text] == []


def test_values_and_who_set_them(capsys):
    assert main(["config", "--config=small", "seed", "optimizer.", "--config.seed=3"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split(maxsplit=3) for line in out.splitlines()}
    assert lines["seed"][1:3] == ["3", "command"]
    assert lines["optimizer.eps"][1:3] == ["0.002", "small"]
    assert lines["optimizer.eps"][3].startswith("of rmsprop_tf (default 0.002), adam (default 1e-")
    assert lines["optimizer.weight_decay"][1:3] == ["1e-05", "factor"]  # nobody has set it
    assert set(lines) >= {
        field
        for field in flatten_config(parse_config("small"))
        if "seed" in field or "optimizer." in field
    }


def test_a_field_of_a_search_is_that_of_its_training():
    meanings = meanings_of("search/small", ["brief.ema_decay", "rounds.first", "check"])
    assert meanings["brief.ema_decay"] == meanings_of("small", ["ema_decay"])["ema_decay"]
    assert "random networks at first" in meanings["rounds.first"]
    assert meanings["check"].startswith("For a supernet: the number of random networks")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=small", "nothing", "like-it"], "no field of small contains nothing or like-it"),
        (["--config=smal"], "did you mean small?"),
        (["--config=small", "--config.lr=1"], "did you mean --config.schedule.base_lr?"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, arguments, message):
    assert main(["config", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_the_arguments_of_a_docstring():
    docstring = """What it does.

    Args:
      one, two: the first line,
        and the second: with a colon.
      three: x

    Returns:
      four: not an argument.
    """
    both = "the first line, and the second: with a colon."
    assert arguments_of(docstring) == {"one": both, "two": both, "three": "x"}
