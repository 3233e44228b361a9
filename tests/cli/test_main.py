"""Whole runs of main.py in processes of their own, and the help of all commands."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT, TINY
from run_checks import assert_same_end, assert_same_records, checkpoint_steps

from mbv3_jax import cli
from mbv3_jax.cli import main, sweep, train
from mbv3_jax.cli.examples import EXAMPLES, subparsers
from mbv3_jax.run.metrics import read_metrics
from mbv3_jax.run.shipped import find_file, split_argument


@pytest.fixture(scope="module")
def whole(tmp_path_factory, command):
    """The folder and the process of a run that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, command("main.py", f"--config={TINY}", f"--workdir={run}")


def test_trains_and_reports(whole):
    run, process = whole
    assert process.returncode == 0
    assert process.stdout == ""
    lines = process.stderr.splitlines()
    assert any(line.startswith("step 5/24  loss 2.3") for line in lines)
    assert any(line.startswith("step 24/24  loss 2.3") for line in lines)
    assert "step 12: held-out top-1 10.00%, loss 2.3026" in lines
    assert f"run folder: {run}" in lines
    assert "\x1b" not in process.stderr  # no colours, no cursor movements


def test_the_same_command_again_prints_the_result(whole, command):
    run, first = whole
    again = command("main.py", f"--config={TINY}", f"--workdir={run}")
    assert again.returncode == 0
    assert again.stderr.splitlines() == first.stderr.splitlines()[-5:]


def test_a_wrong_command_in_a_process_of_its_own(command, tmp_path):
    run = tmp_path / "run"
    process = command("main.py", f"--config={TINY}", f"--workdir={run}", "--config.net.width=0.1")
    assert process.returncode == 2
    assert process.stderr.startswith("error: config.net.width: 0.1 gives the narrowest layer of ")
    assert process.stderr.count("\n") == 1
    assert not run.exists()


@pytest.mark.slow
def test_killed_at_every_moment_and_restarted_it_ends_with_the_same_bits(whole, command, tmp_path):
    run = tmp_path / "run"
    arguments = [f"--config={TINY}", f"--workdir={run}"]
    killer = str(ROOT / "tests" / "support" / "killed_main.py")
    kept = []
    for moment in ("claim", "step", "writing", "saving", "evaluation", "result"):
        process = command(killer, moment, *arguments)
        assert process.returncode == -signal.SIGKILL, (moment, process.stderr)
        kept.append(checkpoint_steps(run))
    # What was only being written is no checkpoint; what has its name is whole.
    assert kept[:3] == [[], [], []]
    assert kept[3] in ([], [6])
    assert kept[-1] == [12, 18, 24]
    process = command("main.py", *arguments)
    assert process.returncode == 0
    assert f"\nresuming from step 24 in {run}\n" in process.stderr
    assert_same_end(run, whole[0])
    assert_same_records(run, whole[0])
    assert not list(run.rglob("*tmp*"))


@pytest.mark.slow
def test_interrupted_and_killed_at_any_time_it_ends_with_the_same_bits(whole, command, tmp_path):
    run = tmp_path / "run"
    arguments = [sys.executable, "main.py", f"--config={TINY}", f"--workdir={run}"]
    # Ctrl-C at the first sign of training; then kills at times that nobody chose.
    for number, stop in enumerate([signal.SIGINT, signal.SIGKILL, signal.SIGKILL]):
        process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not read_metrics(run) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05 * number * (1 + os.getpid() % 7))
        process.send_signal(stop)
        _, err = process.communicate(timeout=120)
        if process.returncode == 0:  # it was faster
            break
        assert "Traceback" not in err
        assert process.returncode == (130 if stop == signal.SIGINT else -stop)
        if stop == signal.SIGINT:
            assert err.endswith(
                f"run the same command again to resume from the last checkpoint in {run}\n"
            )
    assert command("main.py", *arguments[2:]).returncode == 0
    assert_same_end(run, whole[0])
    assert_same_records(run, whole[0])


def test_a_full_disk_is_one_line(whole, tmp_path):
    run = tmp_path / "run"
    line = (
        f"ulimit -f 20; exec {sys.executable} main.py --config={TINY} --workdir={run} "
        "--config.eval_every_steps=24"
    )
    process = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("error: could not write the checkpoint of ")
    assert sum("error" in text.lower() for text in process.stderr.splitlines()) == 1
    assert "Traceback" not in process.stderr
    assert checkpoint_steps(run) == []


def all_commands():
    return dict(subparsers(main.make_parser()))


def test_every_command_has_an_example_in_its_help(capsys):
    assert set(EXAMPLES) == {"", *all_commands()}
    for name in EXAMPLES:
        with pytest.raises(SystemExit) as caught:
            main.main([*name.split(), "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        for example in EXAMPLES[name]:
            assert f"\n  python -m mbv3_jax {example}\n" in f"{text}\n", name


@pytest.mark.parametrize("example", sorted({e for group in EXAMPLES.values() for e in group}))
def test_examples_are_commands(example):
    name, *arguments = shlex.split(example)
    parser = {"train": train._parser, "sweep": sweep._parser}.get(name)
    if parser:
        flags, rest = parser().parse_known_args(arguments)
    else:
        flags, rest = main.make_parser().parse_known_args([name, *arguments])
    assert all(option.startswith(("--config.", "--executor.")) for option in rest)
    if name == "sweep":
        assert find_file(split_argument(flags.sweep)[0], "get_sweep").is_file()
    elif getattr(flags, "config", None):
        assert find_file(split_argument(flags.config)[0], "get_config").is_file()


def test_every_option_has_a_help_text():
    parsers = {**all_commands(), "train": train._parser(), "sweep": sweep._parser()}
    bare = [
        f"{name} {action.option_strings or action.dest}"
        for name, parser in parsers.items()
        for action in parser._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert bare == []


def test_a_command_starts_without_jax():
    code = (
        "import sys; from mbv3_jax.cli import main, train, sweep\n"
        "main.make_parser(); train._parser(); sweep._parser()\n"
        "print(*({'jax', 'flax', 'tensorflow', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        ({}, [], "3"),
        ({"JAX_PLATFORMS": "cpu"}, [], "3"),
        ({"JAX_PLATFORMS": "cuda,cpu"}, [], None),
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, [], None),
        ({"TF_CPP_MIN_LOG_LEVEL": "0"}, [], "0"),
        ({}, ["--coordinator=host:1"], None),
    ],
)
def test_xla_is_quiet_only_where_exceptions_say_the_same(
    environment, arguments, expected, monkeypatch
):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    clean.pop(cli.LOG_LEVEL, None)
    monkeypatch.setattr(os, "environ", clean | environment)
    monkeypatch.setattr(sys, "argv", ["mbv3", "train", *arguments])
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    cli.quieten_xla()
    assert os.environ.get(cli.LOG_LEVEL) == expected
    if expected == "3" and not environment:  # the same machine with a GPU
        del os.environ[cli.LOG_LEVEL]
        monkeypatch.setattr(cli, "find_spec", lambda name: name == "jax_plugins" or None)
        cli.quieten_xla()
        assert cli.LOG_LEVEL not in os.environ
