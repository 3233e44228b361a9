"""Learning from maps of a teacher: which maps, their loss, and that nothing of it stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import SPEC

from mbv3_jax.arch import build
from mbv3_jax.arch.spec import QuantSpec
from mbv3_jax.core.errors import UsageError
from mbv3_jax.nn import functional
from mbv3_jax.run.model import Model, Preprocessing, save_model
from mbv3_jax.search.netadapt.tuning import tuning_config
from mbv3_jax.train.experiment import make_experiment
from mbv3_jax.train.finetune import rate_factors
from mbv3_jax.train.hints import Hints, make_hints
from mbv3_jax.train.sharding import put_batch
from mbv3_jax.train.state import STEP_STREAM, HintedState

RNG = np.random.default_rng(0)
NAMES = tuple(f"class{i}" for i in range(10))


def test_the_last_stage_of_a_stride_predicts_that_of_the_teacher():
    small, large = build("mobilenet_v3_small"), build("mobilenet_v3_large")
    hints = make_hints((32, 16), 2.0, small, large)
    assert hints.stages == (("block8", "block12"), ("last", "last"))
    assert hints.channels == ((48, 112), (576, 960))
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(hints.init, jax.random.key(0)))
    assert shapes["block8"] == {"kernel": (1, 1, 48, 112), "bias": (112,)}
    assert make_hints((), 1.0, small, large) is None
    assert make_hints((2,), 1.0, small, large).stages == (("stem", "block1"),)


def test_the_loss_is_half_the_mean_square_of_what_a_1x1_convolution_misses():
    hints = Hints(
        stages=(("block1", "block2"), ("last", "last")), channels=((4, 6), (3, 5)), weight=1.0
    )
    projections = jax.tree.map(
        lambda x: RNG.normal(size=x.shape).astype("f4"), hints.init(jax.random.key(0))
    )
    student = {"block1": (2, 8, 6, 4), "last": (2, 4, 3, 3)}
    teacher = {"block2": (2, 8, 6, 6), "last": (2, 4, 3, 5)}
    student, teacher = (
        {name: RNG.normal(size=shape).astype("f4") for name, shape in maps.items()}
        for maps in (student, teacher)
    )
    missed = [
        np.einsum("nhwi,io->nhwo", student[a], projections[a]["kernel"][0, 0])
        + projections[a]["bias"]
        - teacher[b]
        for a, b in hints.stages
    ]
    want = np.mean([np.mean(np.square(x)) / 2 for x in missed])
    assert hints.loss(projections, student, teacher) == pytest.approx(want, rel=1e-5)
    gradient = jax.grad(hints.loss, argnums=2)(projections, student, teacher)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_a_map_of_another_size_is_resized_to_the_students():
    hints = Hints(stages=(("last", "last"),), channels=((1, 1),), weight=1.0)
    same = {"last": {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.zeros(1)}}
    large = RNG.normal(size=(2, 8, 12, 1)).astype("f4")
    halves = jax.image.resize(large, (2, 4, 6, 1), "bilinear")
    assert hints.loss(same, {"last": halves}, {"last": large}) < 1e-10
    assert hints.loss(same, {"last": halves + 1}, {"last": large}) == pytest.approx(0.5, rel=1e-4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a wider network of another size, and what is in it."""
    blocks = tuple(block.__class__(**{**vars(block), "out": 24}) for block in SPEC.blocks)
    spec = SPEC.replace(blocks=blocks, resolution=48, dropout=0.0)
    variables = jax.tree.map(np.asarray, functional.init(spec, jax.random.key(3)))
    model = Model(spec=spec, variables=variables, preprocessing=Preprocessing(), class_names=NAMES)
    path = tmp_path_factory.mktemp("hints") / "wide"
    save_model(path, model, origin={})
    return path, model


@pytest.fixture(scope="module")
def flags(teacher):
    return (
        f"--config.teacher={teacher[0]}",
        "--config.distillation.features=(2, 4)",
        "--config.distillation.features_weight=3",
        "--config.distillation.weight=0.25",
        "--config.net.dropout=0.0",
        "--config.schedule.warmup_steps=0",
    )


def step_once(experiment):
    state = experiment.create_state()
    before = jax.tree.map(np.array, state)
    batches = experiment.train_batches(0)
    batch = next(batches)
    batches.close()
    after, metrics = experiment.train_step(state, put_batch(batch, experiment.mesh))
    return before, batch, after, {k: float(v) for k, v in metrics.items()}


def test_a_step_adds_the_loss_of_the_maps(tiny_config, flags, teacher):
    experiment = make_experiment(tiny_config(*flags))
    before, batch, after, metrics = step_once(experiment)
    key = jax.random.fold_in(jax.random.key(np.uint32(0)), STEP_STREAM)
    key_data, key_net = jax.random.split(jax.random.fold_in(key, 0))
    images, _ = experiment.preprocess(batch, key_data)
    large = jax.image.resize(images, (len(images), 48, 48, 3), "bilinear")
    model, hints = teacher[1], experiment.teaching.hints
    assert hints.of_student == ("stem", "last")
    found = functional.features(model.spec, model.variables, large, stages=hints.of_teacher)
    theirs = {one.stage: one.values for one in found}
    _, ours, _ = functional.apply_with_maps(
        experiment.spec, before.variables, images, stages=("stem", "last"), train=True, key=key_net
    )
    want = hints.loss(before.projections, ours, theirs)
    assert metrics["feature_loss"] == pytest.approx(float(want), rel=1e-3)
    parts = 0.75 * metrics["label_loss"] + 0.25 * metrics["teacher_loss"]
    assert metrics["loss"] == pytest.approx(parts + 3 * metrics["feature_loss"], rel=1e-4)
    assert isinstance(after, HintedState)
    for old, new in zip(
        jax.tree.leaves(before.projections), jax.tree.leaves(after.projections), strict=True
    ):
        assert np.any(old != new)
    # Nothing of it is in what is evaluated, averaged and exported.
    functional.check(experiment.spec, after.variables)
    functional.check(experiment.spec, after.ema)


def test_with_parts_of_a_batch_in_int8_and_with_a_sharded_optimizer(tiny_config, flags):
    quantized = (
        "--config.quant.enabled=True",
        "--config.quant.delay_steps=0",
        "--config.quant.freeze_steps=9",
        "--config.accum_steps=2",
        "--config.compute.shard_optimizer=True",
    )
    metrics = step_once(make_experiment(tiny_config(*flags, *quantized)))[3]
    parts = 0.75 * metrics["label_loss"] + 0.25 * metrics["teacher_loss"]
    assert metrics["feature_loss"] > 0
    assert metrics["loss"] == pytest.approx(parts + 3 * metrics["feature_loss"], rel=1e-4)


def test_maps_in_simulated_int8_are_close_to_those_in_float():
    quant = QuantSpec(range_decay=0.9, delay_steps=0, freeze_steps=9)
    images = RNG.normal(size=(4, 32, 32, 3)).astype("f4")
    maps = []
    for spec in (SPEC.replace(dropout=0.0), SPEC.replace(dropout=0.0, quant=quant)):
        variables = functional.init(spec, jax.random.key(0))
        maps.append(
            functional.apply_with_maps(
                spec, variables, images, stages=tuple(spec.strides()), train=True
            )[1]
        )
    for stage, exact in maps[0].items():
        error = np.abs(np.asarray(exact - maps[1][stage])).max()
        assert 0 < error < 0.1 * np.abs(np.asarray(exact)).max(), stage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["features=(3,)"], r"features: got \(3,\), expected different strides .*: 2, 4$"),
        (["features=(4, 4)"], r"features: got \(4, 4\), expected different strides"),
        (["features=None"], r"features_weight: got 3.0, but distillation.features is None"),
        (["features_weight=0.0"], r"features_weight: got 0.0, expected a number above 0"),
    ],
)
def test_wrong_features(tiny_config, flags, changes, message):
    changed = [f"--config.distillation.{change}" for change in changes]
    # absl joins the tuples of a flag that is given twice.
    kept = [
        flag for flag in flags if not any(flag.startswith(c.split("=")[0] + "=") for c in changed)
    ]
    with pytest.raises(UsageError, match=message):
        make_experiment(tiny_config(*kept, *changed))


def test_features_are_of_one_folder(tiny_config, flags, teacher):
    several = f"--config.teacher={(str(teacher[0]),) * 2!r}"
    with pytest.raises(UsageError, match="features: got several teachers, expected one folder"):
        make_experiment(tiny_config(*flags, several))


def test_a_brief_fine_tuning_of_netadapt_is_without_them(tiny_config, flags):
    config = tuning_config(tiny_config(*flags), steps=2, rate=None, eval_split=None, seed=0)
    assert config.distillation.features is config.distillation.features_weight is None
    assert config.teacher is not None and config.distillation.weight == 0.25


def test_projections_learn_at_the_rate_of_new_layers():
    params = {"block1": {"kernel": 0}, "projections": {"block1": {"kernel": 0}}}
    factors = rate_factors(params, backbone=0.1)
    assert factors == {"block1": {"kernel": 0.1}, "projections": {"block1": {"kernel": 1.0}}}
