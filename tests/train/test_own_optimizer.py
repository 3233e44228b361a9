"""An optimizer, a schedule and a loss of the user's own, registered in a configuration file."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.config import parse_config
from mbv3_jax.run.folder import read_config, read_summary

CONFIG = """
import jax
import jax.numpy as jnp
import optax
import tiny_config
from mbv3_jax.train.losses import LOSSES
from mbv3_jax.train.optimizers import OPTIMIZERS
from mbv3_jax.train.schedules import SCHEDULES


@OPTIMIZERS.register("lion")
def lion(schedule, decay, *, b1: float = 0.9, b2: float = 0.99, cautious: bool = False):
    return optax.lion(schedule, b1=b1, b2=b2, weight_decay=0.0)


@SCHEDULES.register("inverse_root")
def inverse_root(course, *, knee_epochs: float = 1.0):
    knee = course.steps(knee_epochs)
    return lambda step: jnp.sqrt(knee / jnp.maximum(step, knee))


@LOSSES.register("my_focal")
def my_focal(logits, labels, *, gamma: float = 2.0):
    p = jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)[:, 0]
    return -((1 - p) ** gamma) * jnp.log(p)


def get_config():
    config = tiny_config.get_config()
    config.total_steps = 8
    config.optimizer.update(name="lion", b1=0.8)
    config.schedule.update(name="inverse_root", knee_epochs=0.5)
    config.loss.update(name="my_focal", gamma=1.0)
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds mine.py, and a run of it that was started by main.py in its own process."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(CONFIG)
    flags = [f"--config={folder / 'mine.py'}", f"--workdir={folder / 'run'}"]
    done = call("main.py", *flags, "--config.optimizer.b2=0.95", "--config.loss.gamma=0.5")
    assert done.returncode == 0, done.stderr
    return folder


def call(*arguments):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_one_entry_each_is_all_it_takes_to_train(folder):
    config = read_config(folder / "run")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.b1, optimizer.b2) == ("lion", 0.8, 0.95)
    assert (config.loss.name, config.loss.gamma) == ("my_focal", 0.5)
    assert read_summary(folder / "run")["steps"] == 8


def test_other_commands_do_not_need_the_file(folder):
    """Evaluating needs no optimizer, and none of them knows of the user's entries."""
    code = (
        "import sys, tiny_config; from mbv3_jax.cli.main import main; "
        f"sys.exit(main(['eval', '--run={folder / 'run'}']))"
    )
    done = call("-c", code)
    assert done.returncode == 0, done.stderr
    assert '"step": 8' in done.stdout


def test_options_are_checked_as_those_of_the_package(folder):
    path, flags = str(folder / "mine.py"), [f"--workdir={folder / 'other'}"]
    with pytest.raises(UsageError, match=r"b1: got 'x', expected a value of type float"):
        parse_config_elsewhere(path, "--config.optimizer.b1=x")
    done = call("main.py", f"--config={path}", *flags, "--config.optimizer.momentum=0.9")
    assert done.returncode == 2
    assert "'lion' has no option momentum; its options: b1, b2, cautious" in done.stderr


def parse_config_elsewhere(path, *overrides):
    """`parse_config` with registries that the file does not change for other tests."""
    from mbv3_jax.train import losses, optimizers, schedules

    registries = (losses.LOSSES, optimizers.OPTIMIZERS, schedules.SCHEDULES)
    before = [(dict(r._factories), dict(r._fields)) for r in registries]
    try:
        return parse_config(path, overrides)
    finally:
        for registry, (factories, fields) in zip(registries, before, strict=True):
            registry._factories, registry._fields = factories, fields
