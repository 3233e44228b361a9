"""Numbers that mean nothing are refused where they are typed."""

import argparse

import pytest

from mbv3_jax import __main__
from mbv3_jax.cli import train
from mbv3_jax.cli.search import _cost

IMPORT = "import --from=keras --weights=x.h5 --out=out"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("data check digits", "--sample"),
        ("latency compare small", "--seconds"),
        (IMPORT, "--width"),
        ("export-weights --run=x --to=keras --out=x.h5", "--width"),
    ],
)
@pytest.mark.parametrize("number", ["-1", "0", "nan", "inf", "1e999", "many", ""])
def test_options_that_must_be_positive(capsys, command, option, number):
    with pytest.raises(SystemExit) as ended:
        __main__.main([*command.split(), f"{option}={number}"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {option}: got '{number}', expected a positive number" in said


@pytest.mark.parametrize("number", ["-1", "nan", "inf", "1e999"])
def test_patience(capsys, number):
    arguments = ["train", "--config=small", f"--patience={number}", "--process-id=0"]
    arguments += ["--num-processes=2", "--coordinator=127.0.0.1:9"]
    assert __main__.main(arguments) == 2
    said = capsys.readouterr().err
    assert f"--patience: got {float(number)}, expected seconds above 0" in said


def test_costs_have_no_exponent():
    _, show = _cost(argparse.Namespace(target_madds=1e12, table=None))
    assert (show(1e12), show(56_515_400)) == ("1,000,000 million MAdds", "56.52 million MAdds")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"count": 1}, "1 val image"),
        ({"count": 20}, "all 20 val images"),
        ({"count": 1, "unreadable": 1}, "1 of 2 (1 could not be read) val images"),
    ],
)
def test_one_image_is_no_plural(values, text):
    assert train._images(values, "val") == text
