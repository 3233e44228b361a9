import jax
import numpy as np
import pytest

from mbv3_jax.core.errors import UsageError
from mbv3_jax.data import loader
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.sharding import put_batch


@pytest.fixture(scope="module")
def experiment(tiny_config):
    return make_experiment(tiny_config())


def test_durations_are_in_steps(tiny_config):
    made = make_experiment(
        tiny_config(
            "--config.total_steps=None",
            "--config.total_epochs=2.4",
            "--config.checkpoint_every_steps=None",
            "--config.checkpoint_every_examples=17",
            "--config.eval_every_steps=0",
        )
    )
    assert made.data.steps_per_epoch == 50 / 8
    assert made.data.total_steps == 15  # 120 examples, 8 a step
    assert made.data.checkpoint_every == 3
    assert made.data.eval_every == 1


def test_the_state_is_as_abstract_state_says_and_the_step_compiles_once(experiment):
    state = experiment.create_state()
    want = experiment.abstract_state()
    assert jax.tree.structure(state) == jax.tree.structure(want)
    for got, shape in zip(*map(jax.tree.leaves, (state, want)), strict=True):
        assert (got.shape, got.dtype, got.sharding) == (shape.shape, shape.dtype, shape.sharding)
        assert not got.weak_type
    batches = experiment.train_batches(0)
    for _ in range(2):
        state, _ = experiment.train_step(state, put_batch(next(batches), experiment.mesh))
    restored = jax.device_put(jax.tree.map(np.array, state), want.step.sharding)
    experiment.train_step(restored, put_batch(next(batches), experiment.mesh))
    batches.close()
    assert experiment.train_step.func._cache_size() == 1


def test_batches_from_a_step_on_are_those_of_the_whole_run(experiment):
    whole, rest = experiment.train_batches(0), experiment.train_batches(5)
    for _ in range(5):
        next(whole)
    for _ in range(3):  # across the border of an epoch, at 6.25 steps
        for a, b in zip(next(whole).values(), next(rest).values(), strict=True):
            np.testing.assert_array_equal(a, b)
    whole.close()
    rest.close()


def test_class_weights_and_balanced_classes_reach_the_step(experiment, tiny_config):
    weights = ",".join(["3"] * 10)
    overrides = (f"--config.loss.class_weights={weights}", "--config.data.balanced=True")
    made = make_experiment(tiny_config(*overrides))
    ours, wanted = (
        made.train_batches(0),
        loader.train_batches(made.data.training, batch_size=8, seed=0, balanced=True),
    )
    batch = next(ours)
    np.testing.assert_array_equal(batch["image"], next(wanted)["image"])
    (_, plain), (_, weighted) = (
        e.train_step(e.create_state(), put_batch(batch, e.mesh)) for e in (experiment, made)
    )
    assert float(weighted["loss"]) == pytest.approx(3 * float(plain["loss"]), rel=1e-5)
    assert weighted["top1"] == plain["top1"]
    ours.close()
    wanted.close()


# What is wrong, and what the message says about it.
WRONG = [
    ("batch_size=7", "batch_size: got 7, which 2 devices do not divide; the nearest that they "),
    ("batch_size=0", "batch_size: got 0, expected a whole number of at least 1"),
    ("eval_batch_size=15", "eval_batch_size: got 15, which 2 devices do not divide"),
    ("accum_steps=3", "batch_size: got 8, which 2 devices times accum_steps 3 do not divide"),
    ("optimizer.name=adm", "optimizer.name: got 'adm', expected one of 'rmsprop_tf', 'sgd'"),
    ("optimizer.nesterov=True", "'rmsprop_tf' has no option nesterov; its options: eps, momentum"),
    ("optimizer.decay_rule=x", "optimizer.decay_rule: got 'x', expected one of 'kernels'"),
    (
        "schedule.name=linear",
        "schedule.name: got 'linear', expected one of 'constant'",
    ),
    ("loss.gamma=1.0", "loss: 'cross_entropy' has no option gamma; its options: label_smoothing"),
    ("loss.class_weights=even", "loss.class_weights: got 'even', expected 'balanced' or 10 numb"),
    ("loss.class_weights=1,2", "loss.class_weights: got (1, 2), expected 'balanced' or 10 number"),
    (
        "schedule.factor=0.5",
        "schedule: 'cosine' has no option factor; its options: cooldown",
    ),
    (
        "schedule.warmup_steps=99",
        "schedule.warmup_steps: got 99 (99 steps), but total_steps=24 is only 24 steps; set "
        "--config.schedule.warmup_steps to at most 24, or a larger total_steps",
    ),
    ("total_epochs=2", "total: got total_steps=24, total_epochs=2.0, expected exactly one of"),
    ("total_steps=0", "total_steps: got 0, expected a run of at least one step"),
    ("total_steps=None", "total: got none, expected exactly one of total_steps, total_epochs"),
    (
        "data.name=cifar",
        "data.name: got 'cifar', expected one of 'clutter', 'digits', 'folder:PATH',",
    ),
    ("data.num_threads=0", "data.num_threads: got 0, expected 1 or more"),
    ("net.num_classes=7", "net.num_classes: got 7, but the data 'synthetic' has 10 classes"),
    ("net.in_channels=0", "config.net.in_channels: got 0, expected a whole number of at least 1"),
    ("net.resolution=31", "config.net.resolution: got 31, expected a whole number of at least 32"),
    ("net.width=0.3", "config.net.width: 0.3 gives the narrowest layer of tiny 2.4 channels"),
    ("net.nonlinearity=gelu", "config.net.nonlinearity: got 'gelu', expected one of 'paper'"),
    ("seed=-1", "seed: got -1, expected a whole number"),
    ("seed=4294967296", "seed: got 4294967296, expected a whole number from 0 to 4294967295"),
    ("label_smoothing=1", "label_smoothing: got 1.0, expected a number at least 0 and below 1"),
    ("ema_decay=1", "ema_decay: got 1.0, expected a number at least 0 and below 1"),
    ("average_epochs=1", "average_epochs: got 1.0, but ema_decay is 0.9; one of them must be None"),
    ("data.repeats=0", "data.repeats: got 0"),
    ("data.repeats=9", "data.repeats: got 9, expected at most batch_size, 8"),
    ("augment.zoom=2", "augment.zoom: got 2.0, expected from 0 to below 1"),
    ("compute.dtype=float16", "compute.dtype: got 'float16', expected one of 'float32', 'bfloat"),
    ("compute.batch_norm=x", "compute.batch_norm: got 'x', expected one of 'cross_device'"),
    ("keep_checkpoints=0", "keep_checkpoints: got 0, expected a whole number of at least 1"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[o for o, _ in WRONG])
def test_wrong_values_say_what_would_be_right(tiny_config, override, message):
    with pytest.raises(UsageError) as caught:
        make_experiment(tiny_config(f"--config.{override}"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    for part in override.partition("=")[0].split("."):  # the field that was typed
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("warmup", "at_most"),
    [("epochs=3", 2), ("epochs=2.5", 2), ("examples=200", 104), ("steps=14", 13)],
)
def test_a_run_shorter_than_its_warm_up_names_what_was_written(tiny_config, warmup, at_most):
    field, value = warmup.split("=")
    shorter = ["--config.total_steps=None", "--config.total_epochs=2"]  # 100 examples, 8 a step
    fields = [f"--config.schedule.warmup_{f}" for f in ("steps", "epochs", "examples")]
    given = [f"{f}={value if f.endswith(field) else None}" for f in fields]
    with pytest.raises(UsageError) as caught:
        make_experiment(tiny_config(*shorter, *given))
    said = str(caught.value)
    assert said.startswith(f"config: schedule.warmup_{field}: got {value}")
    assert "but total_epochs=2.0 is only 13 steps" in said
    advice = f"set --config.schedule.warmup_{field} to at most {at_most}, or a larger total_epochs"
    assert said.endswith(advice) or said.endswith(advice.replace(" 2,", " 2.08,"))
    # The advice is right.
    at = [f"{f}={at_most if f.endswith(field) else None}" for f in fields]
    assert make_experiment(tiny_config(*shorter, *at)).data.total_steps == 13


def test_imagenet_that_is_not_there(tiny_config, tmp_path):
    config = tiny_config(
        "--config.data.name=imagenet",
        "--config.data.num_examples=None",
        f"--config.data.data_dir={tmp_path}",
        "--config.net.num_classes=1000",
    )
    with pytest.raises(UsageError) as caught:
        make_experiment(config)
    for part in (
        f"no prepared imagenet2012 in {tmp_path} (data.data_dir)",
        "https://image-net.org/download-images",
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "data prepare imagenet --manual-dir=",
    ):
        assert part in str(caught.value)
