"""config.profile: a trace of some steps."""

import pytest
from jax.profiler import ProfileData
from rich.console import Console
from run_checks import assert_same_end

from mbv3_jax.core.errors import UsageError
from mbv3_jax.train import loop
from mbv3_jax.train.experiment import make_experiment


def events(folder):
    """How often each event is in the traces below a folder, a set of counts by file."""
    found = []
    for file in sorted(folder.rglob("*.xplane.pb")):
        names: dict[str, int] = {}
        for plane in ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    names[event.name] = names.get(event.name, 0) + 1
        found.append(names)
    return found


def test_the_steps_are_traced_and_nothing_else_changes(tiny_config, tmp_path, capsys):
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    short = ("--config.total_steps=6", "--config.checkpoint_every_steps=6")
    console = Console(stderr=True, soft_wrap=True)
    loop.train(tiny_config(*short), plain)
    loop.train(tiny_config(*short, "--config.profile=(3,5)"), traced, console)
    assert f"trace of steps 3 to 5: {traced}/profile\n" in capsys.readouterr().err
    (names,) = events(traced / "profile")
    assert names["train"] == names["wait for a batch"] == 3
    assert_same_end(traced, plain)
    assert not (plain / "profile").exists()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("(3,)", r"profile: got \(3,\), expected \(first step, last step\)"),
        ("(0,5)", "profile: got 0, expected a whole number of at least 1"),
        ("(5,4)", "profile: got 4, expected a whole number of at least 5"),
        ("('a','b')", "profile: got 'a', expected a whole number"),
    ],
)
def test_wrong_steps_are_refused(tiny_config, steps, message):
    with pytest.raises(UsageError, match=message):
        make_experiment(tiny_config(f"--config.profile={steps}"))
