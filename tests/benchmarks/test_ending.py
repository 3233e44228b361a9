"""A benchmark that ends early says so in one line."""

import os
import signal

import pytest

from benchmarks.ending import exit_code
from mbv3_jax.core.errors import Preempted, RunError, UsageError


def send(number):
    os.kill(os.getpid(), number)
    signal.pause()


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("ends", "code", "line"),
    [
        (lambda: None, 0, ""),
        (lambda: send(signal.SIGTERM), 75, "preempted; run the same command again to resume\n"),
        (lambda: send(signal.SIGUSR1), 75, "preempted; run the same command again to resume\n"),
        (lambda: send(signal.SIGINT), 130, "interrupted; run the same command again to resume\n"),
        (lambda: fail(Preempted("preempted; saved in x")), 75, "preempted; saved in x\n"),
        (lambda: fail(RunError("the loss is nan")), 1, "error: the loss is nan\n"),
        (lambda: fail(UsageError("no such\x1bfile")), 2, "error: no such\\x1bfile\n"),
    ],
)
def test_how_it_ends(ends, code, line, capsys):
    assert exit_code(ends) == code
    assert capsys.readouterr() == ("", line)
