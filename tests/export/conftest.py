"""A run, an import folder and photographs to export, and the command that does it."""

import jax
import numpy as np
import pytest
from PIL import Image

from mbv3_jax import __main__
from mbv3_jax.nn import functional
from mbv3_jax.run.model import Model, Preprocessing, save_model
from mbv3_jax.train import loop


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_config):
    folder = tmp_path_factory.mktemp("runs") / "run"
    fields = {
        "total_steps": 8,
        "eval_every_steps": 8,
        "checkpoint_every_steps": 4,
        "schedule.warmup_steps": 1,
        "augment.rotate_degrees": 0.0,
        "augment.normalize": "torch",
    }
    loop.train(tiny_config(*(f"--config.{k}={v}" for k, v in fields.items())), folder)
    return folder


@pytest.fixture(scope="session")
def model(tiny_spec):
    """Weights with statistics, and logits, of the size that training gives them."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.2, 1.0, x.shape).astype(np.float32), functional.shapes(tiny_spec)
    )
    variables["params"] = jax.tree_util.tree_map_with_path(
        lambda path, x: x - 0.6 if path[-1].key == "kernel" else x, variables["params"]
    )
    return Model(
        spec=tiny_spec,
        variables=variables,
        preprocessing=Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
        class_names=tuple(f"class {i} é" for i in range(10)),
    )


@pytest.fixture(scope="session")
def imported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imports") / "tiny"
    save_model(folder, model, origin={})
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(1)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def do(capsys):
    """do(*arguments) -> (exit code, standard output, standard error) of an export."""

    def run(*arguments):
        code = __main__.main(["export", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run
