"""Numbers that mean nothing are refused where they are typed."""

import pytest

from mbv3_jax import __main__

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
